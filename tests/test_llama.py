"""The language model's layers against transformers' own forward: attention, caches, shared keys, precisions,
gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from backbones.parts import llama
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past

# the same operations on the same shapes; in other portions sums round differently, and norms are float32 in
# any precision
SAME, PORTIONS = {torch.float32: 1e-6, torch.float64: 1e-12}, {torch.float32: 2e-5, torch.float64: 2e-6}


def model(attn: str, dtype: torch.dtype, key_heads: int = 4, **more: Any) -> LlamaModel:
    """Four layers, norms that are not all ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=40, num_key_value_heads=key_heads, **sizes, **more)
    llm = llama.build_llama(config, attn)
    with torch.no_grad():
        for name, weight in llm.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.15)
    return llm.to(dtype).eval()


def close(ours: Tensor, theirs: Tensor, limits: dict[torch.dtype, float] = SAME) -> None:
    torch.testing.assert_close(ours, theirs, rtol=limits[ours.dtype], atol=limits[ours.dtype])


@pytest.mark.parametrize("dtype", list(SAME))
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_layers_are_transformers(attn: str, key_heads: int, dtype: torch.dtype) -> None:
    """In one piece, and in pieces that each stand on what came before: of several tokens and of one."""
    llm = model(attn, dtype, key_heads)
    ids = torch.randint(0, 40, (2, 23))
    theirs = llm(input_ids=ids).last_hidden_state
    embeds = llama.embed_ids(llm, ids)
    close(run_layers(llm, embeds).hidden, theirs)
    past, pieces = None, []
    for start, end in ((0, 11), (11, 12), (12, 23)):
        past = Past(past)
        pieces.append(run_layers(llm, embeds[:, start:end], past=past, first_position=start).hidden)
    close(torch.cat(pieces, dim=1), theirs, PORTIONS)
    cached = llm(input_ids=ids[:, :11], use_cache=True)
    again = llm(
        input_ids=ids[:, 11:], past_key_values=cached.past_key_values, use_cache=True
    ).last_hidden_state
    close(torch.cat(pieces[1:], dim=1), again, PORTIONS)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_rows_stand_on_rows_of_their_past(attn: str) -> None:
    """Three continuations of two beginnings, as if each were written out."""
    llm = model(attn, torch.float64)
    first, second = torch.randint(0, 40, (2, 9)), torch.randint(0, 40, (3, 5))
    owner = torch.tensor([1, 0, 1])
    theirs = llm(input_ids=torch.cat([first[owner], second], dim=1)).last_hidden_state[:, 9:]
    past = Past()
    run_layers(llm, llama.embed_ids(llm, first), past=past)
    here = Past(past, owner, keep={2})
    close(run_layers(llm, llama.embed_ids(llm, second), past=here, first_position=9).hidden, theirs, PORTIONS)
    assert list(here.layers) == [2] and here.layers[2][0].shape == (3, 4, 14, 16)


@torch.inference_mode()
def test_attention_rows_are_those_of_the_whole_map() -> None:
    """Of the tokens that are asked, behind fill too; `at` gives their states without computing the
    others'."""
    llm = model("eager", torch.float64, key_heads=2)
    ids = torch.randint(0, 40, (2, 12))
    found = llm(input_ids=ids, output_attentions=True, output_hidden_states=True)
    by = llama.rotary(llm, torch.arange(12)[None].expand(2, -1), torch.float64)
    layer, past, last = llama.layers(llm)[2], Past(), torch.tensor([11, 7])
    states = found.hidden_states[2]
    layer(states, by, past)
    here = llama.tokens_at(states, last[:, None])
    turns = llama.rotary(llm, last[:, None], torch.float64)
    logits = layer.logits(here, past.layers[2][0], llama.unseen(last[:, None], 12), turns)
    rows = llama.probabilities(logits)[:, :, 0]
    torch.testing.assert_close(rows, found.attentions[2][torch.arange(2), :, last], rtol=1e-6, atol=1e-7)
    read = torch.tensor([[11, 3], [7, 0]])
    some = layer.at(states, by, Past(), read)
    torch.testing.assert_close(some, llama.tokens_at(found.hidden_states[3], read), rtol=1e-6, atol=1e-6)
    assert layer.at(states, by, Past(), read[:, :0]).shape == (2, 0, 64)


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.inference_mode()
def test_a_token_is_the_same_in_any_company(attn: str) -> None:
    """Bit for bit, in batches of one and of many rows: what runs through matrices is filled up."""
    llm = model(attn, torch.float32)
    for length in (2, 3, 5, 8):
        states, places = torch.randn(9, length, 64), torch.arange(length).expand(9, -1)
        read = torch.full((9, 1), length - 1)
        found = []
        for batch in (1, 2, 5, 9):
            by, layer = llama.rotary(llm, places[:batch], torch.float32), llama.Layer(llm, 1, 8)
            whole = layer(states[:batch], by)
            last = layer.at(states[:batch], by, Past(), read[:batch])
            logits = layer.logits(
                states[:batch], layer.keys(states[:batch], by), torch.tensor(False).expand(batch, 1, 1), by
            )
            assert whole.shape == (batch, length, 64) and last.shape == (batch, 1, 64)
            close(whole[:, -1:], last, PORTIONS)
            found.append((whole[0], last[0], logits[0]))
        assert all(one.equal(other) for parts in found for one, other in zip(parts, found[0], strict=True))


@torch.inference_mode()
def test_rows_stand_on_pasts_of_several_batches() -> None:
    llm = model("sdpa", torch.float64)
    ids = torch.randint(0, 40, (3, 9))
    pasts = [Past(), Past()]
    for past, part in zip(pasts, (ids[:2], ids[2:]), strict=True):
        run_layers(llm, llama.embed_ids(llm, part), past=past)
    more = torch.randint(0, 40, (3, 5))
    here = Past(pasts[0], torch.tensor([1, 0]), others=[(pasts[1], torch.tensor([0]))])
    found = run_layers(llm, llama.embed_ids(llm, more), past=here, first_position=9).hidden
    whole = torch.cat([ids[[1, 0, 2]], more], dim=1)
    close(found, llm(input_ids=whole).last_hidden_state[:, 9:], PORTIONS)
    assert here.length() == 9 and here.layers[0][0].shape == (3, 4, 14, 16)


def test_gradients_are_transformers() -> None:
    """What training moves the weights by."""
    llm = model("sdpa", torch.float64)
    ids = torch.randint(0, 40, (2, 9))
    aim = torch.randn(2, 9, 64, dtype=torch.float64)
    wanted = torch.autograd.grad((llm(input_ids=ids).last_hidden_state * aim).sum(), list(llm.parameters()))
    found = torch.autograd.grad(
        (run_layers(llm, llama.embed_ids(llm, ids)).hidden * aim).sum(), list(llm.parameters())
    )
    for (name, _), one, other in zip(llm.named_parameters(), found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9, msg=name)


@torch.inference_mode()
def test_rotary_base_and_norm_constant_are_the_configurations() -> None:
    llm = model(
        "sdpa", torch.float64, rms_norm_eps=0.3, rope_parameters={"rope_type": "default", "rope_theta": 77.0}
    )
    ids = torch.randint(0, 40, (1, 15))
    close(run_layers(llm, llama.embed_ids(llm, ids)).hidden, llm(input_ids=ids).last_hidden_state)


def test_a_model_of_the_meta_device_gets_its_frequencies() -> None:
    with torch.device("meta"):
        built = llama.build_llama(model("sdpa", torch.float32).config, "sdpa")
    llama.materialise_llama(built, "cpu")
    places = torch.arange(5)[None]
    found, wanted = (
        llama.rotary(llm, places, torch.float32) for llm in (built, model("sdpa", torch.float32))
    )
    assert found[0].equal(wanted[0]) and found[1].equal(wanted[1])
