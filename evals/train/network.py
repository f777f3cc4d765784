"""The model as it is trained: all experts computed for all tokens and masked, so that nothing waits for a count."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from moecheck.evals.tiny.attention import Rotary
from moecheck.evals.tiny.config import TinyConfig
from moecheck.evals.tiny.routing import choice_scores, scores


class Normed(nn.Module):
    """RMS norm over the last dimension, in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention over whole rows. Weights as in moecheck.evals.tiny.weights, but q, k and v apart."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, size = config.num_heads, config.num_key_value_heads, config.head_size
        self.q = _matrix(heads * size, config.hidden_size)
        self.k = _matrix(kv_heads * size, config.hidden_size)
        self.v = _matrix(kv_heads * size, config.hidden_size)
        self.o = _matrix(config.hidden_size, heads * size, scale=0.5)
        self.q_norm = Normed(size, config.norm_eps) if config.qk_norm else None
        self.k_norm = Normed(size, config.norm_eps) if config.qk_norm else None

    def forward(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """x: [rows, length, H]. Returns [rows, length, H]."""
        rows, length, _ = x.shape
        size, groups = self.config.head_size, self.config.num_heads // self.config.num_key_value_heads
        q, k, v = (functional.linear(x, matrix).view(rows, length, -1, size) for matrix in (self.q, self.k, self.v))
        position = torch.arange(length, device=x.device)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (_turned(part, rotary, position) for part in (q, k))
        k, v = (part.to(v.dtype).repeat_interleave(groups, dim=2).transpose(1, 2) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q.to(v.dtype).transpose(1, 2), k, v, is_causal=True)
        return functional.linear(mixed.transpose(1, 2).reshape(rows, length, -1), self.o)


class Dense(nn.Module):
    """One feed-forward network. w13: [2, I, H], gate first. w2: [H, I]."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.w13, self.w2 = _matrix(2, intermediate, hidden), _matrix(hidden, intermediate, scale=0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = functional.linear(x, self.w13.flatten(0, 1)).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.w2)


class Experts(nn.Module):
    """A Mixture-of-Experts block. router: [E, H]. w13: [E, 2, I, H]. w2: [E, H, I]. bias: [E], not trained.

    load: [E], share of the slots of the last batch that each expert took. balance: the auxiliary loss of it.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.spec = config.spec.routing
        E, H, inner = config.num_experts, config.hidden_size, config.expert_intermediate_size
        self.router = _matrix(E, H)
        self.w13, self.w2 = _matrix(E, 2, inner, H), _matrix(E, H, inner, scale=0.5)
        self.shared = Dense(H, config.shared_intermediate_size) if config.shared_intermediate_size else None
        self.bias = nn.Buffer(torch.zeros(E))
        self.load = nn.Buffer(torch.zeros(E), persistent=False)
        self.balance = torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [rows, length, H]. Returns the same."""
        flat = x.flatten(0, 1)
        with torch.autocast(x.device.type, enabled=False):
            weights = self._weights(flat.float())
        E, _, inner, H = self.w13.shape
        gate_up = functional.linear(flat, self.w13.view(-1, H)).view(-1, E, 2, inner)
        gate, up = gate_up.unbind(dim=2)
        hidden = functional.silu(gate) * up * weights.to(gate.dtype)[..., None]
        out: torch.Tensor = functional.linear(hidden.flatten(1), self.w2.permute(1, 0, 2).reshape(H, E * inner))
        if self.shared is not None:
            shared: torch.Tensor = self.shared(flat)
            out = out + shared
        return out.view(x.shape)

    def _weights(self, x: torch.Tensor) -> torch.Tensor:
        """Every expert's weight, 0 where it was not chosen: [T, E]."""
        logits = functional.linear(x, self.router)
        biased = self.spec.correction_bias != "none"
        with torch.no_grad():
            ids = choice_scores(logits, self.bias if biased else None, self.spec).topk(self.spec.top_k, dim=-1).indices
            chosen = torch.zeros_like(logits).scatter_(1, ids, 1.0)
            self.load.copy_(chosen.mean(dim=0) / self.spec.top_k)
        all_scores = scores(logits, self.spec)
        if not biased:  # Switch Transformers (arXiv:2101.03961), equation 4
            self.balance = len(self.load) * (self.load * all_scores.mean(dim=0)).sum()
        weights = all_scores * chosen
        if self.spec.renormalize:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + self.spec.renorm_eps)
        return weights * self.spec.routed_scaling_factor

    @torch.no_grad()
    def move_bias(self, step: float) -> None:
        """Raise the bias of experts that got less than their share (arXiv:2408.15664)."""
        if self.spec.correction_bias != "none":
            self.bias.add_(torch.sign(self.load.mean() - self.load), alpha=step)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: TinyConfig, number: int) -> None:
        super().__init__()
        self.input_norm, self.mlp_norm = (Normed(config.hidden_size, config.norm_eps) for _ in range(2))
        self.attention = Attention(config)
        sparse = number in config.moe_layers
        self.mlp = Experts(config) if sparse else Dense(config.hidden_size, config.intermediate_size)

    def forward(self, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        x = x + self.attention(self.input_norm(x), rotary)
        out: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class TrainedNetwork(nn.Module):
    """The whole model; the embedding is the output matrix, too."""

    def __init__(self, config: TinyConfig, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(0.02 * torch.randn(config.vocab_size, config.hidden_size))
        self.decoders = [Layer(config, number) for number in range(config.num_layers)]
        self.layers = nn.ModuleList(self.decoders)
        self.norm = Normed(config.hidden_size, config.norm_eps)
        self.rotary = Rotary(config, device)
        self.to(device)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [rows, length] to logits [rows, length, vocabulary]."""
        x = functional.embedding(tokens, self.embedding)
        for layer in self.decoders:
            x = layer(x, self.rotary)
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(self.norm(x), self.embedding)

    @property
    def experts(self) -> list[Experts]:
        return [module for module in self.modules() if isinstance(module, Experts)]


def _matrix(*shape: int, scale: float = 1.0) -> nn.Parameter:
    """Normal numbers of standard deviation scale / sqrt(columns)."""
    return nn.Parameter(scale / shape[-1] ** 0.5 * torch.randn(shape))


def _turned(x: torch.Tensor, rotary: Rotary, position: torch.Tensor) -> torch.Tensor:
    """x: [rows, length, heads, head size], rotated in float32."""
    rows, length, heads, size = x.shape
    turned = rotary.turn(x.float().transpose(0, 1).reshape(length, rows * heads, size), position)
    return turned.view(length, rows, heads, size).transpose(0, 1)
