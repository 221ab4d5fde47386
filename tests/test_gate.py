"""The gate: passes on unchanged code, names what fell, and catches a pruner that was broken on purpose."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import cli
from harness.gate import baseline as files
from harness.gate import check as gate
from harness.gate import comparison
from harness.plan import Plan
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


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline of a fake backbone with a plugin pruner; `plugin.py` beside it. To be copied."""
    folder = tmp_path_factory.mktemp("accepted")
    root = write_data(folder / "data")
    (folder / "plugin.py").write_text(SOUND.replace("SIGN", "1"))
    subset = Plan("none,random,contrast", (16,), "refcoco", limit=4, data=str(root), backbones=("fake",))
    with pytest.MonkeyPatch.context() as patch:
        known(patch)
        patch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
        patch.setattr(gate, "DRAWS", 1)
        gate.accept(folder / "baseline.json", "first numbers", (str(folder / "plugin.py"),), subset)
    return folder


@pytest.fixture
def baseline(accepted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One's own copy."""
    known(monkeypatch)
    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    monkeypatch.setattr(gate, "DRAWS", 1)
    for name in ("plugin.py", "baseline.json"):
        shutil.copy(accepted / name, tmp_path / name)
    return tmp_path / "baseline.json"


def command(monkeypatch: pytest.MonkeyPatch, baseline: Path, *words: str) -> int:
    plugin = baseline.with_name("plugin.py")
    monkeypatch.setattr(
        sys, "argv", ["harness", "gate", "--baseline", str(baseline), "--plugin", str(plugin), *words]
    )
    return cli.main()


def test_unchanged_code_passes(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, baseline) == 0
    assert "0 of 5" in capsys.readouterr().out  # none, contrast, random with three seeds


def test_a_broken_pruner_is_caught_and_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline) == 1
    told = capsys.readouterr().out
    failed = [line for line in told.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith("failed: contrast at 16 tokens")
    assert "cIoU" in failed[0]
    assert "expressions fell" in failed[0]
    assert "    all splits: mean IoU" in told
    assert "    kept tokens changed for" in told
    named = [line for line in told.splitlines() if line.startswith("    refcoco:") and ": IoU" in line]
    assert 1 <= len(named) <= comparison.NAMED
    assert all("->" in line for line in named)
    assert "1 of 5" in told


def test_a_broken_ranking_is_caught_in_every_pruner_that_uses_it(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the lowest stay
    monkeypatch.setattr("pruners.base.top", lambda score, count: score.argsort(dim=-1)[..., :count])
    assert command(monkeypatch, baseline) == 1
    told = capsys.readouterr().out
    assert "gate: 4 of 5" in told  # contrast, random with three seeds
    assert told.count("    kept tokens changed for") == 4


def test_a_pruner_that_got_better_by_other_tokens_needs_a_reason_too(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline, "--accept", "worse on purpose") == 0
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "1"))
    capsys.readouterr()
    assert command(monkeypatch, baseline) == 1
    told = capsys.readouterr().out
    assert "failed: contrast at 16 tokens" in told
    assert "    kept tokens changed for" in told
    assert "    all splits: mean IoU" not in told


def test_a_pruner_that_the_baseline_does_not_know_is_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = gate.read_baseline(baseline)
    content["rows"] = [row for row in content["rows"] if row[0] != "contrast"]
    content["cells"] = [cell for cell in content["cells"] if cell["pruner"] != "contrast"]
    files.write_baseline(baseline, content)
    assert command(monkeypatch, baseline) == 0
    assert "not in the baseline: contrast at 16" in capsys.readouterr().out


def test_a_pruner_that_the_run_lacks_is_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = gate.read_baseline(baseline)
    content["subset"]["pruners"] = "none,random"
    files.write_baseline(baseline, content)
    assert command(monkeypatch, baseline) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "nothing of contrast at 16" in error


def test_failed_samples_are_told_and_not_compared(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = FakeBackbone._encode

    def fail(self: FakeBackbone, pixels: Any, done: list[int] = []) -> Any:  # noqa: B006
        if not done or len(done) == 1:  # alone and together
            done.append(1)
            raise RuntimeError("no usable pixels")
        return encode(self, pixels)

    monkeypatch.setattr(FakeBackbone, "_encode", fail)
    assert command(monkeypatch, baseline) == 2
    error = capsys.readouterr().err
    assert "1 samples of the gate's subset failed, first refcoco:" in error
    assert "no usable pixels" in error


def test_accepting_keeps_all_reasons(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(baseline.read_text())
    baseline.with_name("plugin.py").write_text(SOUND.replace("SIGN", "-1"))
    assert command(monkeypatch, baseline, "--accept", "the sign was wrong") == 0
    after = json.loads(baseline.read_text())
    assert [entry["reason"] for entry in after["history"]] == ["first numbers", "the sign was wrong"]
    assert after["subset"] == before["subset"]
    assert after["rows"] != before["rows"]
    assert command(monkeypatch, baseline) == 0


def test_a_baseline_of_another_format_is_renewed_and_keeps_its_reasons(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(baseline.read_text())
    baseline.write_text(json.dumps({name: content[name] for name in ("subset", "history")} | {"format": 9}))
    assert command(monkeypatch, baseline) == 2
    assert "has format 9, this version reads 2; renew it with" in capsys.readouterr().err
    assert command(monkeypatch, baseline, "--accept", "new format") == 0
    assert [entry["reason"] for entry in gate.read_baseline(baseline)["history"]] == [
        "first numbers",
        "new format",
    ]


def test_accepting_needs_a_reason(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": []}', '{"rows": [[1, 2]]}', "[" * 100_000])
def test_a_damaged_baseline(
    content: str, baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline.write_text(content)
    assert command(monkeypatch, baseline) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "damaged" in error


def _twice(content: dict[str, Any]) -> None:
    content["rows"].append(content["rows"][0])
    content["cells"][0]["rows"] += 1
    first = next(cell for cell in content["cells"] if cell["pruner"] == content["rows"][0][0])
    first["kept"] = files.pack([*files.unpack(first["kept"], first["rows"] - 1, 64), "AAAAAAAAAAA="])


def _more_than_the_union(content: dict[str, Any]) -> None:
    content["rows"][3][5] = content["rows"][3][6] + 1


def _half_a_pixel(content: dict[str, Any]) -> None:
    content["rows"][3][5] = 0.5


def _a_row_less(content: dict[str, Any]) -> None:
    content["rows"].pop()


def _no_rounding(content: dict[str, Any]) -> None:
    content["cells"][0]["rounding"]["tokens"] = float("nan")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_twice, "twice"),
        (_more_than_the_union, "as intersection and"),
        (_half_a_pixel, "has 0.5 as intersection"),
        (_a_row_less, "where its cell has"),
        (_no_rounding, "holds"),
    ],
)
def test_a_baseline_that_cannot_be(damage: Any, said: str, baseline: Path) -> None:
    content = gate.read_baseline(baseline)
    damage(content)
    files.write_baseline(baseline, content)  # with a checksum that fits
    with pytest.raises(UserError, match=f"damaged.*{said}"):
        gate.read_baseline(baseline)


def test_no_flipped_bit_of_a_baseline_is_believed(baseline: Path) -> None:
    whole, content = baseline.read_bytes(), gate.read_baseline(baseline)
    draw = np.random.default_rng(0)
    for place in draw.integers(0, len(whole), 150):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        baseline.write_bytes(bytes(flipped))
        try:
            assert gate.read_baseline(baseline) == content  # a blank or a line's end became another
        except UserError as error:
            assert "baseline" in str(error)


def test_kept_tokens_are_packed_and_unpacked() -> None:
    bitmaps = ["AAAAAAAAAAA=", "/////////wA=", "/////////wA="]
    assert files.unpack(files.pack(bitmaps), 3, 64) == bitmaps
    for rows, patches in ((2, 64), (4, 64), (3, 72)):
        with pytest.raises(files.Damaged, match="not those of"):
            files.unpack(files.pack(bitmaps), rows, patches)


# --- the file, from rows that are written by hand


def by_hand() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of two cells that take turns, and what a baseline holds of them."""
    rows = pd.DataFrame(
        {
            "pruner": ["trim", "none", "trim"],
            "budget": [2, 8, 2],
            "seed": 0,
            "sample": ["s:v:1", "s:v:1", "s:v:2"],
            "expression": [4, 4, 5],
            "intersection": [3, 5, 0],
            "union": [6, 6, 0],
            "tokens_final": [2, 8, 2],
            "tokens_mean": [2.0, 8.0, 2.5],
            "kept": ["wA==", "/w==", "AQ=="],
        }
    )
    worst = {("trim", 2, 0): {"tokens": 1, "lost": 0, "falls": {}}, ("none", 8, 0): comparison.STEADY}
    content = {
        **{name: {} for name in files.HEAD},
        "format": files.FORMAT,
        "patches": 8,
        "cells": files.baseline_cells(rows, {("trim", 2): 7}, worst),
        "rows": rows[[*files.PAIR, *files.PIXELS]].values.tolist(),
    }
    return rows, content


def test_what_belongs_to_a_cell_stands_once() -> None:
    """And row by row where it differs."""
    trim, none = by_hand()[1]["cells"]
    assert (trim["rows"], trim["tokens_final"], trim["tokens_mean"], trim["macs"]) == (2, 2, [2.0, 2.5], 7)
    assert (none["rows"], none["tokens_final"], none["tokens_mean"], none["macs"]) == (1, 8, 8.0, None)
    assert (trim["pruner"], trim["budget"], trim["seed"], trim["rounding"]["tokens"]) == ("trim", 2, 0, 1)


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    rows, content = by_hand()
    files.write_baseline(tmp_path / "new" / "baseline.json", content)
    found = files.read_baseline(tmp_path / "new" / "baseline.json")
    pd.testing.assert_frame_equal(files.frame(found)[rows.columns], rows, check_dtype=False)
    text = (tmp_path / "new" / "baseline.json").read_text()
    assert sum(line.startswith(('["', '{"')) for line in text.splitlines()) == 5  # a line each


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": -1}, "holds"),
        ({"lost": float("inf")}, "holds"),
        ({"falls": {"one split": {"cIoU": -0.5}}}, "holds"),
        ({"falls": {"one split": {"cIoU": float("nan")}}}, "holds"),
        ({"falls": {"one split": {"cIoU": 0.0}}, "tokens": 0, "lost": 0}, None),
    ],
)
def test_rounding_is_from_0_on(change: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    content = by_hand()[1]
    content["cells"][0]["rounding"] = content["cells"][0]["rounding"] | change
    files.write_baseline(tmp_path / "baseline.json", content)
    if said is None:
        assert files.read_baseline(tmp_path / "baseline.json")["patches"] == 8
    else:
        with pytest.raises(UserError, match=f"the cell of trim at 2 tokens {said}"):
            files.read_baseline(tmp_path / "baseline.json")


def test_costs_are_from_0_on(tmp_path: Path) -> None:
    content = by_hand()[1]
    for macs, sound in ((0, True), (-1, False)):
        content["cells"][0]["macs"] = macs
        files.write_baseline(tmp_path / "baseline.json", content)
        if sound:
            files.read_baseline(tmp_path / "baseline.json")
        else:
            with pytest.raises(UserError, match="damaged"):
                files.read_baseline(tmp_path / "baseline.json")


def test_rows_and_cells_belong_together() -> None:
    content = by_hand()[1]
    for change, said in (
        ({"cells": content["cells"][:1]}, "1 rows of none at 8 tokens, where its cell has None"),
        ({"rows": content["rows"][1:]}, "1 rows of trim at 2 tokens, where its cell has 2"),
        ({"rows": content["rows"][::2]}, "no rows of none"),
        ({"rows": [], "cells": []}, "no rows of any pruner"),
    ):
        with pytest.raises(files.Damaged, match=said):
            files.frame(content | change)


def test_a_baseline_of_before_plans_names_one_backbone() -> None:
    plan = gate.plan_of({"backbone": "fake", "pruners": "none", "limit": 3})
    assert (plan.backbones, plan.limit, plan.device) == (("fake",), 3, "cpu")
