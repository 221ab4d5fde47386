"""Costs on the command line, and what the benches compare."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from harness import cli, cost
from harness.cost import measure
from harness.cost.store import COSTS
from pruners import parse
from tests.bench import attention, literal
from tests.fake_backbone import known, write_data

pytestmark = pytest.mark.usefixtures("text_only")


@pytest.mark.parametrize("texts", [1, 3])
@torch.no_grad()
def test_cost_bench_compares_equal_selections(texts: int) -> None:
    given = attention.tower(torch.float64, texts, channels=64, shared=16, heads=4, width=288)
    for name, official in literal.OFFICIAL.items():
        for budget in (192, 64):
            assert attention.same(attention.ours(parse(name)[0], given, budget), official(given, budget)), (
                name,
                budget,
            )
    assert not attention.same(literal.trim(given, 64), literal.vispruner(given, 64))
    (row,) = attention.fastv(1, torch.float32, width=64, heads=4, inner=128)
    assert row["same_in_float64"]


# -- command line


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_cost_columns_of_the_main_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "ROUNDS", 2)
    words: tuple[object, ...] = ("--pruners", "uniform", "--budgets", "64", "--limit", 1, "--full")
    words += ("--datasets", "refshapes:val")
    assert command(monkeypatch, *words, "--out", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert (
        "- MACs G: multiply-adds" in told
        and "speed-up prefill" in told
        and "- speed-up total: the same" in told
    )
    before = (tmp_path / "run" / COSTS).read_bytes()
    assert command(monkeypatch, *words, "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / COSTS).read_bytes() == before and "speed-up prefill" in capsys.readouterr().out
    assert cost.load_costs(tmp_path / "run")["pruner"].tolist() == ["none", "uniform"], (
        "the baseline runs unasked"
    )
    shutil.rmtree(tmp_path / "run")
    assert command(monkeypatch, *words, "--out", tmp_path / "run", "--costs", "projected") == 0
    told = capsys.readouterr().out
    assert "MACs projected G" in told and "speed-up prefill" not in told and "- MACs G:" not in told
    shutil.rmtree(tmp_path / "run")
    assert command(monkeypatch, *words, "--out", tmp_path / "run", "--costs", "off") == 0
    assert "MACs" not in capsys.readouterr().out


def test_cost_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "cost",
        "--backbone",
        "glamm-mini",
        "--pruners",
        "fastv",
        "--budgets",
        "64",
        "--explain",
        "--attn",
        "eager",
    )
    assert command(monkeypatch, *words) == 0
    told = capsys.readouterr().out
    assert (
        "glamm-mini, projected" in told
        and "attention eager" in told
        and "activation_peak: most bytes" in told
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost", "--gpu", "h1000"], "Did you mean 'h100'?"),
        (["cost", "--backbone", "glamm7b"], "Did you mean 'glamm-7b'?"),
        (["cost", "--attn", "flash"], "flash_attention_2"),
        (["cost", "--text-tokens", "20"], "give 38 or more"),
        (["cost", "--budgets", "600"], "--budgets 1 to 576"),
        (["--costs", "measure"], "Did you mean 'measured'?"),
        (["--costs", "measured", "--tensor-parallel", "2"], "--tensor-parallel 1"),
    ],
)
def test_cost_mistakes_are_one_sentence(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and said in told


def test_cost_of_a_backbone_without_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    root = write_data(tmp_path / "data")
    words = (
        "--backbones",
        "fake",
        "--data",
        root,
        "--datasets",
        "refcoco:val",
        "--budgets",
        "8",
        "--pruners",
        "none",
    )
    assert command(monkeypatch, *words, "--out", tmp_path / "run") == 0, "off unless asked for"
    assert command(monkeypatch, *words, "--out", tmp_path / "other", "--costs", "measured") == 2
    assert "give --costs off" in capsys.readouterr().err and not (tmp_path / "other").exists(), (
        "said before anything runs"
    )
