"""The layers that kernels are timed on: published models in full size, from one token to thousands."""

from __future__ import annotations

from dataclasses import replace

from moecheck.cases import SAMPLED_OPS, Case
from moecheck.errors import UsageError, near
from moecheck.formats import FORMATS
from moecheck.models import WHOLE_OPS, model_case
from moecheck.quantization import SCHEMES, scheme_name

MODELS = (
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "deepseek-v3",
    "deepseek-v3-tp8",
    "llama-4-maverick",
    "gpt-oss-120b",
)
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
# Where no kernel runs on an accelerator: what a CPU does in a minute.
MODELS_ON_CPU, TOKENS_ON_CPU = ("qwen3-30b-a3b-tp8",), (1, 16, 64)
OPS = (*SAMPLED_OPS, *WHOLE_OPS)
SAMPLE = 4  # tokens that the reference computes: it has many cases to look at, and every expert's matrices are large


def bench_case(model: str, op: str, *, weights: str, tokens: int, seed: int, sample: int = SAMPLE) -> Case:
    """A model's layer with weights in a format (bf16) or of a scheme (fp8-block, with bf16 activations).

    Raises UsageError for what is neither, offering the near name, and for a scheme of an op without quantised weights.
    """
    if weights not in FORMATS and weights not in SCHEMES:
        raise UsageError(f"--dtype {weights} is neither a format nor a scheme.{near(weights, [*FORMATS, *SCHEMES])}")
    dtype = weights if weights in FORMATS else "bf16"
    case = model_case(model, op, num_tokens=tokens, dtype=dtype, full_size=True, seed=seed)
    if weights in SCHEMES:
        if op != "fused_experts":
            raise UsageError(f"--dtype {weights} is of fused_experts, not of {op}.")
        experts = replace(case.spec.experts, quantization=SCHEMES[weights])
        case = replace(case, spec=replace(case.spec, experts=experts))
    return replace(case, sampled=sample) if op in SAMPLED_OPS else case


def weights_name(case: Case) -> str:
    """The case's format, or the scheme of its weights."""
    quantization = case.spec.experts.quantization
    return case.dtype if quantization is None else scheme_name(quantization)
