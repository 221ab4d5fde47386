"""Asking about one image: from Python, and drawn by the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.base import Backbone, Encoding, Grounded, Row
from backbones.image_answer import answer
from backbones.parts.geometry import Region, centre_crop, seen
from harness import cli
from harness.engine import single_image as attempt
from harness.engine.runner import Plan, prepare, run
from harness.store.records import load_records
from pruners import Selection, UserError, View, parse
from reports import render
from reports.overlay import draw_overlay
from tests.fake_backbone import SIDE, FakeBackbone, known, write_data

TEXT = "the red star"


def picture(height: int = 40, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", "try", *map(str, words)])
    return cli.main()


# -- in Python


def test_an_answer_has_mask_kept_tokens_and_time() -> None:
    found = FakeBackbone().ground(picture(), TEXT, pruner="uniform", budget=16)
    assert found.mask.shape == (40, 64)
    assert found.mask.dtype == np.bool_
    assert found.kept.shape == (SIDE * SIDE,)
    assert found.kept.sum() == found.tokens_final == found.tokens_mean == 16
    assert found.seconds > 0


def test_the_mask_follows_from_the_kept_tokens() -> None:
    few = FakeBackbone().ground(picture(), TEXT, pruner="uniform", budget=4)
    assert few.mask.sum() <= 4 * 40 * 64 / SIDE**2
    assert (few.mask <= np.kron(few.kept.reshape(SIDE, SIDE), np.ones((5, 8), dtype=bool))).all()


def test_none_keeps_all_tokens_whatever_the_budget() -> None:
    found = FakeBackbone().ground(picture(), TEXT, budget=4)
    assert found.kept.all()
    assert found.tokens_final == SIDE * SIDE


def test_a_layer_pruner_reports_its_mean_over_layers() -> None:
    found = FakeBackbone().ground(picture(), TEXT, pruner="fastv(layer=2)", budget=16)
    assert (found.tokens_final, found.tokens_mean) == (16, 40)


def test_images_come_as_file_picture_or_array(tmp_path: Path) -> None:
    array = picture()
    Image.fromarray(array).save(tmp_path / "image.png")
    model = FakeBackbone()
    first = model.ground(array, TEXT, pruner="litelvlm", budget=16)
    for image in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(array)):
        other = model.ground(image, TEXT, pruner="litelvlm", budget=16)
        assert (other.mask == first.mask).all()
        assert (other.kept == first.kept).all()


@pytest.mark.parametrize(
    "image", ["no/such.png", __file__, np.zeros((4, 4)), np.zeros((4, 4, 4), dtype=np.uint8), None]
)
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(UserError, match=r"cannot be read|An image is"):
        FakeBackbone().ground(image, TEXT)


def test_several_pruners_and_impossible_budgets_are_refused() -> None:
    with pytest.raises(UserError, match="names 2 pruners"):
        FakeBackbone().ground(picture(), TEXT, pruner="uniform,random")
    with pytest.raises(UserError, match="cannot keep 65"):
        FakeBackbone().ground(picture(), TEXT, pruner="uniform", budget=65)


def test_no_pruner_gains_from_the_signals_of_another() -> None:
    model = FakeBackbone()
    encoding = model.encode([picture()])[0]
    answer(model, encoding, TEXT, parse("visionzip")[0], 16)
    assert encoding.signals == {}


def test_one_encoding_serves_all_pruners() -> None:
    model = FakeBackbone()
    found = attempt.ask_pruners(model, picture(), TEXT, parse("none,uniform,fastv,oracle"), 16)
    assert model.encoded == [1]
    assert [one.name for one in found.answers] == ["none", "uniform", "fastv"]
    assert found.left_out == ("oracle",)
    assert {one.iou for one in found.answers} == {None}


def test_the_truth_gives_scores_and_lets_the_oracle_in() -> None:
    truth = np.zeros((40, 64), dtype=bool)
    truth[10:30, 16:40] = True
    found = attempt.ask_pruners(FakeBackbone(), picture(), TEXT, parse("uniform,oracle"), 16, truth)
    for one in found.answers:
        both, any_of = (one.answer.mask & truth).sum(), (one.answer.mask | truth).sum()
        assert one.iou == pytest.approx(both / any_of)
    with pytest.raises(UserError, match="sees the truth"):
        attempt.ask_pruners(FakeBackbone(), picture(), TEXT, parse("oracle"), 16)


class TwoHalves(FakeBackbone):
    """Sees the two halves of an image as two views."""

    geometry = "regions"

    def regions(self, height: int, width: int) -> tuple[Region, ...]:
        return (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)

    def views(self, encoding: Encoding, turns: Any, sample: str, masks: Any = None) -> list[View]:
        (whole,) = super().views(encoding, turns, sample)
        return [
            View(whole.patches, None, whole.grid, 1, whole.signal, sample, number=k, of=2, region=region)
            for k, region in enumerate(self.regions(*encoding.original))
        ]

    def ground_rows(self, rows: Any, share: bool = True) -> list[Grounded]:
        kept = [
            torch.cat([one.indices + SIDE * SIDE * k for k, one in enumerate(row.selections)]) for row in rows
        ]
        return [
            Grounded(torch.zeros(1, *row.encoding.original), (len(one),) * 4, one)
            for row, one in zip(rows, kept, strict=True)
        ]


def test_every_view_has_its_choice_its_patches_and_its_place(tmp_path: Path) -> None:
    """And whoever takes two views for one is told."""
    model = TwoHalves()
    found = model.ground(picture(), TEXT, "uniform", 16)
    assert found.kept.shape == (2 * SIDE * SIDE,) and found.kept.sum() == found.tokens_final == 32
    assert (found.kept[: SIDE * SIDE] == found.kept[SIDE * SIDE :]).all()
    left, right = np.zeros((2, 1, 40, 64), dtype=bool)
    left[:, :, :32], right[:, :, 32:] = True, True
    for number, mask in enumerate((left, right)):
        assert model.patch_shares(mask, number).min() == 1 and model.patch_shares(mask, 1 - number).max() == 0
    asked = attempt.ask_pruners(model, picture(), TEXT, parse("uniform"), 16)
    assert asked.regions == model.regions(40, 64)
    draw_overlay(asked, (SIDE, SIDE), 16, tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 5_000
    chosen = (Selection(torch.arange(2)), Selection(torch.arange(2)))
    with pytest.raises(ValueError, match="2 views"):
        _ = Row(model.encode([picture()])[0], (), parse("uniform")[0], 2, chosen).selection


def test_rows_of_two_views_are_recorded_as_such(tmp_path: Path) -> None:
    plan = Plan("none,uniform", (16,), "refcoco:val", data=str(write_data(tmp_path / "data")))
    model = TwoHalves()
    assert run(plan, model, prepare(plan, model), tmp_path / "run")
    frame = load_records(tmp_path / "run")
    assert set(frame["views"]) == {2} and not frame["coverage"].isna().any()
    assert set(frame["tokens_final"]) == {2 * 16, 2 * SIDE * SIDE}
    assert (frame.loc[frame["pruner"] == "none", "coverage"] == 1).all()
    assert "uniform" in render(tmp_path / "run")[0].read_text()


class Nowhere(TwoHalves):
    """Has views, and does not say where."""

    regions = Backbone.regions


def test_a_backbone_that_names_no_regions_is_told_so() -> None:
    with pytest.raises(UserError, match=r"backbone fake \(.*test_attempt.py.* define regions"):
        Nowhere().regions(40, 64)


# -- drawn


def test_kept_patches_cover_the_central_square() -> None:
    kept = np.zeros(4, dtype=bool)
    kept[1] = True  # top right of 2 x 2
    wide = seen((4, 10), kept, (2, 2), [centre_crop(4, 10)])
    assert wide.sum() == 4
    assert wide[0:2, 5:7].all()
    tall = seen((10, 4), kept, (2, 2), [centre_crop(10, 4)])
    assert tall[3:5, 2:4].all()
    assert tall.sum() == 4


def test_the_command_writes_one_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    Image.fromarray(picture(60, 90)).save(tmp_path / "photo.jpg")
    out = tmp_path / "new" / "seen.png"
    assert (
        command(monkeypatch, tmp_path / "photo.jpg", TEXT, "--backbone", "fake", "--budget", 16, "--out", out)
        == 0
    )
    told = capsys.readouterr().out
    assert "only the truth tells them what to keep: oracle" in told
    assert "litelvlm                   16 tokens" in told
    assert f"picture: {out}" in told
    with Image.open(out) as opened:
        assert min(opened.size) > 500


def test_without_an_image_there_is_a_scene_with_its_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    options = (
        "--backbone",
        "fake",
        "--pruners",
        "uniform,oracle",
        "--budget",
        16,
        "--out",
        tmp_path / "a.png",
    )
    assert command(monkeypatch, *options) == 0
    assert capsys.readouterr().out.count("IoU") == 2
    assert command(monkeypatch, "the blue ring", *options) == 0  # another expression: its truth is not known
    told = capsys.readouterr().out
    assert "IoU" not in told
    assert "left out, because only the truth tells them what to keep: oracle" in told


def test_the_same_input_gives_the_same_picture(tmp_path: Path) -> None:
    found = attempt.ask_pruners(FakeBackbone(), picture(), TEXT, parse("uniform"), 16)
    for name in ("a.png", "b.png"):
        draw_overlay(found, (SIDE, SIDE), 16, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such.png", "it"], "no_such.png"),
        (["photo.jpg"], "Add an expression"),
        (["photo.jpg", " "], "expression is empty"),
        (["--pruners", "litelvm"], "Did you mean 'litelvlm'?"),
        (["--budget", "99"], "cannot keep 99"),
        (["--out", "picture.xyz"], "picture.xyz"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("photo.jpg")
    assert (
        command(
            monkeypatch, *words, "--backbone", "fake", *([] if "--budget" in words else ["--budget", "8"])
        )
        == 2
    )
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("device: ")]
    assert len(error) == 1 and told in error[0]
