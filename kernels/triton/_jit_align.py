# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,misc"
# (a Triton function is written in Triton's own language: its arguments are pointers and its types are tiles)
"""Device code: counting (token, slot) pairs by expert and sorting them into blocks, without the host.

Few pairs of few experts: align_few_kernel, one program. More: align_kernel, whose programs read all pairs for an expert
each. Many: count_chunks_kernel, add_chunks_kernel and place_kernel, whose programs read a chunk of pairs each.
"""

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


@triton.jit
def finish_expert(
    expert, number, expert_map, sorted_token_ids, expert_ids, num_tokens_post_padded, starts,
    numel, num_experts, length, num_blocks, block_size,
    HAS_MAP: tl.constexpr, PERMUTES: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """What else is stored for one expert: padding behind its rows, its id for each block, its share of the rest.

    number: [BINS], the pairs of each expert. PERMUTES: starts[expert], and no blocks.
    """
    bins = tl.arange(0, BINS)
    blocks = (number + block_size - 1) // block_size
    first = tl.sum(tl.where(bins < expert, blocks, 0), axis=0)
    own = tl.sum(tl.where(bins == expert, blocks, 0), axis=0)
    rows = tl.sum(tl.where(bins == expert, number, 0), axis=0)
    used = tl.sum(blocks, axis=0)
    for start in range(first * block_size + rows, (first + own) * block_size, CHUNK):
        at = start + tl.arange(0, CHUNK)
        tl.store(sorted_token_ids + at, numel, mask=at < (first + own) * block_size)
    for start in range(used * block_size + expert * CHUNK, length, num_experts * CHUNK):
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
        for start in range(used + expert * CHUNK, num_blocks, num_experts * CHUNK):
            at = start + tl.arange(0, CHUNK)
            tl.store(expert_ids + at, -1, mask=at < num_blocks)
        tl.store(num_tokens_post_padded, used * block_size, mask=expert == 0)


@triton.jit
def rank_in_chunk(chosen, CHUNK: tl.constexpr):
    """How many pairs of the chunk that stand before a pair have its expert."""
    offset = tl.arange(0, CHUNK)
    same_before = (chosen[:, None] == chosen[None, :]) & (offset[None, :] < offset[:, None])
    return tl.sum(same_before.to(tl.int32), axis=1)


@triton.jit
def rank_by_parts(
    ids, expert_map, chosen, start, numel, HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """As rank_in_chunk, of the chunk from `start`; PART pairs at a time are read again: all are too many registers."""
    offset = tl.arange(0, CHUNK)
    rank = tl.zeros((CHUNK,), dtype=tl.int32)
    for first in range(0, CHUNK, PART):
        before = first + tl.arange(0, PART)
        other = experts_of(ids, expert_map, start + before, numel, HAS_MAP, BY_LOCAL)
        same_before = (chosen[:, None] == other[None, :]) & (before[None, :] < offset[:, None])
        rank += tl.sum(same_before.to(tl.int32), axis=1)
    return rank


@triton.jit(do_not_specialize=["numel", "length", "num_blocks"])
def align_few_kernel(
    ids, expert_map, sorted_token_ids, expert_ids, num_tokens_post_padded, starts, inverse,
    numel, num_experts, length, num_blocks, block_size,
    HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, PERMUTES: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """All of align_kernel by one program. CHUNK >= numel, BLOCK >= block_size, BLOCKS >= num_blocks."""
    bins, at = tl.arange(0, BINS), tl.arange(0, CHUNK)
    chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
    here = chosen >= 0
    number = tl.histogram(tl.where(here, chosen, BINS - 1), BINS)
    number = tl.where(bins < num_experts, number, 0)
    blocks = (number + block_size - 1) // block_size
    ends = tl.cumsum(blocks, axis=0)
    used, first = tl.sum(blocks, axis=0), (ends - blocks) * block_size
    place = tl.gather(first, tl.where(here, chosen, 0), axis=0) + rank_in_chunk(chosen, CHUNK)
    tl.store(sorted_token_ids + place, at, mask=here)
    if PERMUTES:
        tl.store(inverse + at, tl.where(here, place, -1), mask=at < numel)
        tl.store(starts + bins, first, mask=bins <= num_experts)
    else:
        block, inside = tl.arange(0, BLOCKS), tl.arange(0, BLOCK)[None, :]
        padded = (first + number)[:, None] + inside
        tl.store(sorted_token_ids + padded, numel, mask=padded < (ends * block_size)[:, None])
        rest = (block * block_size)[:, None] + inside
        behind = (block >= used)[:, None] & (inside < block_size) & (rest < length)
        tl.store(sorted_token_ids + rest, numel, mask=behind)
        expert = tl.sum((ends[None, :] <= block[:, None]).to(tl.int32), axis=1)
        if HAS_MAP:
            expert = tl.load(expert_map + expert, mask=block < used, other=-1)
        tl.store(expert_ids + block, tl.where(block < used, expert, -1), mask=block < num_blocks)
        tl.store(num_tokens_post_padded, used * block_size)


@triton.jit(do_not_specialize=["numel", "length", "num_blocks"])
def align_kernel(
    ids, expert_map, sorted_token_ids, expert_ids, num_tokens_post_padded, starts, inverse,
    numel, num_experts, length, num_blocks, block_size,
    HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, PERMUTES: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The blocks of one expert: its pairs in order, then padding; all programs together pad the rest.

    BINS > num_experts. PERMUTES: instead of expert_ids and num_tokens_post_padded, starts[expert] and inverse[pair] are
    stored, -1 for a pair without an expert.
    """
    expert = tl.program_id(0)
    bins = tl.arange(0, BINS)
    number = tl.zeros((BINS,), dtype=tl.int32)
    for start in range(0, numel, CHUNK):
        at = start + tl.arange(0, CHUNK)
        chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
        number += tl.histogram(tl.where(chosen >= 0, chosen, BINS - 1), BINS)
    number = tl.where(bins < num_experts, number, 0)

    blocks = (number + block_size - 1) // block_size
    stored = tl.sum(tl.where(bins < expert, blocks, 0), axis=0) * block_size
    for start in range(0, numel, CHUNK):
        at = start + tl.arange(0, CHUNK)
        chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
        mine = (chosen == expert).to(tl.int32)
        place = stored + tl.cumsum(mine, axis=0) - 1
        tl.store(sorted_token_ids + place, at, mask=mine > 0)
        if PERMUTES:
            nobody = (chosen < 0) & (at < numel) & (expert == 0)
            tl.store(inverse + at, tl.where(mine > 0, place, -1), mask=(mine > 0) | nobody)
        stored += tl.sum(mine, axis=0)
    finish_expert(
        expert, number, expert_map, sorted_token_ids, expert_ids, num_tokens_post_padded, starts,
        numel, num_experts, length, num_blocks, block_size, HAS_MAP, PERMUTES, BINS, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=["numel", "chunks"])
def count_chunks_kernel(
    ids, expert_map, counts, numel, num_experts, chunks,
    HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """counts[expert, chunk] = number of the expert's pairs in the chunk; one program a chunk."""
    chunk = tl.program_id(0)
    bins = tl.arange(0, BINS)
    chosen = experts_of(ids, expert_map, chunk * CHUNK + tl.arange(0, CHUNK), numel, HAS_MAP, BY_LOCAL)
    number = tl.histogram(tl.where(chosen >= 0, chosen, BINS - 1), BINS)
    tl.store(counts + bins * chunks + chunk, number, mask=bins < num_experts)


@triton.jit(do_not_specialize=["chunks"])
def add_chunks_kernel(counts, totals, chunks, BLOCK: tl.constexpr):
    """counts[expert, chunk] becomes the number in the chunks before it, totals[expert] that in all; one expert each."""
    expert = tl.program_id(0)
    total = tl.zeros((), dtype=tl.int32)
    for start in range(0, chunks, BLOCK):
        at = start + tl.arange(0, BLOCK)
        number = tl.load(counts + expert * chunks + at, mask=at < chunks, other=0)
        tl.store(counts + expert * chunks + at, total + tl.cumsum(number, axis=0) - number, mask=at < chunks)
        total += tl.sum(number, axis=0)
    tl.store(totals + expert, total)


@triton.jit(do_not_specialize=["numel", "length", "num_blocks", "chunks"])
def place_kernel(
    ids, expert_map, counts, totals, sorted_token_ids, expert_ids, num_tokens_post_padded, starts, inverse,
    numel, num_experts, length, num_blocks, block_size, chunks,
    HAS_MAP: tl.constexpr, BY_LOCAL: tl.constexpr, PERMUTES: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """The pairs of one chunk, each behind its expert's of the chunks before; then some experts are finished.

    counts, totals: of add_chunks_kernel. Else as align_kernel.
    """
    chunk = tl.program_id(0)
    bins = tl.arange(0, BINS)
    number = tl.load(totals + bins, mask=bins < num_experts, other=0)
    blocks = (number + block_size - 1) // block_size
    first = (tl.cumsum(blocks, axis=0) - blocks) * block_size
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    chosen = experts_of(ids, expert_map, at, numel, HAS_MAP, BY_LOCAL)
    here = chosen >= 0
    place = tl.load(counts + chosen * chunks + chunk, mask=here, other=0)
    place += tl.gather(first, tl.where(here, chosen, 0), axis=0)
    place += rank_by_parts(ids, expert_map, chosen, chunk * CHUNK, numel, HAS_MAP, BY_LOCAL, CHUNK, PART)
    tl.store(sorted_token_ids + place, at, mask=here)
    if PERMUTES:
        tl.store(inverse + at, tl.where(here, place, -1), mask=at < numel)
    for expert in range(chunk, num_experts, chunks):
        finish_expert(
            expert, number, expert_map, sorted_token_ids, expert_ids, num_tokens_post_padded, starts,
            numel, num_experts, length, num_blocks, block_size, HAS_MAP, PERMUTES, BINS, CHUNK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["numel"])
def problem_sizes_kernel(
    ids, expert_map, starts, sizes, numel, num_experts, intermediate, hidden,
    HAS_MAP: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """starts[L + 1] and sizes[2, L, 3], the rows, n and k of both GEMMs for each local expert; one program."""
    bins = tl.arange(0, BINS)
    number = tl.zeros((BINS,), dtype=tl.int32)
    for start in range(0, numel, CHUNK):
        chosen = experts_of(ids, expert_map, start + tl.arange(0, CHUNK), numel, HAS_MAP, True)
        number += tl.histogram(tl.where(chosen >= 0, chosen, BINS - 1), BINS)
    number = tl.where(bins < num_experts, number, 0)
    tl.store(starts + bins, tl.cumsum(number, axis=0) - number, mask=bins <= num_experts)
    for gemm in tl.static_range(2):
        row = sizes + (gemm * num_experts + bins) * 3
        tl.store(row, number, mask=bins < num_experts)
        tl.store(row + 1, 2 * intermediate if gemm == 0 else hidden, mask=bins < num_experts)
        tl.store(row + 2, hidden if gemm == 0 else intermediate, mask=bins < num_experts)
