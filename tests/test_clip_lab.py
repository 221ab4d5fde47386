"""The laboratory on CLIP alone: what it measures by hand, that it sees what GLaMM's pruners see, and what it
says."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from backbones.clip_alone import ClipTower, load_tower
from backbones.glamm.backbone import GlammBackbone
from harness import cli, data, metrics
from harness.diagnosis import summary
from harness.diagnosis.laboratory import (
    MEASURES,
    Laboratory,
    coverage_radius,
    effective_rank,
    measure_laboratory,
)
from harness.diagnosis.similarities import look
from pruners import checks, parse
from pruners.base import PROJECTED_PATCHES, Need, UserError
from pruners.litelvlm import LiteLVLM
from pruners.visionzip import VisionZip
from reports import clip_lab
from reports import diagnosis as diagnosis_page
from reports.clip_lab import findings, markdown, table, write_laboratory
from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, WIDTH, ref, write_tree

IMAGES = tuple(range(1, 8))
PRUNERS = "none,random,uniform,litelvlm,fastervlm,trim,visionzip,downsample,divprune,fastv,oracle"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RefCOCO's layout, with pictures in which every pixel is another."""
    refs = [
        entry
        for image in IMAGES
        for entry in (
            ref(image, image, 11, "val", "the left one", "left square"),
            ref(100 + image, image, 12, "val", "the right one"),
        )
    ]
    folder = write_tree(tmp_path_factory.mktemp("data"), refs, {11: [SQUARE], 12: [SHIFTED]}, images=IMAGES)
    for image in IMAGES:
        pixels = np.random.default_rng(image).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "Refer_Segm" / "coco_2014" / "train2014" / f"{image}.png")
    return folder


@pytest.fixture(scope="module")
def tower(golden_glamm_dir: Path) -> ClipTower:
    """The tiny CLIP in its official layout."""
    return load_tower(str(golden_glamm_dir / "clip"), "cpu", "float32")


@pytest.fixture(scope="module")
def found(tower: ClipTower, root: Path) -> Laboratory:
    return measure_laboratory(tower, [("refcoco", "val")], 0, parse(PRUNERS), [64, "25%"], str(root))


# -- by hand


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(torch.eye(5)[:3] * 7) == pytest.approx(3), "lengths do not count"
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1)
    features = torch.randn(9, 30, generator=torch.Generator().manual_seed(0)).double()
    values = np.linalg.svd(F.normalize(features, dim=1).numpy(), compute_uv=False)
    shares = values / values.sum()
    assert effective_rank(features) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    wide = torch.randn(30, 9, generator=torch.Generator().manual_seed(1))
    assert (
        effective_rank(wide) == pytest.approx(effective_rank(wide.double()), rel=1e-5)
        and effective_rank(wide) <= 9
    )


def test_radius_is_the_farthest_patch() -> None:
    grid, kept = (3, 5), torch.tensor([1, 13])
    features = torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
    places = [(k // 5, k % 5) for k in range(15)]
    apart = max(min(math.dist(places[k], places[int(j)]) for j in kept) for k in range(15))
    cosine = F.cosine_similarity(features[:, None], features[kept][None], dim=2)
    assert coverage_radius(features, kept, grid) == pytest.approx(
        (float(1 - cosine.max(1).values.min()), apart)
    )
    assert coverage_radius(features, torch.arange(15), grid) == pytest.approx((0, 0), abs=1e-6)


# -- what GLaMM's pruners see


def test_the_tower_is_glamms(tower: ClipTower, glamm: GlammBackbone, root: Path) -> None:
    """States, signals, text and shares are those that the whole model gives its pruners."""
    sample = data.load_samples("refcoco", "val", str(root))[0]
    mask = sample.masks()[:1] == metrics.FOREGROUND
    seen, whole = (one.encode([sample.image()])[0] for one in (tower, glamm))
    for ours, theirs in zip(seen.hidden_states, whole.hidden_states, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    (view,), (other,) = (
        one.views(encoding, (one.turn("the left one"),), "s", mask)
        for one, encoding in ((tower, seen), (glamm, whole))
    )
    for need in (
        *LiteLVLM.needs,
        *VisionZip.needs,
        PROJECTED_PATCHES,
        Need("attention", -2),
        Need("hidden", -1),
    ):
        assert torch.allclose(view.signal(need), other.signal(need), atol=1e-4), need
    assert (view.referent == other.referent).all() and tower.grid == glamm.grid
    assert tower.probes is not None and glamm.probes is not None
    rows = look(tower, tower.probes, sample, seen), look(glamm, glamm.probes, sample, whole)
    for mine, other_row in zip(*rows, strict=True):
        assert mine.keys() == other_row.keys()
        for name in mine:
            assert mine[name] == pytest.approx(other_row[name], abs=0.02), name


def test_the_tower_segments_nothing(tower: ClipTower) -> None:
    with pytest.raises(UserError, match="CLIP alone, which segments nothing"):
        tower.ground(np.zeros((32, 32, 3), dtype=np.uint8), "the left one")


# -- what is measured


def test_every_method_is_measured_on_every_expression(
    found: Laboratory, tower: ClipTower, root: Path
) -> None:
    patches = tower.grid[0] * tower.grid[1]
    assert found.patches == patches and found.budgets == [patches // 4, 64]
    assert set(found.left_out) == {"divprune", "fastv"} and "llm_patches" in found.left_out["divprune"]
    names = {name for name, _ in found.methods}
    assert names == set(PRUNERS.split(",")) - set(found.left_out)
    assert len(found.rows) == 3 * len(IMAGES) * len(found.methods) and found.images == len(IMAGES)
    assert found.rows.groupby(["pruner", "budget"]).size().nunique() == 1
    assert (found.of("oracle", 64)["coverage"] > found.of("random", 64)["coverage"].to_numpy()).all()
    assert found.of("none", patches)["coverage"].tolist() == pytest.approx([1] * 3 * len(IMAGES))
    assert found.of("downsample", 64)[["coverage", "grid radius", "feature radius"]].isna().all(axis=None)
    assert found.of("downsample", 64)["rank"].notna().all(), "pooled tokens have features"
    assert (
        found.of("fastervlm", 64)["auroc"].between(0, 1).all() and found.of("trim", 64)["auroc"].isna().all()
    )
    assert found.sees_truth == {"oracle"} and found.kinds["random"] == "control"


def test_a_row_is_what_the_choice_says(found: Laboratory, tower: ClipTower, root: Path) -> None:
    sample = data.load_samples("refcoco", "val", str(root))[2]
    expression, mask = sample.expressions[1], (sample.masks() == metrics.FOREGROUND)[1:2]
    (view,) = tower.views(tower.encode([sample.image()])[0], (tower.turn(expression.text),), sample.id, mask)
    share = tower.patch_shares(mask).double()
    for pruner in parse("litelvlm,visionzip,random"):
        chosen = checks.select(pruner, view, 64)
        kept = chosen.indices[chosen.indices >= 0].unique()
        part = found.of(pruner.unseeded().spec(), 64)
        row = part[(part["sample"] == sample.id) & (part["expression"] == expression.id)].iloc[0]
        assert row["coverage"] == pytest.approx(float(share[kept].sum() / share.sum()))
        assert row["rank"] == pytest.approx(effective_rank(chosen.gather(view)), rel=1e-4)
        radius = coverage_radius(view.patches, kept, tower.grid)
        assert (row["feature radius"], row["grid radius"]) == pytest.approx(radius, abs=1e-5)


def test_what_reads_no_text_chooses_once_per_image(
    tower: ClipTower, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[str, int] = {}
    real = checks.select

    def select(pruner: Any, view: Any, count: int) -> Any:
        counts[pruner.name] = counts.get(pruner.name, 0) + 1
        return real(pruner, view, count)

    monkeypatch.setattr(checks, "select", select)
    measure_laboratory(tower, [("refcoco", "val")], 2, parse("visionzip,litelvlm"), [64], str(root))
    assert counts == {"visionzip": 2, "litelvlm": 6}


def test_bad_images_are_counted_and_told(tower: ClipTower, root: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "data")
    pixels = tmp_path / "data" / "Refer_Segm" / "coco_2014" / "train2014"
    (pixels / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(pixels / "5.png")
    asked = [("refcoco", "val")], 0, parse("none,uniform"), [64], str(tmp_path / "data")
    found = measure_laboratory(tower, *asked)
    assert found.images == len(IMAGES) - 2 and set(found.bad) == {"refcoco:val:2", "refcoco:val:5"}
    text = markdown(found)
    assert "2 images could not be read and are not in any number" in text and "9x9 px" in text
    for image in IMAGES:
        (pixels / f"{image}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="None of the 7 images of refcoco:val can be read; the first: Image"):
        measure_laboratory(tower, *asked)


def test_budgets_and_methods_that_cannot_be_are_refused(tower: ClipTower, root: Path) -> None:
    asked = [("refcoco", "val")], 1
    with pytest.raises(UserError, match="--budgets 9999 is more than"):
        measure_laboratory(tower, *asked, parse("uniform"), [9999], str(root))
    with pytest.raises(UserError, match="No pruner is left"):
        measure_laboratory(tower, *asked, parse("fastv,divprune"), [64], str(root))


# -- what it says


def made(auroc: float, start: float, coverage: dict[str, float]) -> Laboratory:
    """A laboratory with numbers as asked, each with a little noise."""
    rng, count = np.random.default_rng(0), 30
    columns: dict[str, Any] = {"image": [str(k) for k in range(count)], "expression": range(count)}
    for name in summary.SIMILARITIES:
        columns[f"auroc {name}"] = auroc + 0.02 * rng.normal(size=count)
        columns |= {f"rank {name} {k}": rng.random(count) for k in range(summary.BINS)}
    columns |= {name: rng.random(count) for name in ("pearson", "spearman", "start 0")}
    columns |= {"start 0": 0.1, "start 1": start + 0.01 * rng.normal(size=count), "tokens": 10}
    diagnosis = summary.Diagnosis("clip-x", "f" * 16, ("refcoco:val",), 0, pd.DataFrame(columns), 0, 2)
    rows = [
        {"image": str(k), "sample": f"s{k}", "expression": k, "pruner": name, "budget": 64}
        | {"coverage": value + 0.01 * rng.normal(), "auroc": math.nan, "rank": 9.0}
        | {"feature radius": 0.2, "grid radius": 3.0 + 9 * value}
        for name, value in coverage.items()
        for k in range(count)
    ]
    kinds = {name: "control" if name in ("random", "oracle") else "method" for name in coverage}
    return Laboratory(
        diagnosis, pd.DataFrame(rows), 576, kinds, frozenset({"oracle"}), {}, {}, count, 1.0, 0.5, "cpu"
    )


def test_findings_are_one_sentence_each() -> None:
    coverage = {"oracle": 0.9, "random": 0.3, "good": 0.6, "bad": 0.1}
    told = findings(made(0.3, 0.8, coverage))
    assert "reversal holds on clip-x" in told[0]
    assert "There is a text attention sink in clip-x: 0.80" in told[1] and "in layer 1 of 2" in told[1]
    assert "8.0 times of what even attention gives (0.10)" in told[1]
    assert "At 64 of 576 tokens good keeps most of the referent, 0.60" in told[2], "oracle sees the truth"
    assert told[2].endswith("and less than random keep bad.")
    assert "with bad" in told[3] and "with good" in told[3]
    other = findings(made(0.7, 0.11, {"random": 0.1, "good": 0.6}))
    assert "reversal does not hold" in other[0] and "There is no text attention sink" in other[1]
    assert other[2].endswith("and no method keeps less.")
    few = made(0.3, 0.8, coverage)
    few = dataclasses.replace(
        few, diagnosis=dataclasses.replace(few.diagnosis, rows=few.diagnosis.rows.head(2))
    )
    assert "Too few images for an interval" in findings(few)[1]


def test_the_difference_to_random_is_paired() -> None:
    found = made(0.3, 0.8, {"random": 0.3, "good": 0.6})
    gap = found.beyond_random("good", 64)
    assert gap is not None and gap.value == pytest.approx(0.3, abs=0.01) and 0.28 < gap.low < gap.high < 0.32
    assert found.beyond_random("random", 64) is None


def test_page_tables_and_figures(found: Laboratory, tmp_path: Path) -> None:
    page = write_laboratory(found, tmp_path)
    text = page.read_text()
    for sentence in findings(found):
        assert sentence in text
    for name in ("ranks", "sink", "recall", "spread"):
        assert f"({name}.svg)" in text and (tmp_path / f"{name}.svg").stat().st_size > 2000
    assert "divprune reads llm_patches" in text and (tmp_path / "diagnosis.md").is_file()
    numbers = pd.read_csv(tmp_path / "clip-lab.csv")
    one = numbers[(numbers["pruner"] == "visionzip") & (numbers["budget"] == 64)].set_index("measure")
    assert set(one.index) == {*MEASURES, "beyond random"} - {"auroc"}
    assert one.loc["coverage", "value"] == found.mean("visionzip", 64, "coverage").value
    assert len(pd.read_csv(tmp_path / "clip-lab-expressions.csv")) == len(found.rows)
    assert len(table(found)) == len(numbers)


# -- the command


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_the_command_measures_the_embedded_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (clip_lab, diagnosis_page):  # figures have their own test
        monkeypatch.setattr(module, "save", lambda figure, stem: [])
    asked = ("diagnose", "--clip", "glamm-mini", "--datasets", "refshapes:val", "--limit", 2)
    words = (*asked, "--pruners", "none,random,litelvlm,cdpruner", "--budgets", 64, "--out", tmp_path / "lab")
    assert command(monkeypatch, *words, "--export", tmp_path / "t.json") == 0
    told = capsys.readouterr().out
    assert "clip-of-glamm-mini" in told and "s per 100 images" in told and "Left out" in told
    assert "cdpruner" in told and "| litelvlm" in told
    assert len(json.loads((tmp_path / "t.json").read_text())["rows"]) > 10
    first = {path.name: path.read_bytes() for path in (tmp_path / "lab").iterdir()}
    assert command(monkeypatch, *words) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "lab").iterdir()} == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--clip", "glamm-mini", "--run", "somewhere"), "--run has no meaning for CLIP alone"),
        (("--pruners", "litelvlm"), "--pruners belongs to the laboratory on CLIP alone"),
        (
            ("--clip", "glamm-mini", "--backbone", "glamm", "--budgets", "64"),
            "--budgets belongs to the laboratory",
        ),
        (("--clip", "nowhere/at/all"), "nowhere/at/all"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "diagnose", *words, "--limit", 1) == 2
    assert told in capsys.readouterr().err
