"""Bugs in the fused expert-parallel kernel: waits, barriers, buffers, rows and ranks, changed in its source."""

from __future__ import annotations

from .rewrite import Rewrite
from .sources import SourceMutant

OP, KERNEL = "expert_parallel_moe", "pallas_tpu.fused:fused"
EXCHANGE, FORWARD = "pallas_tpu/_exchange.py", "pallas_tpu/_feed_forward.py"
FUSED, CHOICE = "pallas_tpu/_fused_kernel.py", "pallas_tpu/_choice.py"
# A race is told by the run itself; what the schedule decides is NaN or a wrong number.
_RACES = ("run", "values", "relation: copy_schedules", "relation: determinism")
_VALUES = ("values", "statistics", "run")


def _one(
    name: str, words: str, file: str, function: str, find: str, put: str, *sources: str,
    which: int | None = None, expected: tuple[str, ...] = _RACES,
) -> SourceMutant:  # fmt: skip
    rewrite = Rewrite(function=function, find=find, put=put, which=which)
    return SourceMutant(
        name=f"pallas: {name}",
        words=words,
        op=OP,
        kernel=KERNEL,
        file=file,
        rewrites=(rewrite,),
        sources=sources,
        expected=expected,
    )


PALLAS_MUTANTS = (
    _one("barrier left out", "ranks do not wait for each other before a half of the inboxes is written again",
         FUSED, "fused_kernel", "meet(plan)", "", "sgl-project/sglang-jax#1021", which=1),
    _one("barrier of one neighbour", "the barrier waits for the right neighbour only", EXCHANGE, "meet",
         "range(plan.num_ranks)", "[jax.lax.rem(jax.lax.axis_index('ranks') + 1, plan.num_ranks)] * plan.num_ranks",
         "vllm-project/tpu-inference#1342"),
    _one("tokens not awaited", "an expert starts before the tokens that were sent to it are there", FUSED,
         "fused_kernel",
         "wait_for_rows(made.inbox.at[0, 0], at.sem_arrived.at[jax.lax.rem(expert, 2)], arrived)", ""),
    _one("returned rows not awaited", "rows are added up before other ranks have sent them back", FUSED,
         "fused_kernel", "wait_for_returned(plan, made, at, rank)", ""),
    _one("all-to-all without the last rank", "the size of the all-to-all leaves out the last rank's rows", EXCHANGE,
         "rows_of_expert", "plan.num_ranks", "plan.num_ranks - 1", expected=_VALUES),
    _one("rows sent back not awaited", "an expert's buffer is written again while it is still being sent", FUSED,
         "fused_kernel", "wait_for_sent_back(plan, made, at, rank, expert)", ""),
    _one("output not awaited", "an expert's rows are sent back before they are all written", FORWARD,
         "compute_expert", "store(tiles - last).wait()", ""),
    _one("gate and up tile not awaited", "the first product starts before its tile of weights is there", FORWARD,
         "_feed_forward", "_wait(first(step))", ""),
    _one("down tile not awaited", "the second product starts before its tile of weights is there", FORWARD,
         "_feed_forward", "_wait(second(step))", ""),
    _one("one buffer for two", "the next tile of weights is copied into the buffer that is in use", FORWARD,
         "first", "jax.lax.rem(step, 2)", "step * 0"),
    _one("row tile not awaited", "an expert's next tile of rows is used before it is there", FORWARD,
         "compute_expert", "fetch(tile).wait()", ""),
    _one("logits not awaited", "tokens are routed by logits that are not there yet", FUSED, "route",
         "fetch(tile).wait()", ""),
    _one("weighted rows not awaited", "rows are added up before they are in vector memory", FUSED, "add_up",
         "wait_for_rows(at.rows.at[slot, 0, 0], at.sem_rows.at[slot], tokens_of(tile) * top_k)", ""),
    _one("ranks' rows overlap", "every rank writes its rows to the beginning of an expert's inbox", EXCHANGE,
         "scatter", "_rows_before(plan, at, rank, place) + at.positions_s[token, slot]",
         "at.positions_s[token, slot]"),
    _one("rows of the first rank for all", "each rank is sent the first rows of an expert's outbox", EXCHANGE,
         "send_back", "_rows_before(plan, at, to, place)", "0", expected=_VALUES),
    _one("rows of another expert back", "rows are put where the next expert's belong", EXCHANGE, "send_back",
         "made.returned.at[place, pl.ds(0, size)]",
         "made.returned.at[jax.lax.rem(place + 1, plan.places), pl.ds(0, size)]"),
    _one("remote copy to the wrong rank", "tokens go to the rank after the one that has their expert", EXCHANGE,
         "scatter", "place // plan.local", "jax.lax.rem(place // plan.local + 1, plan.num_ranks)",
         expected=("run", "values")),
    _one("chosen expert not masked", "a token's best expert is chosen in every round", CHOICE, "_best",
         "choice = jnp.where(here, -jnp.inf, choice)", "", "vllm-project/vllm#39391", expected=_VALUES),
    _one("first weight for all", "every slot is weighed like the first", FUSED, "add_up", "weights[:, k:k + 1]",
         "weights[:, 0:1]", expected=_VALUES),
    _one("low partial sums", "the second product's partial sums are stored in the input's dtype", FORWARD, "_product",
         "jnp.dot(x, w, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST)",
         "jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.bfloat16).astype(jnp.float32)",
         expected=_VALUES),
)  # fmt: skip
