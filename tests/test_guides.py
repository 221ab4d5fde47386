"""The guides to own data, data sets and metrics: what they show works as it stands there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import cli, data, doctor, metrics
from harness.data.registry import sets
from harness.metrics.registry import metrics as registry
from harness.store import code, records
from pruners import load_plugin
from reports import __main__ as report
from tests.fake_backbone import known, write_data
from tests.test_docs import blocks

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(code, "STARTED", float("inf"))
    before = dict(sets.known), dict(registry.known)
    yield
    for one, kept in zip((sets, registry), before, strict=True):
        one.known.clear()
        one.known.update(kept)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_the_own_data_of_the_page(tmp_path: Path) -> None:
    page = (DOCS / "own-data.md").read_text()
    listed = next(block[1:] for block in page.split("```") if block.startswith("\nsplit,"))
    (written,) = blocks(DOCS / "own-data.md", "json")
    content = json.loads(written)
    content["annotations"].append(content["annotations"][0] | {"id": 12})
    (tmp_path / "mine" / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((480, 640, 3), dtype=np.uint8)).save(
        tmp_path / "mine" / "images" / "kitchen.jpg"
    )
    (tmp_path / "mine" / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "mine" / "expressions.csv").write_text(listed)
    (sample,) = data.load_samples("mine", "val", tmp_path)
    assert [(e.text, e.group) for e in sample.expressions] == [
        ("the blue cup", "anna"),
        ("both cups, not the glass", "anna"),
        ("a dog", "ben"),
    ]
    assert [int(mask.sum()) for mask in sample.masks()] == [6300, 6300, 0]
    assert [finding.level for finding in doctor._data(tmp_path)] == ["ok"]
    (tmp_path / "mine" / "expressions.csv").write_text(listed + "val,Kitchen.JPG,it,11,\n")
    (finding,) = doctor._data(tmp_path)
    told = re.search(r"^DIR/mine/expressions.csv:5 (.*)$", page, re.M)
    assert told and finding.what.endswith(f"expressions.csv:5 {told[1]}")


def test_the_data_set_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = blocks(DOCS / "adding-a-dataset.md", "python")
    (tmp_path / "pets.py").write_text(block)
    folder = tmp_path / "pets" / "val"
    (folder / "rex").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "rex.jpg")
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[5:15, 10:30] = 255
    Image.fromarray(mask).save(folder / "rex" / "the brown dog.png")
    known(monkeypatch)
    words = (
        "--backbones",
        "fake",
        "--pruners",
        "none",
        "--budgets",
        8,
        "--costs",
        "off",
        "--plugin",
        tmp_path / "pets.py",
    )
    assert command(monkeypatch, *words, "--datasets", "pets", "--out", tmp_path / "run") == 2
    assert "pets is not here" in capsys.readouterr().err
    assert (
        command(monkeypatch, *words, "--datasets", "pets:val", "--data", tmp_path, "--out", tmp_path / "run")
        == 0
    )
    frame = records.load_records(tmp_path / "run")
    assert frame[["sample", "cluster", "text"]].to_numpy().tolist() == [
        ["pets:val:rex", "pets/val/rex.jpg", "the brown dog"]
    ]
    (sample,) = data.load_samples("pets", "val", tmp_path)
    assert (sample.masks()[0] == (mask > 0)).all()


def test_the_metric_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = blocks(DOCS / "adding-a-metric.md", "python")
    monkeypatch.chdir(tmp_path)
    Path("found.py").write_text(first)
    known(monkeypatch)
    words = (
        "--backbones",
        "fake",
        "--pruners",
        "none,random",
        "--budgets",
        8,
        "--datasets",
        "refcoco",
        "--costs",
        "off",
    )
    run = Path("results") / "runs" / "found"
    root = write_data(tmp_path / "data", images=12)
    assert command(monkeypatch, *words, "--plugin", "found.py", "--data", root, "--out", run, "--full") == 0
    assert "| found |" in " ".join(capsys.readouterr().out.split())
    assert report.main([str(run), "--plugin", "found.py", "--metric", "found", "--full"]) == 0
    assert (
        "- data set and split: found in percent: mean share of the target's pixels" in capsys.readouterr().out
    )
    exec(compile(second, "docs/adding-a-metric.md", "exec"), {})
    assert "found" in capsys.readouterr().out
    frame = records.load_records(run)
    share = frame["found_pixels"] / frame["target_pixels"]
    assert metrics.get("found").value(frame) == pytest.approx(share.mean())


def test_a_plugin_that_breaks_leaves_nothing_behind(tmp_path: Path) -> None:
    (block, _) = blocks(DOCS / "adding-a-metric.md", "python")
    (tmp_path / "found.py").write_text(f"{block}\nraise RuntimeError('late')\n")
    with pytest.raises(Exception, match="late"):
        load_plugin(tmp_path / "found.py")
    assert "found" not in metrics.names()
    (tmp_path / "nothing.py").write_text("x = 1\n")
    with pytest.raises(Exception, match="registers no pruner"):
        load_plugin(tmp_path / "nothing.py")
