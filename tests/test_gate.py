"""The gate: passes on unchanged code, names what fell, and catches a pruner that was broken on purpose."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness import cli, gate
from pruners import UserError, registry
from tests.fake_backbone import FakeBackbone, known, write_data

SOUND = """
from dataclasses import dataclass
from pruners import ScorePruner, register

@register
@dataclass(frozen=True)
class Contrast(ScorePruner):
    name = "contrast"
    reference = "tests"

    def score(self, tokens):
        return SIGN * (tokens.patches @ tokens.cls)
"""


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A baseline of a fake backbone with a plugin pruner; `plugin.py` beside it."""
    root = write_data(tmp_path / "data")
    known(monkeypatch)
    from harness import data

    load, parse = data.load, data.parse_datasets
    monkeypatch.setattr(data, "load", lambda dataset, split, _: load(dataset, split, root))
    monkeypatch.setattr(data, "parse_datasets", lambda text: parse(text, root))
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    (tmp_path / "plugin.py").write_text(SOUND.replace("SIGN", "1"))
    subset = gate.SUBSET | {"backbone": "fake", "pruners": "none,random,contrast", "budgets": [16], "datasets": "refcoco"}
    gate.accept(tmp_path / "baseline.json", "first numbers", (str(tmp_path / "plugin.py"),), subset)
    return tmp_path / "baseline.json"


def command(monkeypatch: pytest.MonkeyPatch, baseline: Path, *words: str) -> int:
    plugin = baseline.with_name("plugin.py")
    monkeypatch.setattr(sys, "argv", ["harness", "gate", "--baseline", str(baseline), "--plugin", str(plugin), *words])
    return cli.main()


def test_unchanged_code_passes(baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, baseline) == 0
    assert "0 of 5" in capsys.readouterr().out  # none, contrast, random with three seeds


def test_a_broken_pruner_is_caught_and_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline) == 1
    told = capsys.readouterr().out
    worse = [line for line in told.splitlines() if line.startswith("worse: ")]
    assert len(worse) == 1
    assert worse[0].startswith("worse: contrast at 16 tokens")
    assert "cIoU" in worse[0]
    assert "expressions fell" in worse[0]
    named = [line for line in told.splitlines() if line.startswith("    refcoco:")]
    assert 1 <= len(named) <= gate.NAMED
    assert all("IoU" in line and "->" in line for line in named)
    assert "1 of 5" in told


def test_a_pruner_that_got_better_passes_and_is_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline, "--accept", "worse on purpose") == 0
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "1"))
    capsys.readouterr()
    assert command(monkeypatch, baseline) == 0
    told = capsys.readouterr().out
    assert "changed within the tolerances: contrast at 16 tokens" in told
    assert "0 of 5" in told


def test_a_pruner_that_the_baseline_does_not_know_is_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(baseline.read_text())
    content["rows"] = [row for row in content["rows"] if row[0] != "contrast"]
    baseline.write_text(json.dumps(content))
    assert command(monkeypatch, baseline) == 0
    assert "not in the baseline: contrast at 16" in capsys.readouterr().out


def test_accepting_keeps_all_reasons(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(baseline.read_text())
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline, "--accept", "the sign was wrong") == 0
    after = json.loads(baseline.read_text())
    assert [entry["reason"] for entry in after["history"]] == ["first numbers", "the sign was wrong"]
    assert after["subset"] == before["subset"]
    assert after["rows"] != before["rows"]
    assert command(monkeypatch, baseline) == 0


def test_accepting_needs_a_reason(baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = baseline.read_bytes()
    assert command(monkeypatch, baseline, "--accept", " ") == 2
    assert "reason" in capsys.readouterr().err
    assert baseline.read_bytes() == before


def test_other_weights_are_not_compared(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeBackbone, "fingerprint", "0" * 16)
    assert command(monkeypatch, baseline) == 2
    assert "other weights" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}', '{"rows": [[1, 2]]}'])
def test_a_damaged_baseline(
    content: str, baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.write_text(content)
    assert command(monkeypatch, baseline) == 2
    error = capsys.readouterr().err
    assert "damaged" in error
    assert error.count("\n") == 1


# --- comparison ---------------------------------------------------------------------------------------------------


def frame(**pixels: list[int]) -> pd.DataFrame:
    """One expression with a union of 100 per number; keyword = split."""
    rows: list[dict[str, Any]] = []
    for split, inner in pixels.items():
        for k, value in enumerate(inner):
            place = {"sample": f"refcoco:{split}:{k}", "expression": k}
            rows.append({"pruner": "trim", "budget": 64, "seed": 0, **place, "intersection": value, "union": 100})
    return pd.DataFrame(rows)


LIMITS = {"tolerance": 2.0, "split_tolerance": 6.0, "paired_tolerance": 1.0}


def test_unchanged_masks_are_no_change() -> None:
    found = gate.compare(frame(val=[50, 60]), frame(val=[50, 60]), LIMITS)
    assert (found.cells, found.changes, found.worse) == (1, (), ())


def test_falls_within_the_tolerance_pass() -> None:
    fell = gate.compare(frame(val=[50, 60]), frame(val=[48, 58]), LIMITS)
    assert fell.worse == ()
    assert (fell.changes[0].fell, fell.changes[0].rose, fell.changes[0].of) == (2, 0, 2)
    assert gate.compare(frame(val=[50, 60]), frame(val=[60, 70]), LIMITS).worse == ()


def test_a_fall_beyond_the_tolerance_names_the_expressions_that_lost_most() -> None:
    (change,) = gate.compare(frame(val=[50, 60, 70]), frame(val=[52, 40, 61]), LIMITS).worse
    assert (change.pruner, change.budget) == ("trim", 64)
    assert change.reasons[0] == "more than 2 points"
    assert (change.before, change.after) == pytest.approx((60, 51))
    assert (change.fell, change.rose, change.of) == (2, 1, 3)
    assert [str(moved) for moved in change.moved[:2]] == [
        "refcoco:val:1 expression 1: IoU 60.0 -> 40.0",
        "refcoco:val:2 expression 2: IoU 70.0 -> 61.0",
    ]


def test_a_fall_in_one_split_does_not_hide_behind_the_others() -> None:
    (change,) = gate.compare(frame(val=[50] * 9, testA=[50]), frame(val=[50] * 9, testA=[40]), LIMITS).worse
    assert change.reasons == ("refcoco:testA 50.00 -> 40.00",)
    assert "testA" in str(change)


def test_a_small_fall_that_all_images_share_is_found_and_flips_are_not() -> None:
    before = [40 + k for k in range(40)]
    together = gate.compare(frame(val=before), frame(val=[value - 1 - (k % 2) for k, value in enumerate(before)]), LIMITS)
    assert "fell by 1.50 points on average and together" in together.worse[0].reasons[0]
    flips = [value - (58 if k == 20 else 0) for k, value in enumerate(before)]  # one expression lost all it had
    assert gate.compare(frame(val=before), frame(val=flips), LIMITS).worse == ()


def test_the_largest_fall_comes_first() -> None:
    before, after = frame(val=[50, 60]), frame(val=[45, 55])
    other = pd.concat([before, before.assign(pruner="fastv")]), pd.concat([after, before.assign(pruner="fastv", intersection=20)])
    found = gate.compare(*other, LIMITS)
    assert [change.pruner for change in found.worse] == ["fastv", "trim"]


def test_a_run_that_lacks_results_is_not_compared() -> None:
    with pytest.raises(UserError, match="1 results that this run lacks"):
        gate.compare(frame(val=[50, 60]), frame(val=[50]), LIMITS)


def test_the_committed_baseline_is_small_and_complete() -> None:
    path = Path(__file__).parent.parent / "results" / "baseline.json"
    content = gate.read_baseline(path)
    assert path.stat().st_size < 300_000
    assert content["history"][-1]["reason"]
    rows = pd.DataFrame(content["rows"], columns=[*gate.PAIR, "intersection", "union"])
    counts = rows.groupby(gate.KEY).size()
    assert counts.nunique() == 1  # every pruner on the same expressions
    assert set(rows["pruner"]) >= {"none", "random", "litelvlm", "fastv", "visionzip", "prumerge", "vispruner", "trim"}
