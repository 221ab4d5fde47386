"""The whole path against the official tiny LISA: tokens, pixels, features, states, masks, its own answers and
the metric.

`pytest tests/golden/test_lisa.py --golden-lisa DIR` checks another set in the same layout; sizes are read
from its files.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pruners
from backbones.base import Encoding, Row, Turn
from backbones.glamm import checkpoint as files
from backbones.glamm.keys import UNNEEDED, to_official
from backbones.glamm.preprocess import masks_to_image
from backbones.lisa.backbone import LisaBackbone
from backbones.lisa.conversation import ANSWER, QUESTION, TEMPLATES
from backbones.lisa.full_size import on_meta
from backbones.lisa.release import LISA
from backbones.lisa.settings import Lisa
from backbones.parts import sam
from backbones.parts.faithful import run_layers
from backbones.parts.generation import Writer
from backbones.parts.llama import Past
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer
from harness import Plan, evaluate, metrics
from harness.data.refer import load_refer
from pruners import ImpossibleBudget, Pruner, checks
from pruners.none import NoPruning
from tests.golden.arrays import CLOSE, LOOSE, Arrays

SHARES = (85 / 256, 57 / 256, 28 / 256)  # 192, 128 and 64 of 576
PIXELS = 2  # that may flip where a logit is nearly 0
Given = dict[str, np.ndarray]


@pytest.fixture
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(request.node.user_properties)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def backbone(golden_lisa_dir: Path, request: pytest.FixtureRequest) -> LisaBackbone:
    return loaded(golden_lisa_dir, request.param)


@cache
def loaded(folder: Path, attn: str, template: str = TEMPLATES[0]) -> LisaBackbone:
    dims = json.loads((folder / "sam_dims.json").read_text())
    checkpoint, clip = folder / "checkpoint", folder / "clip"
    model = files.load_checkpoint(checkpoint, str(clip), sam=dims, attn=attn, release=LISA)
    how: dict[str, Any] = {"name": "lisa", "fingerprint": "", "device": "cpu", "dtype": "float32"}
    return LisaBackbone(model, LlamaTokenizer(checkpoint), clip, **how, attn=attn, template=template)


def load(path: Path) -> Given:
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def cases(folder: Path) -> list[tuple[str, Given, Given]]:
    """Every image: name, inputs, what came of them. RefCOCO's have two files, ReasonSeg's one."""
    refer = [path.name.removesuffix("_inputs.npz") for path in sorted(folder.glob("img*_inputs.npz"))]
    found = [(name, load(folder / f"{name}_inputs.npz"), load(folder / f"{name}_full.npz")) for name in refer]
    reason = [(path.stem, load(path)) for path in sorted(folder.glob("reason_*.npz"))]
    assert refer and reason
    return [*found, *((name, both, both) for name, both in reason)]


def turns_of(given: Given) -> list[Turn]:
    """Question and answer of every conversation."""
    return [turn_in(str(text)) for text in given["conversation"]]


def turn_in(talk: str) -> Turn:
    question, answer = talk.split("<im_end>\n")[1].split("ASSISTANT:")
    return Turn(question.strip(), answer.removesuffix("</s>").strip())


def encoded(backbone: LisaBackbone, given: Given) -> Encoding:
    (encoding,) = backbone.encode([given["image_rgb"]])
    return encoding


def test_tokenizer(golden_lisa_dir: Path, arrays: Arrays) -> None:
    backbone = loaded(golden_lisa_dir, "sdpa")
    told = json.loads((golden_lisa_dir / "tokenizer_cases.json").read_text())
    assert backbone.tokenizer.seg_id == told["seg_id"]
    for case in told["cases"]:
        assert backbone.tokenizer.encode(case["text"]) == case["ids"], case["text"]
    for name, given, _ in cases(golden_lisa_dir):
        turns = turns_of(given)
        arrays.equal([backbone.prompt([turn]) for turn in turns], given["conversation"], f"{name} talks")
        ids = [backbone.ids([turn]) for turn in turns]
        width = max(map(len, ids))
        padded = np.array([row + [backbone.tokenizer.pad_id] * (width - len(row)) for row in ids])
        arrays.equal(padded, given["input_ids"], f"{name} ids")
        arrays.equal(padded != backbone.tokenizer.pad_id, given["attention_mask"], f"{name} mask")


def test_its_own_words(golden_lisa_dir: Path, backbone: LisaBackbone) -> None:
    """The conversations of an image come out of its expressions, all of them, one by one."""
    for name, given, _ in cases(golden_lisa_dir):
        if name.startswith("img"):
            asked = [str(sentence) for sentence in given["sentences"]]
            talks = backbone.conversations(name, asked, backbone.protocol, seed=0)
            assert [talk.turns for talk in talks] == [(turn,) for turn in turns_of(given)]
            assert [talk.expressions for talk in talks] == [(k,) for k in range(len(asked))]
            assert talks == backbone.conversations(name, asked, "each", seed=1)
        else:
            asked, form = [str(given["texts"][0])], "sentence" if given["is_sentence"] else "phrase"
            (talk,) = backbone.conversations(name, asked, backbone.protocol, seed=0, forms=[form])
            assert talk.turns == tuple(turns_of(given))
    assert backbone.turn(" The DOG ") == Turn(QUESTION.format("the dog"), ANSWER)


def test_preprocessing(golden_lisa_dir: Path, backbone: LisaBackbone, arrays: Arrays) -> None:
    for name, given, _ in cases(golden_lisa_dir):
        pixels = backbone.preprocess(given["image_rgb"])
        arrays.close(pixels.vision[None], given["clip_pixels"], 1e-6, f"{name} clip pixels")
        arrays.close(pixels.grounding[None], given["sam_pixels"], 1e-5, f"{name} sam pixels")
        arrays.equal(pixels.resized, given["resize_hw"], f"{name} resized")
        arrays.equal(pixels.original, given["original_hw"], f"{name} original")


def test_unpruned(golden_lisa_dir: Path, backbone: LisaBackbone, arrays: Arrays) -> None:
    """Every stage of every conversation, and all conversations of an image together."""
    model, seg = backbone.model, backbone.tokenizer.seg_id
    patches = backbone.grid[0] * backbone.grid[1]
    for name, given, full in cases(golden_lisa_dir):
        encoding = encoded(backbone, given)
        rows = [Row(encoding, (turn,), NoPruning(), patches, ()) for turn in turns_of(given)]
        ids = given["input_ids"].tolist()
        images = [row.index(IMAGE_TOKEN) for row in ids]
        marks = [(k, j + patches - 2) for k, row in enumerate(ids) for j in places(row, seg)]
        own = np.array(
            [
                [token != 0 for token in [*row[:at], *[1] * patches, *row[at + 1 :]]]
                for row, at in zip(ids, images, strict=True)
            ]
        )
        with torch.inference_mode():
            embeds = backbone.embed(rows, ids)
            hidden = run_layers(model.language_model, embeds).hidden
            read = torch.stack([hidden[k, place] for k, place in marks])
            prompts = model.text_hidden_fcs(read)
            low = backbone.decode(encoding.embedding.expand(len(marks), -1, -1, -1), prompts)
            _, quality = sam.decode(model.grounding_encoder, encoding.embedding[None], prompts[None])
            logits = model.lm_head(read)
        hidden = hidden * torch.tensor(own)[..., None]  # padding is nobody's, on both sides
        if "llm_hidden" in full:
            full["llm_hidden"] = full["llm_hidden"] * own[..., None]
        found = list(backbone.ground_rows(rows))
        masks = torch.cat([one.logits for one in found])
        exact = {
            "image_count": patches,
            "image_start": images,
            "llm_attention_mask": own,
            "seg_rows": [k for k, _ in marks],
            "seg_positions": [place for _, place in marks],
        }
        close = {
            "clip_patch_features": (encoding.hidden_states[-1][1:], CLOSE),
            "sam_embedding": (encoding.embedding[None], LOOSE),
            "dense_pe": (sam.positional(model.grounding_encoder), CLOSE),
            "projector_out": (embeds[0, images[0] : images[0] + patches], CLOSE),
            "inputs_embeds": (embeds[:1], CLOSE),
            "llm_hidden": (hidden, LOOSE),
            "seg_logits": (logits, LOOSE),
            "seg_embeddings": (prompts, LOOSE),
            "low_res_logits": (low[:, None], LOOSE),
            "iou_pred": (quality[0][:, None], LOOSE),
            "pred_masks": (masks, LOOSE),
        }
        if name.startswith("img"):
            assert {*exact, *close} <= full.keys()
        for key in full.keys() & exact.keys():
            arrays.equal(exact[key], full[key], f"{name} {key}")
        for key in full.keys() & close.keys():
            arrays.close(close[key][0], full[key], close[key][1], f"{name} {key}")
        assert {one.lengths for one in found} == {(patches,) * backbone.num_layers}
        check_scores(masks.numpy(force=True) > 0, given["gt_masks"], full, name, arrays)


def places(ids: list[int], token: int) -> list[int]:
    return [place for place, one in enumerate(ids) if one == token]


def check_scores(masks: np.ndarray, truths: np.ndarray, full: Given, name: str, arrays: Arrays) -> None:
    """Counts of the foreground, its IoU and the scores of the image alone."""
    pairs = [metrics.counts(mask, truth) for mask, truth in zip(masks, truths, strict=True)]
    inner, outer = np.array(pairs).T
    arrays.close(inner, full["intersection"][:, 1], PIXELS, f"{name} intersections")
    arrays.close(outer, full["union"][:, 1], PIXELS, f"{name} unions")
    slack = PIXELS / max(1, min(outer.min(), full["union"][:, 1].min()))
    values = metrics.get("giou").value({"intersection": inner, "union": outer})
    arrays.close(
        np.array([values, metrics.get("ciou").value({"intersection": inner, "union": outer})]),
        full["giou_ciou"],
        slack,
        f"{name} scores",
    )
    each = [metrics.get("giou").value({"intersection": [a], "union": [b]}) for a, b in pairs]
    if "iou" in full:
        arrays.close(np.array(each), full["iou"], slack, f"{name} IoU")


def test_given_answers(golden_lisa_dir: Path, backbone: LisaBackbone, arrays: Arrays) -> None:
    """No, one and two [SEG], both templates."""
    patches = backbone.grid[0] * backbone.grid[1]
    told, data = (
        json.loads((golden_lisa_dir / "answers.json").read_text()),
        load(golden_lisa_dir / "answers.npz"),
    )
    given = {name: one for name, one, _ in cases(golden_lisa_dir)}
    for k, case in enumerate(told):
        mine = loaded(golden_lisa_dir, backbone.attn, case["conv_type"])
        turn = Turn(case["question"].removeprefix("<image>\n"), case["answer"])
        # the blank of the evaluation's reader, which is stripped beside <im_end>
        assert mine.prompt([turn]).replace("<im_end>\n ", "<im_end>\n") == case["conversation"]
        ids = mine.ids([turn])
        arrays.equal(ids, data[f"input_ids_{k}"].ravel(), f"answer {k} ids")
        check_sequence(mine, encoded(mine, given[case["image"]]), ids, turn, data, k, arrays)
        row = Row(encoded(mine, given[case["image"]]), (turn,), NoPruning(), patches, ())
        (found,) = mine.ground_rows([row])
        arrays.close(found.logits, data[f"pred_masks_{k}"], LOOSE, f"answer {k} masks")
        assert len(found.logits) == case["masks"]


def check_sequence(
    backbone: LisaBackbone,
    encoding: Encoding,
    ids: list[int],
    turn: Turn,
    data: Given,
    k: int,
    arrays: Arrays,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States of a sequence, the mask prompts that are read from it; gives states and masks."""
    patches, seg = backbone.grid[0] * backbone.grid[1], backbone.tokenizer.seg_id
    row = Row(encoding, (turn,), NoPruning(), patches, ())
    marks = [j + patches - 2 for j in places(ids, seg)]
    arrays.equal(marks, data[f"seg_positions_{k}"].ravel(), f"{k} [SEG] positions")
    with torch.inference_mode():
        hidden = run_layers(backbone.model.language_model, backbone.embed([row], [ids])).hidden[0]
        for name in ("llm_hidden", "last_hidden"):
            if f"{name}_{k}" in data:
                wanted = data[f"{name}_{k}"]
                wanted = wanted.reshape(-1, wanted.shape[-1])
                arrays.close(hidden[: len(wanted)], wanted, LOOSE, f"{k} states")
        if f"seg_logits_{k}" in data:
            logits = backbone.model.lm_head(hidden[marks])
            arrays.close(logits, data[f"seg_logits_{k}"], LOOSE, f"{k} [SEG] logits")
        prompts = backbone.model.text_hidden_fcs(hidden[marks])
        arrays.close(prompts, data[f"seg_embeddings_{k}"], LOOSE, f"{k} prompts")
        if not marks:
            return hidden, torch.zeros(0, *encoding.original)
        low = backbone.decode(encoding.embedding.expand(len(marks), -1, -1, -1), prompts)
        if f"low_res_logits_{k}" in data:
            arrays.close(low[:, None], data[f"low_res_logits_{k}"], LOOSE, f"{k} low-resolution logits")
    return hidden, masks_to_image(low, backbone.sam_size, encoding.resized, encoding.original)


def test_its_own_answers(
    golden_lisa_dir: Path, backbone: LisaBackbone, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids token by token, the states that all masks are read from, and the first mask, which is the
    expression's."""
    patches = backbone.grid[0] * backbone.grid[1]
    told, data = (
        json.loads((golden_lisa_dir / "generate.json").read_text()),
        load(golden_lisa_dir / "generate.npz"),
    )
    given = {name: one for name, one, _ in cases(golden_lisa_dir)}
    for k, case in enumerate(told):
        mine = loaded(golden_lisa_dir, backbone.attn, case["conv_type"])
        monkeypatch.setattr(mine, "most_new", case["max_new_tokens"])
        tokenizer, model = mine.tokenizer, mine.model
        encoding, turn = encoded(mine, given[case["image"]]), Turn(case["text"], "")
        ids = mine.ids([turn], answered=False)
        arrays.equal(ids, data[f"input_ids_{k}"].ravel(), f"run {k} ids")
        row = Row(encoding, (turn,), NoPruning(), patches, (), answers="generated")
        writer = Writer(
            model.language_model,
            model.lm_head,
            tokenizer.seg_id,
            tokenizer.end_ids,
            mine.most_new,
            whole=True,
        )
        with torch.inference_mode():
            past, embeds = Past(), mine.embed([row], [ids])
            hidden = run_layers(model.language_model, embeds, past=past).hidden
            (written,) = writer(hidden[:, -1], past, torch.tensor([embeds.shape[1]]), 1)
        whole = [*ids, *written.ids]
        assert list(written.ids) == case["new_ids"]
        arrays.equal(whole, data[f"output_ids_{k}"].ravel(), f"run {k} answer")
        states, masks = check_sequence(mine, encoding, whole, turn, data, k, arrays)
        with torch.inference_mode():
            logits = model.lm_head(states[-len(written.ids) - 1 : -1])
        wanted = data[f"answer_logits_{k}"]
        arrays.close(logits, wanted.reshape(-1, wanted.shape[-1]), LOOSE, f"run {k} logits")
        arrays.close(masks, data[f"pred_masks_{k}"].reshape(masks.shape), LOOSE, f"run {k} masks")
        for share in (True, False):
            (found,) = mine.ground_rows([row], share)
            assert found.words == (tokenizer.decode(written.ids),)
            assert found.said == (case["masks"] > 0,) and found.logits.shape == (1, *encoding.original)
            if case["masks"]:
                torch.testing.assert_close(found.logits, masks[:1], rtol=0, atol=LOOSE)
            else:
                assert not (found.logits > 0).any()


def test_every_pruner_shared_and_unshared(golden_lisa_dir: Path, backbone: LisaBackbone) -> None:
    """At the shares that GLaMM's published budgets are, all conversations of an image."""
    patches = backbone.grid[0] * backbone.grid[1]
    name, given, _ = max(cases(golden_lisa_dir), key=lambda case: len(case[1]["input_ids"]))
    encoding, ran = encoded(backbone, given), set()
    for share in SHARES:
        rows = []
        for pruner in pruners.parse("all"):
            budget = patches if pruner.name == "none" else round(share * patches)
            with suppress(ImpossibleBudget):
                rows += [
                    row_of(backbone, encoding, given, k, pruner, budget) for k in range(len(turns_of(given)))
                ]
                ran.add(pruner.name)
        together, apart = backbone.ground_rows(rows), backbone.ground_rows(rows, share=False)
        for row, one, two in zip(rows, together, apart, strict=True):
            assert not one.error and one.lengths == two.lengths, (name, row.pruner)
            assert torch.equal(one.retained, two.retained), row.pruner
            torch.testing.assert_close(one.logits, two.logits, rtol=0, atol=LOOSE)
    assert {"none", "random", "uniform", "litelvlm"} <= ran


def row_of(
    backbone: LisaBackbone, encoding: Encoding, given: Given, k: int, pruner: Pruner, budget: int
) -> Row:
    turns, truth = (turns_of(given)[k],), given["gt_masks"][k : k + 1] == 1
    checks.stated(pruner, budget, backbone.grid[0] * backbone.grid[1], backbone.num_layers)
    if pruner.stage == "layer":
        return Row(encoding, turns, pruner, budget, ())
    views = backbone.views(encoding, turns, "sample", truth)
    return Row(
        encoding, turns, pruner, budget, checks.select_views(pruner, views, budget, backbone.num_layers)
    )


def test_metric(golden_lisa_dir: Path, arrays: Arrays) -> None:
    """Counts add up to the official scores, image by image and over all, ignored pixels left out."""
    given = load(golden_lisa_dir / "metric.npz")
    pairs: list[list[tuple[int, int]]] = []
    for k in range(sum(key.startswith("gt_") for key in given)):
        rows = [
            metrics.counts(logits > 0, truth)
            for logits, truth in zip(given[f"logits_{k}"], given[f"gt_{k}"], strict=True)
        ]
        inner, outer = np.array(rows).T
        arrays.equal(inner, given[f"intersection_{k}"][:, 1], f"{k} intersections")
        arrays.equal(outer, given[f"union_{k}"][:, 1], f"{k} unions")
        pairs.append(rows)

    def value(name: str, rows: list[tuple[int, int]]) -> float:
        inner, outer = zip(*rows, strict=True)
        return metrics.get(name).value({"intersection": inner, "union": outer})

    each = [(value("giou", rows), value("ciou", rows)) for rows in pairs]
    arrays.close(np.array(each), given["per_image_giou_ciou"], 1e-6, "per image")
    whole = [row for rows in pairs for row in rows]
    arrays.close(np.asarray(value("giou", whole)), given["giou"], 1e-6, "giou")
    arrays.close(np.asarray(value("ciou", whole)), given["ciou"], 1e-6, "ciou")


def test_tree(golden_lisa_dir: Path, arrays: Arrays) -> None:
    """Images, sentences and truth masks of the official reader come out of its own files, in order."""
    samples = load_refer(golden_lisa_dir / "dataset", "refcoco", "val")
    assert samples
    for sample in samples:
        given = load(golden_lisa_dir / f"img{sample.image_id}_inputs.npz")
        arrays.equal(sample.image(), given["image_rgb"], "image")
        arrays.equal([one.text for one in sample.expressions], given["sentences"], "sentences")
        arrays.equal([one.ref_id for one in sample.expressions], given["ref_ids"], "refs")
        arrays.equal(np.stack(list(sample.masks())), given["gt_masks"], "truths")


@pytest.mark.parametrize("dataset", ["refcoco", "reasonseg"])
def test_official_scores(
    golden_lisa_dir: Path, golden_reasonseg_dir: Path, tmp_path: Path, dataset: str
) -> None:
    """A run of the main command's plan has the scores of the official evaluation."""
    data = golden_lisa_dir / "dataset"
    if dataset == "reasonseg":
        pytest.importorskip("cv2")
        data = data if (data / "reason_seg").is_dir() else golden_reasonseg_dir / "dataset"
    told = json.loads((golden_lisa_dir / "expected.json").read_text())["validate"]
    official = {
        name.rpartition("|")[2]: one for name, one in told.items() if name.lower().startswith(f"{dataset}|")
    }
    files = {part: str(golden_lisa_dir / part) for part in ("checkpoint", "clip")}
    text = Lisa(**files, sam_dims=str(golden_lisa_dir / "sam_dims.json")).spec()
    names = ",".join(f"{dataset}:{split}" for split in official)
    plan = Plan(pruners="none", budgets="64", datasets=names, data=str(data), backbones=text, costs="off")  # type: ignore[arg-type]
    frame = evaluate(plan, out=tmp_path / "run").frame
    for split, expected in official.items():
        rows = frame[frame["split"] == split]
        assert len(rows) == expected["masks"] and set(rows["protocol"]) == {"lisa"}
        given = {name: rows[name].to_numpy() for name in ("intersection", "union")}
        assert metrics.get("giou").value(given) == pytest.approx(expected["giou"], abs=1e-3)
        assert metrics.get("ciou").value(given) == pytest.approx(expected["ciou"], abs=1e-3)


@pytest.mark.parametrize("name", ["lisa-7b", "lisa-13b"])
def test_full_size_keys(golden_lisa_dir: Path, name: str) -> None:
    """The model builds on the meta device, and its official key list is the published one."""
    listed: dict[tuple[str, str], int] = {}
    section = ""
    for line in (golden_lisa_dir / "full_size_keys.txt").read_text().splitlines():
        if line.startswith("#"):
            section = section if "total" in line else line.lower()
        elif line.strip() and (name in section or "clip-vit" in section.split()[1]):
            key, shape, times = line.split("\t")[:3]
            listed["clip." * ("clip-vit" in section.split()[1]) + key, shape] = int(times[1:])
    model = on_meta(name)
    built: dict[tuple[str, str], int] = {}
    for key, tensor in model.state_dict().items():
        official = key if key.startswith("clip.") else to_official(key, LISA)
        if official is not None:
            entry = re.sub(r"\.\d+\.", ".{}.", official), str(list(tensor.shape))
            built[entry] = built.get(entry, 0) + 1
    assert all(parameter.is_meta for parameter in model.parameters())
    needed = {
        entry: times for entry, times in listed.items() if not UNNEEDED.search(entry[0].replace("{}", "0"))
    }
    assert built == needed
    assert len(needed) > 100
