"""The weights of an embedded model: read from and written to model.safetensors under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from moecheck.errors import UsageError

from .config import TinyConfig

WEIGHTS = "model.safetensors"
# What layers add up is kept at this share of the checkpoint's: trained models reach 3e5 there, beyond what fp16 stores.
# A power of two, and norms take it away again, so that not one bit of the logits changes.
STREAM = 2.0**-5
_INTO_STREAM = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """qkv: [(heads + 2 key-value heads) * D, H], queries first. o: [H, heads * D]. Norms: [D]. D: head size."""

    qkv: torch.Tensor
    o: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseWeights:
    """w13: [2I, H], gate rows first. w2: [H, I]."""

    w13: torch.Tensor
    w2: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class MoEWeights:
    """router: [E, H]. correction_bias: [E]. w13: [E, 2I, H]. w2: [E, H, I]. shared: None without shared experts."""

    router: torch.Tensor
    correction_bias: torch.Tensor | None
    w13: torch.Tensor
    w2: torch.Tensor
    shared: DenseWeights | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer. input_norm, mlp_norm: [H]."""

    input_norm: torch.Tensor
    attention: AttentionWeights
    mlp_norm: torch.Tensor
    mlp: DenseWeights | MoEWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyWeights:
    """All of a model, float32 on one device, what goes into the sum of layers scaled by STREAM.

    embedding: [V, H], the output matrix as well. norm: [H].
    """

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.embedding.device


def read_weights(folder: Path, config: TinyConfig, device: str) -> TinyWeights:
    """The weights of a folder as float32; raises UsageError for missing, superfluous or misshapen tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS, device=device)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"Cannot read {folder / WEIGHTS}: {error}.") from error
    shapes = dict(tensor_shapes(config))
    for name, shape in shapes.items():
        if name not in tensors:
            raise UsageError(f"{folder / WEIGHTS} has no tensor {name}.")
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{name} of {folder / WEIGHTS} is {list(tensors[name].shape)}, not {list(shape)}.")
    for name in tensors.keys() - shapes.keys():
        raise UsageError(f"{folder / WEIGHTS} has a tensor {name} that its config.json does not.")
    return assembled({name: tensor.float() for name, tensor in tensors.items()}, config)


def tensor_shapes(config: TinyConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint."""
    H, head = config.hidden_size, config.head_size
    yield "model.embed_tokens.weight", (config.vocab_size, H)
    yield "model.norm.weight", (H,)
    for number in range(config.num_layers):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (H,)
        yield f"{layer}.post_attention_layernorm.weight", (H,)
        yield f"{layer}.self_attn.q_proj.weight", (config.num_heads * head, H)
        yield f"{layer}.self_attn.k_proj.weight", (config.num_key_value_heads * head, H)
        yield f"{layer}.self_attn.v_proj.weight", (config.num_key_value_heads * head, H)
        yield f"{layer}.self_attn.o_proj.weight", (H, config.num_heads * head)
        if config.qk_norm:
            yield f"{layer}.self_attn.q_norm.weight", (head,)
            yield f"{layer}.self_attn.k_norm.weight", (head,)
        if number not in config.moe_layers:
            yield from _mlp_shapes(f"{layer}.mlp", H, config.intermediate_size)
            continue
        yield f"{layer}.mlp.gate.weight", (config.num_experts, H)
        if config.spec.routing.correction_bias != "none":
            yield f"{layer}.mlp.gate.e_score_correction_bias", (config.num_experts,)
        for expert in range(config.num_experts):
            yield from _mlp_shapes(f"{layer}.mlp.experts.{expert}", H, config.expert_intermediate_size)
        if config.shared_intermediate_size:
            yield from _mlp_shapes(f"{layer}.mlp.shared_experts", H, config.shared_intermediate_size)


def assembled(tensors: Mapping[str, torch.Tensor], config: TinyConfig) -> TinyWeights:
    """Tensors by Hugging Face's names, with those that are used together put together, and what layers add up scaled
    by STREAM.
    """
    tensors = {name: STREAM * tensor if name.endswith(_INTO_STREAM) else tensor for name, tensor in tensors.items()}
    layers = []
    for number in range(config.num_layers):
        layer = f"model.layers.{number}"
        attention = f"{layer}.self_attn"
        layers.append(
            LayerWeights(
                input_norm=tensors[f"{layer}.input_layernorm.weight"],
                attention=AttentionWeights(
                    qkv=torch.cat([tensors[f"{attention}.{name}_proj.weight"] for name in "qkv"]),
                    o=tensors[f"{attention}.o_proj.weight"],
                    q_norm=tensors.get(f"{attention}.q_norm.weight"),
                    k_norm=tensors.get(f"{attention}.k_norm.weight"),
                ),
                mlp_norm=tensors[f"{layer}.post_attention_layernorm.weight"],
                mlp=_moe(tensors, f"{layer}.mlp", config)
                if number in config.moe_layers
                else _dense(tensors, f"{layer}.mlp"),
            )
        )
    # The embedding is the output matrix, too: the last norm makes up for it.
    embedding, norm = tensors["model.embed_tokens.weight"], tensors["model.norm.weight"] / STREAM
    return TinyWeights(embedding=embedding, layers=tuple(layers), norm=norm)


def random_tensors(config: TinyConfig, seed: int, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A checkpoint of random numbers: normal, matrices of standard deviation scale / sqrt(columns), norms about 1.

    Correction biases have a standard deviation of 0.1, about what training gives them. bfloat16, biases float32.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config):
        values = torch.randn(shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            tensors[name] = 0.1 * values
        elif len(shape) == 1:
            tensors[name] = (1.0 + 0.1 * values).bfloat16()
        else:
            tensors[name] = (values * scale / shape[1] ** 0.5).bfloat16()
    return tensors


def _mlp_shapes(name: str, hidden: int, intermediate: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.gate_proj.weight", (intermediate, hidden)
    yield f"{name}.up_proj.weight", (intermediate, hidden)
    yield f"{name}.down_proj.weight", (hidden, intermediate)


def _dense(tensors: Mapping[str, torch.Tensor], name: str) -> DenseWeights:
    w13 = torch.cat([tensors[f"{name}.{part}_proj.weight"] for part in ("gate", "up")])
    return DenseWeights(w13=w13, w2=tensors[f"{name}.down_proj.weight"])


def _moe(tensors: Mapping[str, torch.Tensor], name: str, config: TinyConfig) -> MoEWeights:
    experts = [_dense(tensors, f"{name}.experts.{expert}") for expert in range(config.num_experts)]
    return MoEWeights(
        router=tensors[f"{name}.gate.weight"],
        correction_bias=tensors.get(f"{name}.gate.e_score_correction_bias"),
        w13=torch.stack([expert.w13 for expert in experts]),
        w2=torch.stack([expert.w2 for expert in experts]),
        shared=_dense(tensors, f"{name}.shared_experts") if config.shared_intermediate_size else None,
    )
