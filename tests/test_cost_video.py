"""Costs of clips: what is projected of a VideoGLaMM is what its pass executes, in every placement and however
masks are made; runs have it; a study of placements says what budgets save."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import backbones
from backbones.parts.clips import BETWEEN, decoded
from backbones.videoglamm.backbone import VideoGlammBackbone
from backbones.videoglamm.budgets import CELLS, PLACEMENTS, VIDEO_POOL
from harness import cli, cost, plan
from harness.cost import formulas, kinds, measure, placements, projection, roofline
from harness.cost.lines import lines_of
from harness.cost.store import INSIDE, MODULES
from harness.engine import runner
from harness.gate import check as gate
from pruners import UserError, parse
from reports import efficiency
from reports import placements as report
from tests import tiny_videoglamm as tiny
from tests import video_trees

TAIL = tiny.FRAMES * VIDEO_POOL**2
EXPRESSION = "the red star"
# whose bytes are those of the stage alone: no mask goes back to a frame's size in it, no frame is remembered
SAME_BYTES = ("vision_tower", "video_tower", "video_projector", "grounding_encoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Checkpoints without and with SAM2."""
    return {sam2: tiny.write(tmp_path_factory.mktemp(f"sam2-{sam2}"), sam2) for sam2 in (False, True)}


def inputs_of(backbone: VideoGlammBackbone, length: int = 7) -> tuple[measure.Staged, measure.Inputs]:
    staged, clip = backbone.staged, tiny.clip(length)
    truth = np.zeros((tiny.FRAMES, 1, 30, 44), dtype=bool)
    truth[:, :, 5:20, 10:30] = True
    return staged, staged.prepare(clip, (backbone.turn(EXPRESSION),), "sample", truth)


def lines(backbone: VideoGlammBackbone, text: str, budget: int = 81) -> list[measure.Line]:
    able = [one for one in parse(text) if not backbone.lacks(one)]
    return lines_of(able, (budget,), 0, backbone.grid, backbone.num_layers, backbone.stated)


def check(backbone: VideoGlammBackbone, text: str, length: int = 3) -> projection.Projection:
    """Same lengths, multiply-adds by stage, closed form and fvcore, and bytes alive."""
    staged, inputs = inputs_of(backbone, length)
    rows = lines(backbone, text)
    projected = projection.project(staged.shapes(inputs), rows, inputs.prompt, dtype=torch.float32)
    stage_of = {module: stage for stage, module in MODULES.items()}
    for line, expected in zip(rows, projection.counts_lines(projected), strict=True):
        found = measure.count(staged, inputs, line)
        assert list(found["lengths"]) == expected["lengths"], line.name
        macs = {stage: found["macs"].get(stage, 0) for stage in staged.stages}
        macs["pruner"] += found["macs"].get(INSIDE, 0)
        assert macs == expected["macs"], line.name
        assert macs["prefill"] == formulas.language_model_macs(found["lengths"], staged.shape)
        assert found["fvcore"] >= macs["prefill"]
        assert found["peak"]["prefill"] == expected["peak"]["prefill"], line.name
        for module in SAME_BYTES:
            assert found["peak"][stage_of.get(module, module)] == projected.peaks[module], module
    return projected


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_projected_is_what_runs_in_every_placement(folders: dict[bool, Path], placement: str) -> None:
    methods = "none,uniform,fastv,visionzip,litelvlm"
    found = check(tiny.load(folders[False], placement=placement), methods)
    rows = found.cells.set_index("pruner")
    each = {"grid": (CELLS, CELLS), "direct": (576, 81), "postpool": (CELLS, 81)}[placement]
    assert rows.loc["none", "tokens_final"] == tiny.FRAMES * each[0] + TAIL
    assert rows.loc["uniform", "tokens_final"] == tiny.FRAMES * each[1] + TAIL
    assert rows.loc["fastv", "lengths"][0] == rows.loc["none", "lengths"][0]
    assert rows.loc["fastv", "tokens_final"] == tiny.FRAMES * 81 + TAIL
    adapter = {name: rows.loc[name, "macs.projector"] for name in ("none", "uniform")}
    kept = 576 if placement == "postpool" else 81
    assert adapter["uniform"] * 576 == adapter["none"] * kept, "the adapter stands in front of the pool"


@pytest.mark.parametrize(("branch", "length"), [("video", 1), ("video", 3), ("video", 9), ("framewise", 3)])
def test_projected_is_what_sam2_runs(folders: dict[bool, Path], branch: str, length: int) -> None:
    """In clips up to and beyond what it remembers: 3 frames by features, 4 by vectors."""
    found = check(tiny.load(folders[True], branch=branch), "none", length)
    assert found.parts["mask_decoder"].frames == found.parts["grounding_encoder"].frames == length
    assert found.shared["grounding_encoder"] % length == 0


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("pruner", ["none", "fastv", "visionzip"])
def test_the_pass_computes_the_masks_of_the_evaluation(
    folders: dict[bool, Path], placement: str, pruner: str
) -> None:
    backbone = tiny.load(folders[False], placement=placement)
    (method,) = parse(pruner)
    budget = backbone.grid[0] * backbone.grid[1] if pruner == "none" else 81
    encoding = backbone.encode([tiny.clip(3)])[0]
    row = tiny.row(backbone, encoding, pruner, budget, EXPRESSION, answers="forced")
    (expected,) = backbone.ground_rows([row])
    staged, inputs = inputs_of(backbone, 3)
    passed = staged.forward(inputs, method, budget)
    assert expected.runs is not None
    masks = decoded(BETWEEN.join(expected.runs[0]), 30, 44)
    assert ((passed.logits.numpy() > 0) == masks).mean() > 0.999
    assert masks.any() and not masks.all()


def test_a_run_of_clips_has_costs(
    folders: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.load(folders[False], placement="postpool")
    root = video_trees.davis(tmp_path / "data", "bear")
    asked = runner.Plan(tuple(parse("uniform,fastv")), (81,), (("ref-davis17", "val"),), data=str(root))
    splits = runner.prepare(asked, backbone)
    assert kinds.kind(None, backbone, 1) == "projected"
    for kind, rounds in (("projected", 0), ("measured", 2)):
        folder = tmp_path / kind
        folder.mkdir()
        monkeypatch.setattr(measure, "ROUNDS", rounds)
        kinds.write_costs(kind, asked, splits, backbone, folder)
    projected, measured = (cost.load_costs(tmp_path / kind) for kind in ("projected", "measured"))
    assert projected["pruner"].tolist() == measured["pruner"].tolist() == ["none", "uniform", "fastv"]
    modules = [name for name in measured if name.startswith("macs.")]
    assert {"macs.video_tower", "macs.video_projector"} < set(modules)
    pd.testing.assert_frame_equal(projected[modules], measured[modules])
    assert (projected["macs_projected"] == measured["macs_measured"]).all()
    assert (measured["stage.video_tower_ms"] > 0).all() and (measured["rounds"] == 2).all()
    head = json.loads((tmp_path / "measured" / "costs.jsonl").read_text().splitlines()[0])
    assert head["sample"] == splits[0].samples[0].id


def test_the_gate_guards_clips(
    folders: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their own costs are projected; bitmaps are of all frames that are seen."""
    monkeypatch.setattr(gate, "DRAWS", 1)
    monkeypatch.setattr(gate, "MORE_DRAWS", 2)
    root = video_trees.davis(tmp_path / "data", "bear")
    text = f"videoglamm(checkpoint='{folders[False]}', clip='{tiny.CLIP}')"
    how = {"limit": 1, "data": str(root), "backbones": (text,), "answers": "forced"}
    gate.accept(tmp_path / "b.json", "first", (), plan.Plan("none,fastv", (81,), "ref-davis17", **how))  # type: ignore[arg-type]
    found = gate.check(tmp_path / "b.json")
    assert found.cells == 2 and not found.changes
    content = gate.read_baseline(tmp_path / "b.json")
    assert content["patches"] == tiny.FRAMES * 576
    assert {cell["pruner"]: cell["macs"] > 0 for cell in content["cells"]} == {"none": False, "fastv": True}


# -- the released size


def test_the_released_size() -> None:
    """Against closed forms."""
    settings = backbones.one("videoglamm-3.8b(masked=2, branch='framewise')")
    model = settings.shapes()
    assert model is not None and model.places == 4096
    rows = lines_of(parse("none"), (576,), 0, model.grid, model.shape.layers, settings.stated)
    prompt = model.prompt()
    found = projection.project(model, rows, prompt)
    (row,) = found.cells.to_dict("records")
    assert row["lengths"] == (16 * (144 + 64) + prompt.text,) * 32
    assert row["macs.language_model"] == formulas.language_model_macs(row["lengths"], model.shape)
    n, width, inner = 4 * 256 + 1, 1408, 6144
    block = n * (4 * width * width + 2 * width * inner) + 2 * n * n * width
    assert found.shared["video_tower"] == 4 * (39 * block + 4 * 256 * 3 * 14 * 14 * width)
    assert found.shared["vision_tower"] / 16e9 == pytest.approx(190.96, abs=0.01)
    assert found.shared["video_projector"] == 16 * 256 * (1408 + 3072) * 3072
    text = efficiency.render_projection(found, settings.name, prompt, "sdpa", roofline.gpu("h100"))
    assert "4 chunks of 4 frames, 39 of 40 blocks; nothing of it is pruned" in text
    assert "masks in a clip of 2 frames" in text and "GMAC a frame" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("videoglamm-3.8b(masked=0)", "give masked=1 or more"),
        ("videoglamm-3.8b(placement='gird')", "Did you mean 'grid'?"),
        ("videoglamm-3.8b(branch='both')", "there are video, framewise"),
    ],
)
def test_numbers_that_make_no_sense(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        backbones.one(text)


# -- placements


@pytest.fixture(scope="module")
def compared(folders: dict[bool, Path]) -> placements.Placements:
    settings = backbones.get("videoglamm")(checkpoint=str(folders[False]), clip=str(tiny.CLIP))
    return placements.compare(settings, ("576", "196", "100", "81"), 4, None, roofline.gpu("h100"))


def test_placements_are_compared(compared: placements.Placements) -> None:
    rows = {(row.placement, row.budget): row for row in compared.rows}
    tail = 4 * VIDEO_POOL**2
    assert compared.tail == tail and compared.views == 4
    for budget in (576, 196, 100, 81):
        assert rows["grid", budget].tokens == 4 * CELLS + tail
        assert rows["direct", budget].tokens == 4 * budget + tail
        assert compared.saved(rows["grid", budget]) == 0
    assert rows["postpool", 576].tokens == 4 * CELLS + tail
    assert rows["postpool", 81].tokens == rows["direct", 81].tokens
    assert rows["postpool", 196].why == "more than the 144 tokens of a frame"
    official = rows["grid", 576]
    assert compared.saved(rows["direct", 81]) == 1 - rows["direct", 81].llm / official.llm > 0
    assert compared.saved(rows["direct", 196]) < 0
    assert rows["grid", 81].whole < official.whole, "the adapter sees less"
    assert all(row.fits for row in compared.rows if not row.why)


def test_the_sentence_follows_from_the_numbers(compared: placements.Placements) -> None:
    said = report.sentence(compared)
    saved = {(row.placement, row.budget): 100 * compared.saved(row) for row in compared.rows if not row.why}
    assert "in grid, K = 196 saves nothing of the language model (832 tokens as before)" in said
    assert f"K = 81 saves {saved['direct', 81]:.1f} % of the language model" in said
    assert f"K = 196 costs {-saved['direct', 196]:.1f} % more of the language model" in said
    assert "in postpool, K = 196 cannot be (more than the 144 tokens of a frame)" in said
    assert said.count(". ") == 0 and said.endswith(".")
    short = replace(
        compared,
        places=100,
        rows=tuple(replace(row, fits=False, llm=row.llm // 2) for row in compared.rows[:2]),
    )
    other = report.sentence(short)
    assert "K = 196 saves 50.0 % of the language model" in other
    assert "for which 100 positions are too few" in other


def test_a_budget_that_is_no_square(folders: dict[bool, Path]) -> None:
    settings = backbones.get("videoglamm")(checkpoint=str(folders[False]), clip=str(tiny.CLIP))
    found = placements.compare(settings, ("80",), None, 60, roofline.gpu("h100"))
    (grid, *others) = found.rows
    assert "80 make none" in grid.why and not any(row.why for row in others)
    assert found.text == 60 and found.official.budget == 576
    assert "- | " in report.markdown(found)


def test_the_study_writes_files(
    folders: dict[bool, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = f"videoglamm(checkpoint='{folders[False]}', clip='{tiny.CLIP}')"
    words = ["study", "placements", "--backbone", text, "--budgets", "81", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["python -m harness", *words])
    assert cli.main() == 0
    told, page = capsys.readouterr().out, (tmp_path / "out" / "study.md").read_text()
    assert "| direct" in told and "On videoglamm (2 frames)" in told and "On videoglamm (2 frames)" in page
    table = pd.read_csv(tmp_path / "out" / "study.csv")
    assert table["placement"].tolist() == list(PLACEMENTS) and (table["budget"] == 81).all()
    assert table["saved_llm"].tolist()[0] == 0 and (table["saved_llm"][1:] > 0).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["placement"], "Did you mean 'placements'?"),
        (["placements", "--backbone", "glamm-7b"], "glamm-7b has one place where a budget can act; give"),
        (["placements", "--budgets", "600"], "give --budgets 1 to 576"),
        (["placements", "--frames", "6"], "give frames=4 or a multiple"),
        (["positions", "--frames", "8"], "--frames belongs to the study of placements"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "study", *words])
    assert cli.main() == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ") and says in last


def test_stated_lengths_are_compared(folders: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.load(folders[False])
    staged, inputs = inputs_of(backbone, 1)
    stated = type(backbone).stated
    monkeypatch.setattr(
        type(backbone), "stated", lambda self, *given: tuple(n + 1 for n in stated(self, *given))
    )
    with pytest.raises(UserError, match="The layers saw 288 x 4 visual tokens of 2 frames, and uniform had"):
        staged.forward(inputs, parse("uniform")[0], 81)
