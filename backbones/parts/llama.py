"""Llama's decoder layers over the weights of transformers' `LlamaModel`: the one place that knows what is
inside it.

A layer is two norms, four projections, rotary positions, attention and a gated feed-forward part (SwiGLU):

    h = x + o(attend(q(norm x), k(norm x), v(norm x)))        y = h + down(silu(gate(norm h)) * up(norm h))

The weights are transformers', with its names and configuration; which layers run on which tokens is the
caller's, and keys and values of earlier tokens are kept in a `Past` of our own. Where the configuration has a
`sliding_window`, a token looks at so many tokens, itself the last of them: they are counted in the sequence
that a layer runs on, whatever their position ids.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from backbones.parts.attention import attend, for_queries, implementation

Rotary = tuple[Tensor, Tensor]  # cosine and sine, each (B, L, head width)
# where several devices share a layer, each has some outputs of these matrices, and the inputs of those that
# belong to them
BY_OUTPUT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_INPUT = ("self_attn.o_proj", "mlp.down_proj")
# Phi-3 is Llama with some matrices one above the other
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def parted(name: str, weight: Tensor, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """A stored matrix under its name, or those that Phi-3 stores as one under theirs; one whose rows are not
    as the configuration says stays whole, under the first of these names."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = config.num_key_value_heads * head
    rows = {
        "self_attn.qkv_proj": (config.num_attention_heads * head, keys, keys),
        "mlp.gate_up_proj": (config.intermediate_size,) * 2,
    }
    for fused, names in FUSED.items():
        if f".{fused}." in name:
            given = rows[fused] if weight.ndim == 2 and len(weight) == sum(rows[fused]) else (len(weight),)
            for own, part in zip(names, weight.split(given), strict=False):
                yield name.replace(fused, own), part
            return
    yield name, weight


def build_llama(config: LlamaConfig, attn: str) -> Any:
    """A model of these numbers with new weights."""
    return LlamaModel._from_config(config, attn_implementation=attn)


def materialise_llama(llm: LlamaModel, device: str) -> None:
    """Give a model of the meta device the buffers that no checkpoint holds: the rotary frequencies."""
    llm.rotary_emb = type(llm.rotary_emb)(llm.config).to(device)


def matrices(llm: LlamaModel) -> Iterator[tuple[str, nn.Linear]]:
    """All matrices of the decoder layers, by their names inside a layer."""
    for weights in llm.layers:
        for name, module in weights.named_modules():
            if isinstance(module, nn.Linear):
                yield name, module


def share(llm: LlamaModel, cut: Callable[[nn.Module], Any], gather: Callable[[Tensor], Tensor]) -> None:
    """Spread every layer over several processes.

    Args:
        cut: leaves this process its part of a layer's matrices: some outputs of BY_OUTPUT, and the inputs of
            BY_INPUT that belong to them.
        gather: (B, H / size, ...) of this process's heads -> (B, H, ...) of all.
    """
    for weights in llm.layers:
        cut(weights)
    llm.gather_heads = gather  # type: ignore[assignment]


def is_shared(llm: LlamaModel) -> bool:
    """Whether other processes compute parts of these layers at the same time."""
    return hasattr(llm, "gather_heads")


class Past:
    """Keys and values of tokens, layer by layer, for tokens that come later.

    Args:
        before: what stands before these tokens.
        owner: (B,) for every row of the batch, the row of `before` that it stands on; None if row k stands on
            row k.
        keep: layers whose keys and values are needed afterwards; None for all.
        others: further rows of the batch, behind these: what they stand on, and on which rows of it.

    Attributes:
        layers: (B, H', K, d) rotated keys, and values, of all tokens up to these, by layer.
    """

    def __init__(
        self,
        before: Past | None = None,
        owner: Tensor | None = None,
        keep: Container[int] | None = None,
        others: Sequence[tuple[Past, Tensor]] = (),
    ) -> None:
        self.before, self.owner, self.keep, self.others = before, owner, keep, others
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extended(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens up to these, given these tokens' own; they are kept where `keep` asks
        for it."""
        if (earlier := self.earlier(layer)) is not None:
            key, value = torch.cat([earlier[0], key], dim=2), torch.cat([earlier[1], value], dim=2)
        if self.keep is None or layer in self.keep:
            self.layers[layer] = key, value
        return key, value

    def earlier(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of what stands before these tokens, row by row; None where nothing does."""
        if self.before is None:
            return None
        key, value = self.before.layers[layer]
        if self.owner is not None:
            key, value = key[self.owner], value[self.owner]
        if not self.others:
            return key, value
        more = [[part[owner] for part in past.layers[layer]] for past, owner in self.others]
        return torch.cat([key, *(one[0] for one in more)]), torch.cat([value, *(one[1] for one in more)])

    def length(self, layer: int = 0) -> int:
        """Tokens before these."""
        return self.before.layers[layer][0].shape[2] if self.before is not None else 0


def rotary(llm: LlamaModel, positions: Tensor, dtype: torch.dtype) -> Rotary:
    """Cosine and sine of `positions` (B, L), computed in float32."""
    angles = positions[..., None].float() * llm.rotary_emb.inv_freq.to(positions.device, torch.float32)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(states: Tensor, by: Rotary) -> Tensor:
    """Queries or keys (B, H, L, d) turned to their positions."""
    cos, sin = (part.unsqueeze(1) for part in by)
    half = states.shape[-1] // 2
    return states * cos + torch.cat([-states[..., half:], states[..., :half]], dim=-1) * sin


def turned_back(states: Tensor, by: Rotary) -> Tensor:
    """Queries or keys as they were before `turned`, up to rounding."""
    return turned(states, (by[0], -by[1]))


def probabilities(logits: Tensor) -> Tensor:
    """Attention rows over the last dimension, in at least float32 and back, as attention computes them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).to(logits.dtype)


def tokens_at(hidden: Tensor, read: Tensor) -> Tensor:
    """(B, R, width): the tokens `read` (B, R) of (B, L, width)."""
    return hidden.gather(1, read[..., None].expand(-1, -1, hidden.shape[-1]))


def unseen(places: Tensor, keys: int, window: int | None = None) -> Tensor:
    """(B, R, keys): at which of so many tokens those at `places` (B, R) do not look: the ones behind them,
    and the ones that a window of so many tokens has left."""
    every = torch.arange(keys, device=places.device)
    ahead = every > places[..., None]
    return ahead if window is None else ahead | (every <= places[..., None] - window)


def embed_ids(llm: LlamaModel, ids: Tensor) -> Tensor:
    """(..., width): what tokens enter the first layer as."""
    return llm.embed_tokens(ids)  # type: ignore[no-any-return]


def norm(llm: LlamaModel, hidden: Tensor) -> Tensor:
    """The norm behind the last layer."""
    return _rms(hidden, llm.norm.weight, llm.config.rms_norm_eps)


def _rms(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """w x / sqrt(mean(x^2) + eps), in float32 up to the weight as released."""
    x = hidden.to(torch.float32)
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return weight * x.to(hidden.dtype)


class Layer:
    """Decoder layer number `index` of a model.

    Args:
        multiple: matrices get a multiple of so many tokens, filled up behind the last one: products of few or
            odd numbers of rows round otherwise on a CPU, and a token must not depend on its company.
    """

    def __init__(self, llm: LlamaModel, index: int, multiple: int = 1) -> None:
        config = llm.config
        self.index, self._weights, self._eps = index, llm.layers[index], config.rms_norm_eps
        self._multiple = multiple
        self._kind = implementation(config)
        self.head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._scale = self.head**-0.5
        self._gather = getattr(llm, "gather_heads", None)
        self.window: int | None = getattr(config, "sliding_window", None)

    def __call__(self, hidden: Tensor, by: Rotary, past: Past | None = None) -> Tensor:
        """(B, L, width) -> (B, L, width).

        Args:
            by: rotary positions of these tokens.
            past: has what stands before them, and takes their keys and values.
        """
        query, key, value = self.project(hidden, by)
        if past is not None:
            key, value = past.extended(self.index, key, value)
        if self._kind == "eager":
            query, key, value = map(self._laid_out, (query, key, value))
        mixed = attend(self._kind, query, key, value, self._scale, causal=True, window=self.window)
        del query, key, value
        return self.finish(hidden, mixed)

    def project(self, hidden: Tensor, by: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries (B, H, L, d) and keys (B, H', L, d), and values."""
        attention = self._weights.self_attn
        query, key, value = self._projected(hidden, attention.q_proj, attention.k_proj, attention.v_proj)
        return turned(query, by), turned(key, by), value

    def finish(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output from its input and what attention gathered, (B, L, H * d)."""
        hidden = hidden + self._in_rows(self._weights.self_attn.o_proj(self._filled(mixed)), mixed)
        feed = self._weights.mlp
        normed = self._filled(_rms(hidden, self._weights.post_attention_layernorm.weight, self._eps))
        fed = feed.down_proj(F.silu(feed.gate_proj(normed)) * feed.up_proj(normed))
        return hidden + self._in_rows(fed, hidden)

    def at(self, hidden: Tensor, by: Rotary, past: Past, read: Tensor) -> Tensor:
        """(B, R, width): the output at the tokens `read` (B, R); of the others only keys and values are
        computed.

        Args:
            hidden: (B, L, width) input of the layer.
            by: rotary positions of these tokens.
            read: positions in `hidden`; R may be 0, where later rows need the keys and values alone.
        """
        attention = self._weights.self_attn
        key, value = self._projected(hidden, attention.k_proj, attention.v_proj)
        key, value = past.extended(self.index, turned(key, by), value)
        states = tokens_at(hidden, read)
        if not read.shape[1]:
            return states
        here = tuple(tokens_at(part.expand(len(read), -1, -1), read) for part in by)
        behind = unseen(read + key.shape[2] - hidden.shape[1], key.shape[2], self.window)
        scores = probabilities(self._logits(states, key, behind, here))
        mixed = scores @ self._laid_out(for_queries(value, scores.shape[1]))
        return self.finish(states, mixed.transpose(1, 2).flatten(2))

    def logits(self, states: Tensor, keys: Tensor, behind: Tensor, by: Rotary | None) -> Tensor:
        """(B, H, R, K): attention rows before their softmax, q k / sqrt(d), of some tokens over all keys.

        Args:
            states: (B, R, width) what these tokens enter the layer as.
            keys: (B, H', K, d) of all tokens, turned to their positions if the queries are.
            behind: (B, R, K) keys that a token does not look at, whose logits are -inf.
            by: rotary positions of these tokens; None leaves the queries as they are.
        """
        return self.whole(self._logits(states, keys, behind, by))

    def keys(self, states: Tensor, by: Rotary | None) -> Tensor:
        """(B, H', L, d): keys of what enters the layer as (B, L, width), of this process's heads."""
        (keys,) = self._projected(states, self._weights.self_attn.k_proj)
        return keys if by is None else turned(keys, by)

    def whole(self, parts: Tensor) -> Tensor:
        """(B, H / size, ...) of this process's heads -> (B, H, ...) of all, where processes share the
        layer."""
        return self._gather(parts) if self._gather else parts  # type: ignore[no-any-return]

    def _logits(self, states: Tensor, keys: Tensor, behind: Tensor, by: Rotary | None) -> Tensor:
        """As `logits`, of this process's heads.

        In plain products: torch's fused CPU attention rounds a lone query differently from place to place in
            the batch.
        """
        (query,) = self._projected(states, self._weights.self_attn.q_proj)
        if by is not None:
            query = turned(query, by)
        query, keys = self._laid_out(query), self._laid_out(for_queries(keys, query.shape[1]))
        return (query @ keys.transpose(-1, -2) * self._scale).masked_fill(behind[:, None], -torch.inf)

    def _projected(self, hidden: Tensor, *matrices: nn.Module) -> list[Tensor]:
        """What some matrices make of what enters the layer, each (B, H, L, d)."""
        normed = self._filled(_rms(hidden, self._weights.input_layernorm.weight, self._eps))
        return [self._heads(self._in_rows(matrix(normed), hidden)) for matrix in matrices]

    def _filled(self, hidden: Tensor) -> Tensor:
        """(B, L, width) -> (B L and fill, width), or as it is where that makes the multiple."""
        fill = -hidden.shape[0] * hidden.shape[1] % self._multiple
        return F.pad(hidden.flatten(0, 1), (0, 0, 0, fill)) if fill else hidden

    def _laid_out(self, states: Tensor) -> Tensor:
        """As it lies in memory in any batch: a product takes a lone row as the view that it is, and rounds
        otherwise."""
        return states.contiguous() if self._multiple > 1 else states

    @staticmethod
    def _in_rows(found: Tensor, of: Tensor) -> Tensor:
        """What was made of `_filled(of)` without the fill: (B, L, width)."""
        batch, length = of.shape[:2]
        return found if found.ndim == of.ndim else found[: batch * length].unflatten(0, (batch, length))

    def _heads(self, projected: Tensor) -> Tensor:
        """(B, L, H * d) -> (B, H, L, d)."""
        return projected.unflatten(-1, (-1, self.head)).transpose(1, 2)


def layers(llm: LlamaModel) -> list[Layer]:
    """All decoder layers, first to last."""
    return [Layer(llm, index) for index in range(len(llm.layers))]


def through(
    llm: LlamaModel,
    hidden: Tensor,
    positions: Tensor,
    past: Past,
    layers: range,
    saved: dict[int, Tensor] | None = None,
    read: Tensor | None = None,
    multiple: int = 1,
) -> tuple[Tensor, list[int]]:
    """Run `layers`; also gives the tokens that each of them got.

    Args:
        saved: what it has a key for, it gets: the input of that layer; of layer `layers.stop` the output, if
            all are wanted.
        read: (B, R) tokens whose states are wanted in the end; None for all. With R = 0 later rows get their
            keys and values.
        multiple: as in `Layer`.
    """
    by, lengths = rotary(llm, positions, hidden.dtype), []
    saved = saved if saved is not None else {}
    for index in layers:
        if index in saved:
            saved[index] = hidden
        lengths.append(hidden.shape[1])
        layer = Layer(llm, index, multiple)
        if read is not None and index == layers.stop - 1:
            return layer.at(hidden, by, past, read), lengths
        hidden = layer(hidden, by, past)
    if layers.stop in saved:
        saved[layers.stop] = hidden
    return hidden, lengths
