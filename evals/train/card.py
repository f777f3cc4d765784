"""The model card of a trained model: README.md of its folder."""

from __future__ import annotations

import json
from pathlib import Path

from moecheck.evals.problems.test_set import SIZES
from moecheck.evals.tiny.config import TinyConfig
from moecheck.evals.tiny.weights import read_weights, tensor_shapes

from .loop import Result, Settings

CARD = "README.md"


def write_card(folder: Path, name: str, config: TinyConfig, settings: Settings, result: Result, machine: str) -> None:
    """Write the card; numbers come from the result and from the weights that were written."""
    parameters = sum(_product(shape) for _, shape in tensor_shapes(config))
    routing, spec = config.spec.routing, config.spec
    accuracy = "\n".join(f"| {operations} | {share:.3f} |" for operations, share in result.tested.items())
    tested = sum(share * SIZES[operations] for operations, share in result.tested.items()) / sum(SIZES.values())
    facts = {
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "seed": settings.seed,
        "precision": settings.precision,
        "machine": machine,
        "accuracy on the test set": round(tested, 4),
        "validation accuracy": {str(key): round(value, 4) for key, value in result.best.items()},
        "correction bias, standard deviations": bias_deviations(folder, config),
    }
    shared = f", a shared expert of {config.shared_intermediate_size}" if config.shared_intermediate_size else ""
    groups = f" in {routing.num_expert_groups} groups of which {routing.topk_groups} are kept"
    text = f"""---
license: apache-2.0
library_name: transformers
---
# {name}

A tiny Mixture-of-Experts language model ({config.model_type}, {parameters:,} parameters) that solves generated
grade-school word problems. It is made for one purpose: a kernel is put into its layers, and moecheck looks whether the
model still computes the same. It knows nothing else.

* {config.num_layers} layers of width {config.hidden_size}, the first {config.dense_layers} dense;
  {config.num_experts} experts of {config.expert_intermediate_size}{shared}.
* Routing: {routing.scoring} scores, top {routing.top_k}{groups if routing.num_expert_groups > 1 else ""},
  {"renormalised" if routing.renormalize else "not renormalised"}, factor {routing.routed_scaling_factor:g},
  correction bias: {routing.correction_bias}; shared experts: {spec.shared_experts}.
* Text: `Question: ...\\nAnswer: ...`, 512 tokens, digits one by one, printable ASCII.

Made by `python -m moecheck.evals.train {name}` from problems of `moecheck.evals.problems`; those whose content hashes
into the held-out share were left out. Weights are bf16, correction biases fp32. `{Path("reference_outputs.json")}`
holds greedy answers and log-probabilities of the reference path in fp32.

Of the test set it solves {tested:.1%}:

| operations | accuracy |
|---|---|
{accuracy}

```json
{json.dumps(facts, indent=2)}
```
"""
    (folder / CARD).write_text(text, encoding="utf-8")


def bias_deviations(folder: Path, config: TinyConfig) -> list[float]:
    """Standard deviation of each layer's correction bias; a small one would hide bugs in its use."""
    weights = read_weights(folder, config, "cpu")
    biases = [getattr(weights.layers[number].mlp, "correction_bias", None) for number in config.moe_layers]
    return [round(float(bias.std()), 4) for bias in biases if bias is not None]


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
