"""Phi-3 as Llama's layers: fused matrices taken apart, and a sliding window, against transformers' own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel, Phi3Config, Phi3ForCausalLM

from backbones.parts import llama
from backbones.parts.attention import attend
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past, through

WINDOW = 6
CLOSE = partial(torch.testing.assert_close, rtol=2e-5, atol=2e-5)
SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def both(attn: str, window: int | None = WINDOW) -> tuple[Phi3ForCausalLM, LlamaModel]:
    """Transformers' Phi-3, and its weights in Llama's layers."""
    torch.manual_seed(0)
    config = Phi3Config(**SIZES, sliding_window=window, pad_token_id=0, attn_implementation=attn)
    theirs = Phi3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.uniform_(0.5, 1.5) if "norm" in name else weight.normal_(0, 0.15)
    numbers = LlamaConfig(**SIZES, rms_norm_eps=config.rms_norm_eps)
    numbers.sliding_window = window  # type: ignore[attr-defined]
    ours = llama.build_llama(numbers, attn).eval()
    given = dict(
        pair
        for name, weight in theirs.model.state_dict().items()
        for pair in llama.parted(name, weight, numbers)
    )
    missing, unexpected = ours.load_state_dict(given, strict=False)
    assert not missing and not unexpected
    return theirs, ours


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 40, (2, 23), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_layers_are_transformers(attn: str, ids: Tensor) -> None:
    """In one piece, and in pieces on what came before: shorter and longer than the window, and one token."""
    theirs, ours = both(attn)
    embeds, wanted = llama.embed_ids(ours, ids), theirs.model(input_ids=ids).last_hidden_state
    CLOSE(run_layers(ours, embeds).hidden, wanted)
    _, free = both(attn, None)
    assert (run_layers(free, embeds).hidden - wanted).abs().max() > 0.1, "the window shows"
    past, pieces = None, []
    for start, end in ((0, 3), (3, 14), (14, 15), (15, 16), (16, 23)):
        past = Past(past)
        pieces.append(run_layers(ours, embeds[:, start:end], past=past, first_position=start).hidden)
    CLOSE(torch.cat(pieces, dim=1), wanted)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_single_states_are_those_of_the_whole_pass(attn: str, ids: Tensor) -> None:
    """A last layer that is computed where it is read, behind a past too."""
    theirs, ours = both(attn)
    embeds, wanted = llama.embed_ids(ours, ids), theirs.model(input_ids=ids).last_hidden_state
    start, read = Past(), torch.tensor([[0, 5, 8], [2, 3, 12]])
    through(ours, embeds[:, :10], torch.arange(10).expand(2, -1), start, range(4))
    behind = torch.arange(10, 23).expand(2, -1)
    hidden, _ = through(ours, embeds[:, 10:], behind, Past(start), range(4), read=read)
    CLOSE(llama.norm(ours, hidden), llama.tokens_at(wanted, read + 10))


@torch.inference_mode()
def test_attention_rows_are_those_of_the_whole_map(ids: Tensor) -> None:
    theirs, ours = both("eager")
    maps = theirs.model(input_ids=ids, output_attentions=True).attentions
    saved: dict[int, Tensor] = {2: ids}
    past, places = Past(), torch.arange(23).expand(2, -1)
    through(ours, llama.embed_ids(ours, ids), places, past, range(4), saved)
    read = torch.tensor([[3, 12, 22]]).expand(2, -1)
    layer, by = llama.Layer(ours, 2), llama.rotary(ours, read, torch.float32)
    blocked = llama.unseen(read, 23, layer.window)
    states = llama.tokens_at(saved[2], read)
    rows = llama.probabilities(layer.logits(states, past.layers[2][0], blocked, by))
    CLOSE(rows, maps[2][:, :, [3, 12, 22]])
    assert (rows > 0).sum(-1).unique().tolist() == [4, WINDOW]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_window_that_nothing_leaves_changes_no_bit(attn: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    plain = attend(attn, query, key, value, 0.25, causal=True)
    assert attend(attn, query, key, value, 0.25, causal=True, window=9).equal(plain)
    assert attend(attn, query[:, :, :4], key, value, 0.25, True, 9).equal(
        attend(attn, query[:, :, :4], key, value, 0.25, True)
    )
    assert not attend(attn, query, key, value, 0.25, causal=True, window=8).equal(plain)


def test_a_matrix_of_other_sizes_stays_whole() -> None:
    numbers = LlamaConfig(**SIZES)
    ((name, weight),) = llama.parted("model.layers.0.self_attn.qkv_proj.weight", torch.zeros(9, 64), numbers)
    assert name == "model.layers.0.self_attn.q_proj.weight" and weight.shape == (9, 64)
