"""Every array of the golden pruner set against this project's pruners, in float64.

`pytest tests/golden/test_pruners.py --golden-pruners DIR` runs the same checks on another set in the same
layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, LlamaConfig, LlamaModel

import pruners
from backbones.parts import clip
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past
from pruners import checks, prumerge
from pruners.base import TEXT_EMBEDS, Cut, LayerView, Need, Pruner, Selection, VisualTokens, outliers, top
from pruners.fastv import FastV
from pruners.litelvlm import LiteLVLM
from pruners.trim import Trim
from pruners.visionzip import VisionZip
from pruners.vispruner import VisPruner

Arrays = dict[str, NDArray[np.generic]]
FEATURES = 5e-4  # the set's own tolerance; measured differences are below 2e-5


def arrays(path: Path) -> Arrays:
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def double(x: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.asarray(x)).double()


def grid_of(path: Path) -> tuple[int, int]:
    """tower_24x24_a_inputs.npz is (24, 24)."""
    rows, columns = path.name.split("_")[1].split("x")
    return int(rows), int(columns)


def tower_tokens(given: Arrays, texts: int, grid: tuple[int, int]) -> VisualTokens:
    """Visual tokens whose signals are the file's inputs."""
    data = {key: double(value) for key, value in given.items()}
    hidden = data["hidden"]
    normed = F.layer_norm(hidden[1:], hidden.shape[1:], data["ln_w"], data["ln_b"], 1e-5)
    heads = len(given["attn22_cls"])
    query, keys = data["q22_cls"].unflatten(0, (heads, -1)), data["k22"].unflatten(1, (heads, -1))
    answers = {
        Need("cls_attention", -2): (torch.einsum("hd,nhd->hn", query, keys) * query.shape[1] ** -0.5).softmax(
            -1
        ),
        Need("keys", -2): data["k22"],
        Need("keys", -1): data["k23"],
        Need("values", -1): data["v23"],
        Need("cls_query", -1): data["q23_cls"],
        Need("projected_patches"): normed @ data["proj"].T,
        TEXT_EMBEDS: data["text"][:texts],
    }
    return VisualTokens(hidden[1:], hidden[0], grid, heads, answers.__getitem__)


def clip_tokens(given: Arrays, texts: int) -> VisualTokens:
    """Visual tokens of a real 24-layer CLIP tower, signals computed from its hidden states."""
    weights = {key[2:]: double(value) for key, value in given.items() if key.startswith("w.")}
    layers = 1 + max(int(m[1]) for key in weights if (m := re.search(r"layers\.(\d+)\.", key)))
    conv = weights["vision_model.embeddings.patch_embedding.weight"]
    config = CLIPVisionConfig(
        hidden_size=conv.shape[0],
        intermediate_size=len(weights["vision_model.encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=layers,
        num_attention_heads=len(given["cls_attn_layer_m2"]),
        image_size=given["pixel_values"].shape[-1],
        patch_size=conv.shape[-1],
        projection_dim=len(weights["visual_projection.weight"]),
    )
    model = CLIPVisionModelWithProjection(config).double()
    model.load_state_dict({key: value for key, value in weights.items() if not key.endswith("position_ids")})
    with torch.no_grad():
        states = tuple(state[0] for state in clip.hidden_states(model, double(given["pixel_values"])))

    def answer(need: Need) -> Tensor:
        if need == TEXT_EMBEDS:
            return double(given["text"])[:texts]
        with torch.no_grad():
            return clip.clip_signal(model, states, need)

    side = config.image_size // config.patch_size
    return VisualTokens(states[-1][1:], states[-1][0], (side, side), config.num_attention_heads, answer)


def numbers(setting: str, *letters: str) -> tuple[float, ...]:
    """Values behind the letters: numbers("D54_C10", "D", "C") is (54, 10)."""
    return tuple(float(re.search(letter + r"([\d.]+)", setting)[1]) for letter in letters)  # type: ignore[index]


def visionzip_case(tokens: VisualTokens, setting: str) -> dict[str, Tensor]:
    dominant, contextual = (int(v) for v in numbers(setting, "D", "C"))
    method = VisionZip(contextual=contextual)
    chosen = method.select(tokens, dominant + contextual)
    best = top(tokens.cls_attention(-2).sum(0)[1:], dominant - 1)
    rest = torch.tensor([k for k in range(len(tokens)) if k not in set(best.tolist())])
    _, targets, assign = method.merge(tokens, rest, contextual)
    assert chosen.indices[dominant:].equal(rest[targets])
    return {
        "out": chosen.gather(tokens),
        "topk_desc": torch.cat([torch.tensor([0]), best + 1]),
        "target_pos": targets,
        "assign": assign,
        "counts": torch.bincount(assign, minlength=contextual),
    }


def prumerge_case(tokens: VisualTokens, setting: str, plus: bool) -> dict[str, Tensor]:
    scores, size = prumerge.cls_scores(tokens), len(tokens)
    if setting == "adaptive":
        ratio = outliers(scores) / size
        kept = prumerge.plus_adaptive(scores) if plus else top(scores, int(size * ratio))
    elif setting.startswith("total"):
        budget = int(setting[5:])
        ratio = (budget - 0.5) / size
        chosen = prumerge.PruMerge().select(tokens, budget)
        return {"out": chosen.gather(tokens), "idx": chosen.indices[:-1], "ratio": torch.tensor(ratio)}
    else:
        ratio = 1 / float(setting.split("1over")[1])
        kept = prumerge.plus_fixed(scores, ratio)
    return {"out": prumerge.merge(tokens, scores, kept), "idx": kept, "ratio": torch.tensor(ratio)}


def trim_case(tokens: VisualTokens, setting: str) -> dict[str, Tensor]:
    shares, size = Trim().shares(tokens), len(tokens)
    if setting == "adaptive":
        budget = outliers(shares) + 1
        ratio = (budget - 1) / size
    else:
        budget = int(setting[5:])
        ratio = (budget - 0.5) / size
    chosen = Trim().select(tokens, budget)
    out = chosen.gather(tokens)
    return {
        "kept": chosen.indices[:-1],
        "out": out,
        "mean_token": out[-1],
        "sim": shares,
        "ratio": torch.tensor(ratio),
    }


def litelvlm_case(tokens: VisualTokens, setting: str) -> dict[str, Tensor]:
    budget = int(numbers(setting, "T")[0]) if "T" in setting else len(tokens)
    method = LiteLVLM()
    return {
        "kept_in_order": method.select(tokens, budget).indices,
        "low_sim_sorted": method.low_similarity(tokens, budget),
        "ctx_rank": top(method.context_scores(tokens), len(tokens)),
    }


def vispruner_case(tokens: VisualTokens, setting: str) -> dict[str, Tensor]:
    budget, ratio = numbers(setting, "T", "r")
    method = VisPruner(ratio=ratio)
    important = method.ranked(tokens)[: int(budget * ratio)]
    return {"kept": method.select(tokens, int(budget)).indices, "important_desc": important}


def case(method: str, tokens: VisualTokens, setting: str) -> dict[str, Tensor]:
    if method in ("prumerge", "prumergeplus"):
        return prumerge_case(tokens, setting, method == "prumergeplus")
    return {
        "visionzip": visionzip_case,
        "trim": trim_case,
        "litelvlm": litelvlm_case,
        "vispruner": vispruner_case,
    }[method](tokens, setting)


def compare(name: str, got: Tensor, expected: NDArray[np.generic]) -> None:
    assert tuple(got.shape) == expected.shape, name
    if expected.dtype == np.int64:
        assert got.tolist() == expected.tolist(), name
    else:
        np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=FEATURES, err_msg=name)


def settings(expected: Arrays) -> Iterator[tuple[str, dict[str, NDArray[np.generic]]]]:
    """(setting, its arrays) of a file whose keys are `<setting>__<array>`."""
    groups: dict[str, dict[str, NDArray[np.generic]]] = {}
    for key, value in expected.items():
        if "__" in key and not key.startswith("w."):
            setting, array = key.rsplit("__", 1)
            groups.setdefault(setting, {})[array] = value
    yield from groups.items()


def texts_of(method: str, setting: str) -> int:
    return int(numbers(setting, "M")[0]) if method == "litelvlm" and "M" in setting else 1


METHODS = ("visionzip", "prumerge", "prumergeplus", "vispruner", "trim", "litelvlm")


@pytest.mark.parametrize("method", METHODS)
def test_tower(golden_pruners_dir: Path, method: str, record_property) -> None:  # type: ignore[no-untyped-def]
    checked = 0
    for path in sorted(golden_pruners_dir.glob("tower_*_inputs.npz")):
        given = arrays(path)
        for setting, expected in settings(arrays(path.with_name(path.name.replace("_inputs", f"_{method}")))):
            got = case(method, tower_tokens(given, texts_of(method, setting), grid_of(path)), setting)
            for array, value in expected.items():
                compare(f"{path.name} {method} {setting} {array}", got[array], value)
                checked += 1
    assert checked > 0
    record_property("arrays", checked)


def test_tower_inputs_agree(golden_pruners_dir: Path, record_property) -> None:  # type: ignore[no-untyped-def]
    """The signals that the tests derive are those that the set stores."""
    paths = sorted(golden_pruners_dir.glob("tower_*_inputs.npz"))
    for path in paths:
        given = arrays(path)
        tokens = tower_tokens(given, 1, grid_of(path))
        compare("attention", tokens.cls_attention(-2), given["attn22_cls"])
        compare("metric", tokens.keys(-2).unflatten(1, (tokens.num_heads, -1)).mean(1), given["metric22"])
    assert paths
    record_property("arrays", 2 * len(paths))


def test_clip_end_to_end(golden_pruners_dir: Path, record_property) -> None:  # type: ignore[no-untyped-def]
    checked = 0
    for path in sorted(golden_pruners_dir.glob("e2e_*.npz")):
        given = arrays(path)
        tokens = clip_tokens(given, 1)
        compare("features", tokens.patches, given["feature_layer_m2_patches"])
        compare("attention", tokens.cls_attention(-2)[:, 1:], given["cls_attn_layer_m2"])
        checked += 2
        for name, expected in settings(given):
            method, _, setting = name.partition("_")
            got = case(method, clip_tokens(given, texts_of(method, setting)), setting)
            for array, value in expected.items():
                compare(f"{path.name} {name} {array}", got[array], value)
                checked += 1
    assert checked > 0
    record_property("arrays", checked)


def llama(given: Arrays, attn: str) -> LlamaModel:
    layers, heads, kv_heads, hidden, mlp = (int(v) for v in given["config"][:5])
    weights = {key[2:]: double(value) for key, value in given.items() if key.startswith("w.")}
    config = LlamaConfig(
        vocab_size=len(weights["embed_tokens.weight"]) if "embed_tokens.weight" in weights else 1,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaModel._from_config(config, attn_implementation=attn).double()
    left = model.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"embed_tokens.weight"}
    return model


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.no_grad()
def test_fastv(golden_pruners_dir: Path, attn: str, record_property) -> None:  # type: ignore[no-untyped-def]
    checked = sum(fastv_file(path, attn) for path in sorted(golden_pruners_dir.glob("fastv_*.npz")))
    assert checked > 0
    if attn == "sdpa":  # the same arrays as with eager
        record_property("arrays", checked)


def fastv_file(path: Path, attn: str) -> int:
    """Check every array of one FastV file; returns how many."""
    given = arrays(path)
    model = llama(given, attn)
    start, count, length = (int(v) for v in given["config"][5:8])
    embeds = double(given["inputs_embeds"])[None]
    plain = run_layers(model, embeds)
    compare("unpruned", plain.hidden[0, -8:], given["unpruned_final_hidden_last8"])
    checked = 1
    for setting, expected in settings(given):
        layer, keep = (int(v) for v in numbers(setting, "K", "keep"))
        pruner = FastV(layer=layer)
        past, read = Past(), []

        def watched(by: Pruner, tokens: LayerView, left: int, read: list[Tensor] = read) -> Selection:
            read.append(tokens.attention("last")[:, 0, tokens.visual])
            return checks.cut(by, tokens, left)

        where = {"visual_start": start, "visual_count": count}
        cuts = [Cutting(pruner, (Cut(layer, keep),), choose=watched)]
        run = run_layers(model, embeds, **where, cuttings=cuts, past=past)  # type: ignore[arg-type]
        steps = double(given["decode_embeds"])
        lengths = [past.layers[k][0].shape[2] for k in range(len(model.layers))]
        decoded = []
        for k, step in enumerate(steps):
            past = Past(past)
            decoded.append(
                run_layers(model, step[None, None], past=past, first_position=length + k).hidden[0, 0]
            )
        without = run_layers(model, embeds, **where, cuttings=cuts)  # type: ignore[arg-type]
        compare(f"{setting} without cache", without.hidden[0], expected["final_hidden"])
        got = {
            "kept": run.positions[0],
            "score": read[0].mean(0),
            "final_hidden": run.hidden[0],
            "cache_len": torch.tensor(lengths),
            "decode_hidden": torch.stack(decoded),
            "R": torch.tensor(1 - keep / count),
        }
        for array, value in expected.items():
            compare(f"{path.name} {setting} {array}", got[array], value)
            checked += 1
    return checked


def test_readings_differ(golden_pruners_dir: Path) -> None:
    """The named other readings are not the code's: parity would notice if one slipped in."""
    path = min(golden_pruners_dir.glob("tower_*_inputs.npz"))
    given = arrays(path)
    one, three = (tower_tokens(given, texts, grid_of(path)) for texts in (1, 3))
    code = LiteLVLM()
    for other in (replace(code, combine="intersection"), replace(code, context_share=0.25)):
        assert code.select(three, 64).indices.tolist() != other.select(three, 64).indices.tolist()
    assert Trim().select(one, 64).indices.tolist() != Trim(keep="highest").select(one, 64).indices.tolist()
    plus, base = (pruners.parse(text)[0].select(one, 64) for text in ("prumerge(plus=True)", "prumerge"))
    assert plus.indices.tolist() != base.indices.tolist()
