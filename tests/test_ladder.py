"""The oracle ladder: orders and pieces, least budgets and savings on paper, and a whole ladder on the fake
backbone."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness import cli, data
from harness.diagnosis import ladder
from harness.diagnosis.budgets import budgets_of, of_ladder
from harness.diagnosis.ladder import ALL, RUNGS, measure_ladder, orders_of, pieces_of
from pruners import UserError
from reports.ladder import sentence
from tests.fake_backbone import FakeBackbone, known, write_data

GRID = (6, 6)
COUNTS = (1, 2, 4, 8, 16, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), images=12)


def measured(
    root: Path, seed: int = 0, limit: int = 3, backbone: FakeBackbone | None = None
) -> ladder.Ladder:
    one = backbone or FakeBackbone()
    return measure_ladder(one, [("refcoco", "val")], limit, COUNTS, seed, str(root))


# -- which tokens


def a_share() -> np.ndarray[Any, Any]:
    """Patches 7 and 8 of a 6 x 6 grid are the referent's, the second one most."""
    share = np.zeros(36)
    share[[7, 8]] = 0.4, 0.9
    return share


def test_orders_of_the_rungs() -> None:
    orders = orders_of(a_share(), GRID, np.random.default_rng(0))
    assert set(orders) == set(RUNGS) - {"greedy"}
    assert orders["referent"] == (8, 7), "most covered first"
    assert orders["referent + ring"] == (8, 7, 0, 1, 2, 3, 6, 9, 12, 13, 14, 15)
    assert sorted(orders["random inside"]) == [7, 8]
    assert sorted(orders["random"]) == list(range(36))
    other = orders_of(a_share(), GRID, np.random.default_rng(1))
    assert other["random"] != orders["random"]


@pytest.mark.parametrize("seed", range(4))
def test_pieces_hold_every_patch_once_the_referents_first_and_near_ones_before_far_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    share = np.where(rng.random(24 * 24) < 0.1, rng.random(24 * 24), 0.0)
    referent = orders_of(share, (24, 24), rng)["referent"]
    pieces = pieces_of(referent, share, (24, 24))
    assert sorted(patch for piece in pieces for patch in piece) == list(range(576))
    own = [piece for piece in pieces if share[piece[0]] > 0]
    assert tuple(patch for piece in own for patch in piece) == referent
    assert len(own) <= ladder.OWN and pieces[: len(own)] == own
    assert max(map(len, pieces[len(own) :])) <= 9
    near = pieces_of((0,), np.eye(1, 576)[0], (24, 24))
    assert near[1] == (1, 2, 24, 25, 26, 48, 49, 50) and near[-1][-1] == 575


# -- least budgets


def rows(scores: dict[str, list[float]], images: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Expressions whose IoU at counts 1, 2, 4 and 8 is given, on `images` images; full IoU 1."""
    found, full = [], []
    for copy in range(images):
        for name, ious in scores.items():
            item = {"sample": f"{name} {copy}", "expression": 0, "image": f"{copy}"}
            full.append(item | {"full": 1.0})
            found += [
                item | {"rung": "r", "count": count, "tokens": count, "iou": iou}
                for count, iou in zip((1, 2, 4, 8), ious, strict=True)
            ]
    return pd.DataFrame(found), pd.DataFrame(full)


def test_least_budgets_on_paper() -> None:
    needs = budgets_of(
        *rows({"easy": [0.96, 0.2, 1, 1], "hard": [0, 0, 0, 0.95], "never": [0, 0, 0, 0.9]}), 10, ["r"]
    )
    least = needs.least.set_index("sample")
    assert least["tokens"].tolist() == [1, 8, 10] and least["reached"].tolist() == [True, True, False]
    assert needs.table.loc[0, "least"] == pytest.approx(19 / 3) and needs.table.loc[0, "median"] == 8
    assert needs.table.loc[0, "reached"] == pytest.approx(2 / 3)
    assert np.isnan(needs.table.loc[0, "least low"]), "one image"


def test_own_budgets_save_what_the_easy_ones_do_not_need() -> None:
    """Half of the expressions need one token, half of them eight: one budget for all is eight, own ones are
    four and a half on average (a little less of each for 95 %)."""
    needs = budgets_of(*rows({"easy": [1, 1, 1, 1], "hard": [0, 0, 0, 1]}, images=8), 10, ["r"])
    row = needs.table.iloc[0]
    # gIoU is 0.5 at 4 tokens and 1 at 8: 0.95 lies at 7.6; own budgets go from 1 token (0.5) to 4.5 (1)
    assert row["fixed"] == pytest.approx(7.6) and row["own"] == pytest.approx(1 + 0.9 * 3.5)
    assert row["saving"] == pytest.approx(1 - 4.15 / 7.6)
    assert row["saving low"] == pytest.approx(row["saving high"]), "all images are alike"
    same = budgets_of(*rows({"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}, images=8), 10, ["r"]).table.iloc[0]
    assert abs(same["saving"]) < 0.02, "where all need the same, own budgets save what straight lines do"


def test_what_beats_the_full_iou_is_no_gain_and_two_counts_are_no_curve() -> None:
    frame, full = rows({"lucky": [1.0, 1, 1, 1], "hard": [0, 0, 0, 1]}, images=8)
    luck = frame["sample"].str.startswith("lucky")
    full.loc[full["sample"].str.startswith("lucky"), "full"] = 0.5
    plain = frame.assign(iou=frame["iou"].where(~luck, 0.5))
    one, other = (budgets_of(table, full, 10, ["r"]).table.iloc[0] for table in (frame, plain))
    assert one["saving"] == other["saving"] and one["fixed"] == other["fixed"]
    few = budgets_of(frame[frame["count"] == 8], full, 10, ["r"]).table.iloc[0]
    assert np.isnan(few["saving"]) and np.isnan(few["fixed"]) and few["reached"] == 1


def test_nothing_can_be_kept_of_an_empty_answer() -> None:
    frame, full = rows({"a": [0, 0, 0, 0], "b": [0, 0, 1, 1]}, images=3)
    full.loc[full["sample"].str.startswith("a"), "full"] = 0.0
    needs = budgets_of(frame, full, 10, ["r"])
    assert needs.empty == needs.expressions == 3 and set(needs.least["tokens"]) == {4}


# -- a whole ladder


def test_a_ladder_of_the_fake_backbone(root: Path) -> None:
    found = measured(root)
    assert found.counts == (*COUNTS, 64) and found.left_out == 0
    table = found.rows.set_index(["sample", "expression", "rung", "count"])["iou"]
    samples = data.load_samples("refcoco", "val", str(root))[:3]
    assert len(found.full) == sum(len(sample.expressions) for sample in samples)
    backbone = FakeBackbone()
    for sample in samples:
        for expression, mask in zip(sample.expressions, sample.masks() == 1, strict=True):
            own = backbone.ground(sample.image(), expression.text, "none")
            iou = (own.mask & mask).sum() / (own.mask | mask).sum()
            assert table[sample.id, expression.id, ALL, 64] == pytest.approx(iou)
            oracle = backbone.ground(sample.image(), expression.text, "oracle", 2, mask)
            iou = (oracle.mask & mask).sum() / (oracle.mask | mask).sum()
            assert table[sample.id, expression.id, "referent", 2] == pytest.approx(iou), (
                "it ranks as the oracle"
            )
    scores = found.rows.pivot_table(index=["sample", "expression"], columns=["rung", "count"], values="iou")
    # the fake paints what tokens say, so the search finds what says most of the truth
    assert (scores["greedy", 1] >= scores["referent", 1] - 1e-9).all()
    assert scores["greedy", 8].mean() > scores["random", 8].mean()
    kept = found.rows.set_index(["rung", "count"])["tokens"]
    assert (kept["referent", 32].to_numpy() == found.full["inside"].to_numpy()).all(), (
        "no more than there are"
    )
    assert (kept["referent + ring", 32] == found.full["ringed"].clip(upper=32).to_numpy()).all()
    assert (kept["random", 32] == 32).all()


def test_the_same_seed_gives_the_same_ladder_whatever_the_batch_and_the_other_images(root: Path) -> None:
    one, again = measured(root), measured(root, backbone=FakeBackbone(batch_size=7))
    pd.testing.assert_frame_equal(one.rows, again.rows)
    fewer = measured(root, limit=1).rows
    pd.testing.assert_frame_equal(one.rows[: len(fewer)], fewer)
    other = measured(root, seed=1).rows
    drawn = one.rows["rung"].isin(["random", "random inside"])
    pd.testing.assert_frame_equal(one.rows[~drawn], other[~drawn])
    assert (one.rows[drawn]["iou"] != other[drawn]["iou"]).any()


def test_a_search_is_bounded_and_shares_what_it_looked_at(root: Path) -> None:
    backbone = FakeBackbone()
    found = measured(root, limit=1, backbone=backbone)
    assert sum(backbone.grounded) == found.evaluations, "no set of tokens is asked twice"
    tried = ladder.OWN + ladder.NEAREST + ladder.ROUNDS * (ladder.TRIED + 1)
    assert found.evaluations <= len(found.full) * (1 + tried + len(RUNGS) * len(COUNTS))
    assert len(backbone.encoded) == 1, "an image is encoded once"


def test_what_a_ladder_cannot_climb_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="has 64 visual tokens, so the ladder cannot keep 65; give --budgets 1 to 64"
    ):
        measure_ladder(FakeBackbone(), [("refcoco", "val")], 1, (65,), 0, str(root))
    clips = FakeBackbone()
    monkeypatch.setattr(clips, "medium", "video", raising=False)
    with pytest.raises(UserError, match=r"looks at images, and fake at clips"):
        measure_ladder(clips, [("refcoco", "val")], 1, (4,), 0, str(root))
    tiles = FakeBackbone()
    monkeypatch.setattr(tiles, "regions_of", lambda _: ((0, 0, 1, 1),) * 3)
    with pytest.raises(UserError, match="one view of an image, and fake makes 3"):
        measure_ladder(tiles, [("refcoco", "val")], 1, (4,), 0, str(root))


def test_the_sentence_says_when_it_cannot_tell(root: Path) -> None:
    found = measured(root)
    needs = of_ladder(found)
    told = sentence(found, needs)
    assert told.startswith("On fake, 95 % of an expression's full IoU takes")
    assert "cannot be told from so few images" in told and told.count(". ") == 0
    sure = needs.table.assign(**{"saving": 0.5, "saving low": 0.4, "saving high": 0.6})
    assert "saves at most 50 % of the tokens (95 % 40 to 60)" in sentence(found, replace(needs, table=sure))
    unsure = needs.table.assign(**{"saving": 0.1, "saving low": -0.4, "saving high": 0.3})
    assert "would save anything against one for all cannot be told" in sentence(
        found, replace(needs, table=unsure)
    )


def test_through_the_command_line_with_a_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = known(monkeypatch)

    def command(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
        return cli.main()

    images = ("--data", root, "--datasets", "refcoco:val", "--limit", 2)
    swept = (
        "--backbones",
        "fake",
        "--pruners",
        "none,random,oracle",
        "--budgets",
        "4,8,16",
        "--costs",
        "off",
    )
    assert command(*images, *swept, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    climbed = ("study", "ladder", "--backbone", "fake", *images, "--run", tmp_path / "run", "--out")
    assert command(*climbed, tmp_path / "one") == 0
    told, page = capsys.readouterr().out, (tmp_path / "one" / "ladder.md").read_text()
    assert "| referent + ring |" in told and "What the methods of the run need" in page and "| oracle" in page
    assert "`python -m harness study ladder" in page and "(ladder.svg)" in page
    table = pd.read_csv(tmp_path / "one" / "answers.csv")
    assert table["count"].max() == 64 and set(table["rung"]) == {*RUNGS, ALL}
    methods = pd.read_csv(tmp_path / "one" / "methods.csv").set_index("rung")
    assert methods.loc["oracle", "least"] <= methods.loc["random", "least"]
    assert command(*climbed, tmp_path / "two", "--budgets", "25%,4") == 0
    files = {path.name for path in (tmp_path / "two").iterdir()}
    assert {"ladder.md", "ladder.csv", "curves.csv", "least.csv", "ladder.svg", "ladder.png"} <= files
    assert sorted(set(pd.read_csv(tmp_path / "two" / "curves.csv")["count"])) == [4, 16, 64]
    monkeypatch.setattr(FakeBackbone, "fingerprint", "0" * 16)
    assert command(*climbed, tmp_path / "three") == 2
    assert "give --run a run of this backbone alone" in capsys.readouterr().err
    assert len(loaded) == 4
