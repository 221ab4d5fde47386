"""The whole path against the official tiny GLaMM: tokens, pixels, features, choices, masks and the metric.

`pytest tests/golden/test_glamm.py --golden-glamm DIR` checks another set in the same layout; sizes are read
from its files.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones.base import Row, Turn
from backbones.glamm import checkpoint as files
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.conversation import ANSWER_TEMPLATES, QUESTION_TEMPLATES, build_prompt
from backbones.glamm.full_size import on_meta
from backbones.glamm.keys import UNNEEDED, to_official
from backbones.glamm.preprocess import clip_pixels, sam_pixels
from backbones.glamm.release import GLAMM
from backbones.parts import clip, sam
from backbones.parts.faithful import run_layers
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer
from harness import metrics
from harness.data.refer import load_refer
from pruners.base import Pruner, Selection, top
from pruners.litelvlm import LiteLVLM
from pruners.none import NoPruning
from tests.golden.arrays import CLOSE, LOOSE, Arrays


@pytest.fixture
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(request.node.user_properties)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def backbone(golden_glamm_dir: Path, request: pytest.FixtureRequest) -> GlammBackbone:
    dims = json.loads((golden_glamm_dir / "sam_dims.json").read_text())
    folder, clip = golden_glamm_dir / "checkpoint", golden_glamm_dir / "clip"
    model = files.load_checkpoint(folder, str(clip), sam=dims, attn=request.param)
    return GlammBackbone(
        model,
        LlamaTokenizer(folder),
        clip,
        name="glamm",
        fingerprint="",
        device="cpu",
        dtype="float32",
        attn=request.param,
    )


def images(folder: Path) -> list[str]:
    found = sorted(path.name.split("_")[0] for path in folder.glob("img*_inputs.npz"))
    assert found
    return found


def load(folder: Path, name: str, part: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}_{part}.npz") as data:
        return {key: data[key] for key in data.files}


def turns_of(given: dict[str, np.ndarray]) -> tuple[Turn, ...]:
    answers = [part.split("</s>")[0] for part in str(given["conversation"][0]).split("ASSISTANT: ")[1:]]
    return tuple(Turn(str(q), a) for q, a in zip(given["questions"], answers, strict=True))


def runs(folder: Path) -> list[tuple[str, int]]:
    """Images and the budgets that the set has for each."""
    found = [tuple(path.stem.split("_prune")) for path in sorted(folder.glob("img*_prune*.npz"))]
    assert found
    return [(name, int(budget)) for name, budget in found]


def test_tokenizer(golden_glamm_dir: Path, arrays: Arrays) -> None:
    tokenizer = LlamaTokenizer(golden_glamm_dir / "checkpoint")
    cases = json.loads((golden_glamm_dir / "tokenizer_cases.json").read_text())
    for case in cases["llama"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
    for name in images(golden_glamm_dir):
        given = load(golden_glamm_dir, name, "inputs")
        talk = build_prompt(turns_of(given))
        arrays.equal([talk], given["conversation"], "conversation")
        ids = np.array([tokenizer.encode(talk)])
        arrays.equal(ids, given["input_ids"], "ids")
        arrays.equal(ids != tokenizer.pad_id, given["attention_mask"], "attention mask")


def test_clip_tokenizer(golden_glamm_dir: Path, backbone: GlammBackbone, arrays: Arrays) -> None:
    cases = json.loads((golden_glamm_dir / "tokenizer_cases.json").read_text())["clip"]
    words = backbone.clip_tokenizer(cases["texts"], padding=True, truncation=True, max_length=77)
    assert words["input_ids"] == cases["input_ids"] and words["attention_mask"] == cases["attention_mask"]
    for name in images(golden_glamm_dir):
        given = load(golden_glamm_dir, name, "inputs")
        words = backbone.clip_tokenizer([str(q) for q in given["questions"]], padding=True, truncation=True)
        arrays.equal(words["input_ids"], given["clip_text_input_ids"], "text ids")
        arrays.equal(words["attention_mask"], given["clip_text_attention_mask"], "text mask")


def test_templates_cover_the_set(golden_glamm_dir: Path) -> None:
    """Every question and answer of the set comes out of the templates."""
    for name in images(golden_glamm_dir):
        given = load(golden_glamm_dir, name, "inputs")
        for turn, sentence in zip(turns_of(given), given["sentences"], strict=True):
            said = str(sentence).strip().lower()
            assert turn.question in {template.format(said) for template in QUESTION_TEMPLATES}
            assert turn.answer in ANSWER_TEMPLATES
    assert len(set(QUESTION_TEMPLATES)) == 16 and len(set(ANSWER_TEMPLATES)) == 5


def test_preprocessing(golden_glamm_dir: Path, backbone: GlammBackbone, arrays: Arrays) -> None:
    for name in images(golden_glamm_dir):
        given = load(golden_glamm_dir, name, "inputs")
        arrays.close(
            clip_pixels(given["image_rgb"], backbone.image_size)[None],
            given["clip_pixels"],
            1e-6,
            "clip pixels",
        )
        pixels, resized = sam_pixels(given["image_rgb"], backbone.sam_size)
        arrays.close(pixels[None], given["sam_pixels"], 1e-5, "sam pixels")
        arrays.equal(resized, given["resize_hw"], "resized")
        arrays.equal(given["image_rgb"].shape[:2], given["original_hw"], "original")


def test_signals(golden_glamm_dir: Path, backbone: GlammBackbone, arrays: Arrays) -> None:
    method = LiteLVLM()
    for name in images(golden_glamm_dir):
        given, full, select = (load(golden_glamm_dir, name, part) for part in ("inputs", "full", "select"))
        encoding = backbone.encode([given["image_rgb"]])[0]
        tokens = backbone.views(encoding, turns_of(given), name)[0]
        arrays.close(tokens.patches, full["clip_patch_features"], CLOSE, "features")
        arrays.close(encoding.embedding[None], full["sam_embedding"], LOOSE, "grounding embedding")
        pe = sam.positional(backbone.model.grounding_encoder)
        arrays.close(pe, full["dense_pe"], CLOSE, "dense positions")
        arrays.close(tokens.text_embeds, select["text_embeds"], CLOSE, "text")
        arrays.close(tokens.projected_patches, select["projected_patches"], CLOSE, "projected patches")
        arrays.close(
            tokens.text_embeds @ tokens.projected_patches.T, select["similarities"], CLOSE, "similarities"
        )
        arrays.close(tokens.cls_query(-1), select["cls_query"], CLOSE, "query")
        arrays.close(tokens.keys(-1)[1:], select["patch_keys"], CLOSE, "keys")
        arrays.close(tokens.values(-1)[1:], select["patch_values"], CLOSE, "values")
        scores = method.context_scores(tokens)
        arrays.close(scores, select["context_scores"], CLOSE, "context scores")
        arrays.equal(top(scores, len(tokens)), select["context_rank"], "context rank")
        with torch.inference_mode():
            last = clip.layer(backbone.model.clip, -1, encoding.hidden_states[-1][None])[0]
        arrays.close(last, full["clip_last_hidden"], CLOSE, "last layer")


def check_run(
    backbone: GlammBackbone, row: Row, expected: dict[str, np.ndarray], name: str, arrays: Arrays
) -> None:
    """Projector, embeddings, hidden states, prompts, logits and masks of one row."""
    model = backbone.model
    ids = backbone.tokenizer.encode(build_prompt(row.turns))
    image = ids.index(IMAGE_TOKEN)
    with torch.inference_mode():
        embeds = backbone.embed([row], [ids])
        count = embeds.shape[1] - len(ids) + 1
        arrays.close(embeds[0, image : image + count], expected["projector_out"], CLOSE, f"{name} projector")
        if "inputs_embeds" in expected:
            arrays.close(embeds[0], expected["inputs_embeds"], CLOSE, f"{name} embeddings")
        hidden = run_layers(model.language_model, embeds).hidden[0]
        arrays.close(hidden, expected["llm_hidden"], LOOSE, f"{name} hidden")
        marks = [k - 2 + count for k, token in enumerate(ids) if token == backbone.tokenizer.seg_id]
        arrays.equal(marks, expected["seg_positions"], f"{name} [SEG] positions")
        arrays.close(model.lm_head(hidden[marks]), expected["seg_logits"], LOOSE, f"{name} [SEG] logits")
        prompts = model.text_hidden_fcs(hidden[marks])
        arrays.close(prompts, expected["seg_embeddings"], LOOSE, f"{name} prompts")
        low = backbone.decode(row.encoding.embedding.expand(len(marks), -1, -1, -1), prompts)
        _, quality = sam.decode(model.grounding_encoder, row.encoding.embedding[None], prompts[None])
        arrays.close(quality[0][:, None], expected["iou_pred"], LOOSE, f"{name} mask quality")
        arrays.close(low[:, None], expected["low_res_logits"], LOOSE, f"{name} low-resolution logits")
    result = next(backbone.ground_rows([row]))
    arrays.close(result.logits, expected["pred_masks"], LOOSE, f"{name} masks")
    assert result.tokens_final == count and result.tokens_mean == count


def test_unpruned(golden_glamm_dir: Path, backbone: GlammBackbone, arrays: Arrays) -> None:
    for name in images(golden_glamm_dir):
        given, full = load(golden_glamm_dir, name, "inputs"), load(golden_glamm_dir, name, "full")
        encoding = backbone.encode([given["image_rgb"]])[0]
        pruner: Pruner = NoPruning()
        tokens = backbone.views(encoding, turns_of(given), name)[0]
        row = Row(encoding, turns_of(given), pruner, len(tokens), (pruner.select(tokens, len(tokens)),))
        check_run(backbone, row, full, f"{name} full", arrays)


def test_litelvlm(golden_glamm_dir: Path, backbone: GlammBackbone, arrays: Arrays) -> None:
    method = LiteLVLM()
    for name, budget in runs(golden_glamm_dir):
        given, pruned = load(golden_glamm_dir, name, "inputs"), load(golden_glamm_dir, name, f"prune{budget}")
        turns = turns_of(given)
        encoding = backbone.encode([given["image_rgb"]])[0]
        tokens = backbone.views(encoding, turns, name)[0].only(method.needs)
        selection = method.select(tokens, budget)
        arrays.equal(selection.indices, pruned["retained"], f"{name} {budget} retained")
        arrays.equal(method.low_similarity(tokens, budget), pruned["lowsim_union"], f"{name} {budget} union")
        each = (tokens.text_embeds @ tokens.projected_patches.T).argsort(dim=1, stable=True)[
            :, : budget // len(turns)
        ]
        # of the chosen tokens the set is used alone, so two that are 6 ulp apart may change places
        arrays.equal(np.sort(each), np.sort(pruned["lowsim_per_question"]), f"{name} {budget} per question")
        arrays.close(selection.gather(tokens), pruned["vision_tower_out"], CLOSE, "tower output")
        check_run(
            backbone, Row(encoding, turns, method, budget, (selection,)), pruned, f"{name} {budget}", arrays
        )


def test_images_together_equal_images_alone(golden_glamm_dir: Path, backbone: GlammBackbone) -> None:
    """Rows of different images and lengths in one call come back in order."""
    rows, alone = [], []
    for name in images(golden_glamm_dir):
        given = load(golden_glamm_dir, name, "inputs")
        encoding = backbone.encode([given["image_rgb"]])[0]
        for keep in (64, 192):
            selection = Selection(torch.arange(keep))
            rows.append(Row(encoding, turns_of(given), NoPruning(), keep, (selection,)))
            alone.append(next(backbone.ground_rows(rows[-1:])))
    for one, other in zip(backbone.ground_rows(rows), alone, strict=True):
        assert one.tokens_final == other.tokens_final
        torch.testing.assert_close(one.logits, other.logits, rtol=0, atol=CLOSE)


def test_metric(golden_glamm_dir: Path, arrays: Arrays) -> None:
    """Counts add up to the official scores, image by image and over all."""
    with np.load(golden_glamm_dir / "metric.npz") as data:
        given = {key: data[key] for key in data.files}
    pairs = [
        [
            metrics.counts(logits > 0, truth)
            for logits, truth in zip(given[f"logits_{k}"], given[f"gt_{k}"], strict=True)
        ]
        for k in range(sum(key.startswith("gt_") for key in given))
    ]

    def value(name: str, rows: list[tuple[int, int]]) -> float:
        inner, outer = zip(*rows, strict=True)
        return metrics.get(name).value({"intersection": inner, "union": outer})

    each = [(value("giou", rows), value("ciou", rows)) for rows in pairs]
    arrays.close(np.array(each), given["per_image_giou_ciou"], 1e-6, "per image")
    whole = [row for rows in pairs for row in rows]
    arrays.close(np.asarray(value("giou", whole)), given["giou"], 1e-6, "giou")
    arrays.close(np.asarray(value("ciou", whole)), given["ciou"], 1e-6, "ciou")


def test_tree(golden_glamm_dir: Path, arrays: Arrays) -> None:
    """Images, sentences and truth masks of the official data set class come out of the official files."""
    samples = load_refer(golden_glamm_dir / "refer", "refcoco", "val")
    assert sorted(f"img{sample.image_id}" for sample in samples) == images(golden_glamm_dir)
    for sample in samples:
        given = load(golden_glamm_dir, f"img{sample.image_id}", "inputs")
        arrays.equal(sample.image(), given["image_rgb"], "image")
        masks = list(zip((expression.text for expression in sample.expressions), sample.masks(), strict=True))
        found = []
        for sentence, truth in zip(given["sentences"], given["gt_masks"], strict=True):
            # one sentence may stand for two objects
            meant = [mask for text, mask in masks if text == sentence]
            assert meant, sentence
            found.append(next((mask for mask in meant if (mask == truth).all()), meant[0]))
        arrays.equal(np.stack(found), given["gt_masks"], "truth")


def pattern(key: str) -> str:
    return re.sub(r"\.\d+\.", ".{}.", key)


def test_full_size_keys(golden_glamm_dir: Path) -> None:
    """GLaMM-7B builds on the meta device, and its official key list is the published one."""
    listed: dict[tuple[str, str], int] = {}
    section = ""
    for line in (golden_glamm_dir / "full_size_keys.txt").read_text().splitlines():
        if line.startswith("#"):
            section = line
        elif line.strip():
            key, shape, times = line.split("\t")[:3]
            listed[
                ("clip." if "clip" in section.lower() and "without" not in section else "") + key, shape
            ] = int(times[1:])
    model = on_meta("glamm-7b")
    built: dict[tuple[str, str], int] = {}
    for key, tensor in model.state_dict().items():
        official = key if key.startswith("clip.") else to_official(key, GLAMM)
        if official is not None:
            entry = (pattern(official), str(list(tensor.shape)))
            built[entry] = built.get(entry, 0) + 1
    assert all(parameter.is_meta for parameter in model.parameters())
    needed = {
        entry: times
        for entry, times in listed.items()
        if not UNNEEDED.search(entry[0].replace("{}", "0")) and not entry[0].startswith(GLAMM.unneeded)
    }
    assert built == needed
    assert len(needed) > 100
