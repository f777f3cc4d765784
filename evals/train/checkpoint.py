"""A trained network as a folder in Hugging Face layout."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from moecheck.evals.tiny.config import CONFIG, to_json
from moecheck.evals.tiny.text import END, TOKENIZER
from moecheck.evals.tiny.weights import WEIGHTS

from .network import Dense, Experts, TrainedNetwork

KEPT_IN_FP32 = "e_score_correction_bias"
SUMS = "SHA256SUMS"


def tensors(network: TrainedNetwork) -> dict[str, torch.Tensor]:
    """The weights by Hugging Face's names, rounded to bf16, on the network's device; correction biases in fp32."""
    return {
        name: tensor.detach().float().clone() if name.endswith(KEPT_IN_FP32) else tensor.detach().bfloat16()
        for name, tensor in _named(network)
    }


def write(network: TrainedNetwork, folder: Path) -> None:
    """Weights, configuration and tokenizer; files are complete or not there."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.cpu().contiguous() for name, tensor in tensors(network).items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(weights, partial, metadata={"format": "pt"})
    config = network.config
    _write_json(folder / CONFIG, to_json(config))
    ends = {"bos_token_id": None, "eos_token_id": config.end_token, "pad_token_id": config.end_token}
    _write_json(folder / "generation_config.json", {**ends, "do_sample": False})
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "eos_token": END,
            "pad_token": END,
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_positions,
        },
    )
    partial.chmod(0o644)  # safetensors writes for the owner only
    partial.replace(folder / WEIGHTS)


def write_sums(folder: Path) -> None:
    """SHA256SUMS of all other files, as `sha256sum --check` reads it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _named(network: TrainedNetwork) -> Iterator[tuple[str, torch.Tensor]]:
    yield "model.embed_tokens.weight", network.embedding
    yield "model.norm.weight", network.norm.weight
    for number, layer in enumerate(network.decoders):
        name = f"model.layers.{number}"
        yield f"{name}.input_layernorm.weight", layer.input_norm.weight
        yield f"{name}.post_attention_layernorm.weight", layer.mlp_norm.weight
        attention = layer.attention
        for part, matrix in zip("qkvo", (attention.q, attention.k, attention.v, attention.o), strict=True):
            yield f"{name}.self_attn.{part}_proj.weight", matrix
        if attention.q_norm is not None and attention.k_norm is not None:
            yield f"{name}.self_attn.q_norm.weight", attention.q_norm.weight
            yield f"{name}.self_attn.k_norm.weight", attention.k_norm.weight
        if isinstance(layer.mlp, Experts):
            yield from _experts(f"{name}.mlp", layer.mlp)
        else:
            yield from _dense(f"{name}.mlp", layer.mlp.w13, layer.mlp.w2)


def _experts(name: str, experts: Experts) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.gate.weight", experts.router
    if experts.spec.correction_bias != "none":
        yield f"{name}.gate.{KEPT_IN_FP32}", experts.bias
    for expert in range(len(experts.w13)):
        yield from _dense(f"{name}.experts.{expert}", experts.w13[expert], experts.w2[expert])
    if isinstance(experts.shared, Dense):
        yield from _dense(f"{name}.shared_experts", experts.shared.w13, experts.shared.w2)


def _dense(name: str, w13: torch.Tensor, w2: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield f"{name}.gate_proj.weight", w13[0]
    yield f"{name}.up_proj.weight", w13[1]
    yield f"{name}.down_proj.weight", w2


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
