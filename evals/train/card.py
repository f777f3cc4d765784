"""The model card of a trained model: README.md of its folder."""

from __future__ import annotations

from pathlib import Path

from moecheck.evals.problems.generator import TRAINED
from moecheck.evals.problems.test_set import SIZES
from moecheck.evals.tiny.config import TinyConfig, read_config
from moecheck.evals.tiny.weights import read_weights, tensor_shapes

from .facts import Facts

CARD = "README.md"


def write_card(folder: Path, name: str, facts: Facts, tested: dict[int, float]) -> float:
    """Write the card and return the share of the test set that is solved.

    tested: by number of operations. Sizes come from the folder's configuration.
    """
    config = read_config(folder)
    parameters = sum(_product(shape) for _, shape in tensor_shapes(config))
    routing, spec = config.spec.routing, config.spec
    solved = sum(right * SIZES[operations] for operations, right in tested.items()) / sum(SIZES.values())
    accuracy = "\n".join(f"| {operations} | {right:.3f} |" for operations, right in tested.items())
    deviations = ", ".join(f"{deviation:.3f}" for deviation in bias_deviations(folder, config)) or "no bias"
    shared = f", a shared expert of {config.shared_intermediate_size}" if config.shared_intermediate_size else ""
    groups = f" in {routing.num_expert_groups} groups of which {routing.topk_groups} are kept"
    layers = (
        f"{config.num_layers} layers of width {config.hidden_size}, the first {config.dense_layers} dense; "
        f"{config.num_experts} experts of {config.expert_intermediate_size}"
    )
    words = (
        f"{routing.scoring} scores, top {routing.top_k}{groups if routing.num_expert_groups > 1 else ''}, "
        f"{'renormalised' if routing.renormalize else 'not renormalised'}, factor {routing.routed_scaling_factor:g}, "
        f"correction bias: {routing.correction_bias}; shared experts: {spec.shared_experts}"
    )
    text = f"""---
license: apache-2.0
library_name: transformers
---
# {name}

A tiny Mixture-of-Experts language model ({config.model_type}, {parameters:,} parameters) that solves generated
grade-school word problems. It is made for one purpose: a kernel is put into its layers, and moecheck looks whether the
model still computes the same. It knows nothing else.

* {layers}{shared}.
* Routing: {words}.
* Text: `Question: ...\\nAnswer: ...`, 512 tokens, digits one by one, printable ASCII.

Made by `python -m moecheck.evals.train {name}` from problems of `moecheck.evals.problems`; those whose content hashes
into the held-out share were left out, and none had more than {max(TRAINED)} operations. Weights are bf16, correction
biases fp32. `reference_outputs.json` holds greedy answers and log-probabilities of the reference path in fp32.

Of the test set it solves {solved:.1%}:

| operations | accuracy |
|---|---|
{accuracy}

Trained for {facts.seconds:.0f} s on {facts.tokens / 1e6:.0f} million tokens ({facts.steps} steps, {facts.precision},
seed {facts.seed}; {facts.machine}). Standard deviations of the correction biases: {deviations}.
"""
    (folder / CARD).write_text(text, encoding="utf-8")
    return solved


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
