# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: counting (token, slot) pairs by expert and sorting them into blocks, without the host."""

import triton
import triton.language as tl


@triton.jit
def experts_of(ids, expert_map, at, numel, HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr):
    """The expert of each pair, or -1: its global id, or its local one if BY_LOCAL; experts elsewhere are none."""
    chosen = tl.load(ids + at, mask=at < numel, other=-1)
    if HAS_MAP:
        local = tl.load(expert_map + chosen, mask=chosen >= 0, other=-1)
        chosen = local if BY_LOCAL else tl.where(local >= 0, chosen, -1)
    return chosen


@triton.jit(do_not_specialize=["numel"])
def count_kernel(ids, expert_map, counts, numel, HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, CHUNK: tl.constexpr):
    """counts[expert] = number of its pairs; one program an expert."""
    expert = tl.program_id(0)
    found = tl.zeros((CHUNK,), dtype=tl.int32)
    for start in range(0, numel, CHUNK):
        at = start + tl.arange(0, CHUNK)
        found += (experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["numel", "length", "num_blocks"])
def align_kernel(
    ids, expert_map, counts, sorted_token_ids, expert_ids, num_tokens_post_padded, starts, inverse,
    numel, num_experts, length, num_blocks, block_size,
    HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, COUNTED: tl.constexpr, PERMUTES: tl.constexpr,
    BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The blocks of one expert: its pairs in order, then padding; all programs together pad the rest.

    COUNTED: counts holds each expert's pairs; else they are counted here. BINS > num_experts. PERMUTES: instead of
    expert_ids and num_tokens_post_padded, starts[expert] and inverse[pair] are stored, -1 for a pair without an expert.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    if COUNTED:
        number = tl.load(counts + bins, mask=bins < num_experts, other=0)
    else:
        number = tl.zeros((BINS,), dtype=tl.int32)
        for start in range(0, numel, CHUNK):
            at = start + tl.arange(0, CHUNK)
            chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
            number += tl.histogram(tl.where(chosen >= 0, chosen, BINS - 1), BINS)
        number = tl.where(bins < num_experts, number, 0)
    blocks = (number + block_size - 1) // block_size
    first = tl.sum(tl.where(bins < expert, blocks, 0), axis=0)
    own = tl.sum(tl.where(bins == expert, blocks, 0), axis=0)
    rows = tl.sum(tl.where(bins == expert, number, 0), axis=0)
    used = tl.sum(blocks, axis=0)
    stride = tl.num_programs(0) * CHUNK

    stored = first * block_size
    for start in range(0, numel, CHUNK):
        at = start + tl.arange(0, CHUNK)
        chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
        mine = (chosen == expert).to(tl.int32)
        place = stored + tl.cumsum(mine, axis=0) - 1
        tl.store(sorted_token_ids + place, at, mask=mine > 0)
        if PERMUTES:
            tl.store(inverse + at, tl.where(mine > 0, place, -1),
                     mask=(mine > 0) | ((chosen < 0) & (at < numel) & (expert == 0)))  # fmt: skip
        stored += tl.sum(mine, axis=0)
    for start in range(first * block_size + rows, (first + own) * block_size, CHUNK):
        at = start + tl.arange(0, CHUNK)
        tl.store(sorted_token_ids + at, numel, mask=at < (first + own) * block_size)
    for start in range(used * block_size + expert * CHUNK, length, stride):
        at = start + tl.arange(0, CHUNK)
        tl.store(sorted_token_ids + at, numel, mask=at < length)
    if PERMUTES:
        tl.store(starts + expert, first)
        tl.store(starts + num_experts, used, mask=expert == 0)
    else:
        local = expert
        if HAS_MAP:
            local = tl.load(expert_map + expert)
        for start in range(first, first + own, CHUNK):
            at = start + tl.arange(0, CHUNK)
            tl.store(expert_ids + at, local, mask=at < first + own)
        for start in range(used + expert * CHUNK, num_blocks, stride):
            at = start + tl.arange(0, CHUNK)
            tl.store(expert_ids + at, -1, mask=at < num_blocks)
        tl.store(num_tokens_post_padded, used * block_size, mask=expert == 0)
