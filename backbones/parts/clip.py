"""CLIP's two towers over the weights of transformers' `CLIPModel`: the one place that knows what is inside
them.

The vision tower is run layer by layer here, since pruners read what stands between its layers; no layer is
asked for its attention map. The text tower runs by its own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from backbones.parts.attention import attend, implementation
from pruners.base import Need


def build_clip(config: CLIPConfig, attn: str) -> Any:
    """A model of these numbers with new weights."""
    return CLIPModel._from_config(config, attn_implementation=attn)


def materialise_clip(clip: CLIPModel, device: str) -> None:
    """Give a model of the meta device the buffers that no checkpoint holds: the numbers of the positions."""
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):
        count = embeddings.position_embedding.num_embeddings
        embeddings.register_buffer("position_ids", torch.arange(count, device=device)[None], persistent=False)


def described(clip: CLIPModel) -> dict[str, Any]:
    """Its configuration as config.json holds it."""
    found = clip.config.to_dict()
    found.pop("_attn_implementation", None)
    return found


def random_end(config: CLIPConfig, draw: torch.Generator) -> Any:
    """A vision tower's last two layers with random weights, for pruners that look at them; the rest has no
    values."""
    short = CLIPConfig.from_dict(config.to_dict())
    short.vision_config.num_hidden_layers, short.text_config.num_hidden_layers = 2, 1
    with torch.device("meta"):
        clip = build_clip(short, "sdpa")
    for part in (clip.vision_model.encoder, clip.vision_model.post_layernorm, clip.visual_projection):
        part.to_empty(device="cpu")
        for weight in part.parameters():
            weight.data.normal_(0, 0.02, generator=draw)
    return clip


# -- the vision tower


def position_table(clip: CLIPModel) -> Tensor:
    """(N+1, C) what is added to the class token and to the patches; the weight itself."""
    return clip.vision_model.embeddings.position_embedding.weight


def looks(clip: CLIPModel) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Query, key and value matrices (C, C) of every layer of the vision tower; the weights themselves."""
    layers = (layer.self_attn for layer in clip.vision_model.encoder.layers)
    return [(layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight) for layer in layers]


def embed_image(clip: CLIPModel, pixels: Tensor, window: Tensor | None = None) -> Tensor:
    """(B, N+1, C): what enters the first layer, class token first.

    Args:
        pixels: (B, 3, h, w) normalised.
        window: (B, N) raster positions of a crop's patches in the full grid; None for whole images.
    """
    given = clip.vision_model.embeddings
    patches = given.patch_embedding(pixels).flatten(2).transpose(1, 2)
    table = given.position_embedding.weight
    first = (given.class_embedding + table[0]).expand(len(pixels), 1, -1)
    place = table[1:][window] if window is not None else table[1:]
    return clip.vision_model.pre_layrnorm(torch.cat([first, patches + place], dim=1))  # type: ignore[no-any-return]


def layer(clip: CLIPModel, index: int, states: Tensor) -> Tensor:
    """(B, N+1, C) -> (B, N+1, C) through one layer of the vision tower."""
    weights, attention = (
        clip.vision_model.encoder.layers[index],
        clip.vision_model.encoder.layers[index].self_attn,
    )
    normed = weights.layer_norm1(states)
    query, key, value = (
        p(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    kind = implementation(clip.vision_model.config)
    states = states + attention.out_proj(
        attend(kind, query, key, value, query.shape[-1] ** -0.5, causal=False)
    )
    return states + weights.mlp(weights.layer_norm2(states))  # type: ignore[no-any-return]


def hidden_states(clip: CLIPModel, pixels: Tensor, window: Tensor | None = None) -> list[Tensor]:
    """Embeddings and every layer's output up to the penultimate, each (B, N+1, C); arguments are those of
    `embed`.

    The last layer's output is read by nothing that GLaMM or a pruner uses, so that layer does not run.
    """
    states = [embed_image(clip, pixels, window)]
    for index in range(len(clip.vision_model.encoder.layers) - 1):
        states.append(layer(clip, index, states[-1]))
    return states


def pooled(clip: CLIPModel, states: Tensor) -> Tensor:
    """(B, P): images in the space shared with text, from the penultimate layer's output (B, N+1, C)."""
    return project_patches(clip, layer(clip, -1, states)[:, 0])


def project_patches(clip: CLIPModel, states: Tensor) -> Tensor:
    """(..., C) -> (..., P): tokens of the vision tower in the space shared with text, not normalised."""
    return clip.visual_projection(clip.vision_model.post_layernorm(states))  # type: ignore[no-any-return]


def clip_signal(clip: CLIPModel, states: tuple[Tensor, ...], need: Need) -> Tensor:
    """One signal of one image; kinds and shapes are those of `Need`.

    Args:
        states: outputs of `hidden_states` for the image, each (N+1, C).
    """
    if need.kind == "projected_patches":
        return project_patches(clip, states[-1][1:])
    if need.layer is None:
        raise ValueError(f"there is no signal {need}")
    index = need.index(len(clip.vision_model.encoder.layers))
    if need.kind == "hidden":
        return states[index + 1] if index + 1 < len(states) else layer(clip, -1, states[-1][None])[0]
    weights = clip.vision_model.encoder.layers[index]
    attention = weights.self_attn
    normed = weights.layer_norm1(states[index])  # what enters the layer
    match need.kind:
        case "cls_query":
            return attention.q_proj(normed[0])
        case "keys":
            return attention.k_proj(normed)
        case "values":
            return attention.v_proj(normed)
        case "cls_attention":
            return class_row(attention.q_proj(normed[0]), attention.k_proj(normed), attention.num_heads)
        case "attention":
            return whole_map(attention.q_proj(normed), attention.k_proj(normed), attention.num_heads)
        case "received_attention":
            return received(attention.q_proj(normed), attention.k_proj(normed), attention.num_heads)
    raise ValueError(f"there is no signal {need}")


def whole_map(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(H, N+1, N+1) softmax of all queries (N+1, C) over keys (N+1, C), head by head, in at least float32."""
    query, keys = (states.unflatten(-1, (heads, -1)).transpose(0, 1) for states in (query, keys))
    logits = query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def received(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(H, N+1) mean of the rows of `whole_map`, one head at a time: a map then stays in the cache."""
    parts = (states.unflatten(-1, (heads, -1)).unbind(1) for states in (query, keys))
    return torch.stack([whole_map(q, k, 1)[0].mean(0) for q, k in zip(*parts, strict=True)])


def class_row(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """(H, N+1) softmax of one query (C,) over keys (N+1, C), head by head, in at least float32."""
    query, keys = query.unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    logits = torch.einsum("hd,nhd->hn", query, keys) * query.shape[-1] ** -0.5
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


# -- the text tower


def text_side(clip: CLIPModel) -> tuple[nn.Module, nn.Module]:
    """The text tower and its projection."""
    return clip.text_model, clip.text_projection


def text_positions(clip: CLIPModel) -> int:
    """Tokens that the text tower reads; longer texts are cut, as officially."""
    return int(clip.config.text_config.max_position_embeddings)


def embed_text(clip: CLIPModel, words: dict[str, Tensor]) -> Tensor:
    """(M, P) text projection of CLIP's tokens `input_ids` and `attention_mask`, each (M, W); not
    normalised."""
    return clip.text_projection(clip.text_model(**words).pooler_output)  # type: ignore[no-any-return]


def end_attention(clip: CLIPModel, words: dict[str, Tensor], end: Tensor) -> Tensor:
    """(M, layers): share of the [EOS] token's attention that goes to the start token, mean over heads.

    Args:
        words: as for `embed_text`.
        end: (M,) position of [EOS].
    """
    text = clip.text_model
    states = text(**words, output_hidden_states=True).hidden_states
    rows = torch.arange(len(end), device=end.device)
    behind = torch.arange(words["input_ids"].shape[1], device=end.device) > end[:, None]
    shares = []
    for weights, state in zip(text.encoder.layers, states[:-1], strict=True):
        attention, normed = weights.self_attn, weights.layer_norm1(state)
        query = attention.q_proj(normed[rows, end]).unflatten(-1, (attention.num_heads, -1))
        keys = attention.k_proj(normed).unflatten(-1, (attention.num_heads, -1))
        logits = torch.einsum("mhd,mnhd->mhn", query, keys).float() * query.shape[-1] ** -0.5
        shares.append(logits.masked_fill(behind[:, None], -torch.inf).softmax(-1)[..., 0].mean(1))
    return torch.stack(shares, dim=1)
