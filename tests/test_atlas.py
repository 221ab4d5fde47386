"""The failure atlas: losses, factors and associations whose answers are known, boundary IoU against the
official recipe written out, runs that tell nothing refused, and a whole atlas through the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from backbones.parts.clips import BETWEEN, run_lengths
from harness import cli
from harness.diagnosis import boundary
from harness.diagnosis.association import explained
from harness.diagnosis.atlas import Atlas, atlas, measure_atlas, worst
from harness.diagnosis.factors import measure_factors
from harness.diagnosis.words import said
from pruners import UserError
from reports import atlas_page
from reports.atlas import frames_of, markdown
from reports.atlas_findings import findings
from reports.gallery import recorded_picture
from tests.a_run import some_rows, store
from tests.browser import PROGRAM, chromium, opened
from tests.fake_backbone import known, write_data

HEIGHT, WIDTH = 40, 60
SETTING = {
    "backbone": "glamm-mini",
    "fingerprint": "a1",
    "protocol": "each",
    "answers": "forced",
    "device": "cpu",
    "dtype": "float32",
    "attn": "sdpa",
    "model": "",
    "evaluation": "e",
}
SIDES = (4, 8, 12, 20)  # of referents, a quarter of the images each


def box(side: int, top: int = 8, left: int = 20, share: float = 1.0) -> np.ndarray[Any, Any]:
    """A square, or its upper part."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + round(side * share), left : left + side] = True
    return mask


def answer(
    pruner: str, image: int, mask: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], **facts: Any
) -> dict[str, Any]:
    """A record as the store reads it."""
    inner, outer = int((mask & truth).sum()), int((mask | truth).sum())
    return {
        "pruner": pruner,
        "budget": 576 if pruner == "none" else 64,
        "seed": 0,
        "sample": f"refcoco:val:{image}",
        "expression": 0,
        "cluster": f"train2014/{image}.jpg",
        "frames": 1,
        "coverage": 0.5,
        "mask": run_lengths(mask),
        "intersection": inner,
        "iou": inner / outer if outer else 1.0,
        "positions": "compact",
        "own_positions": False,
        "kind": "method",
        "budget_kind": "final",
        "geometry": "whole",
        **SETTING,
    } | facts


def asked(
    image: int, truth: np.ndarray[Any, Any], text: str = "the red star", **facts: Any
) -> dict[str, Any]:
    """A sample as the store reads it."""
    return {
        "sample": f"refcoco:val:{image}",
        "expression": 0,
        "text": text,
        "dataset": "refcoco",
        "split": "val",
        "height": HEIGHT,
        "width": WIDTH,
        "truth": run_lengths(truth),
        "image": "",
        "group": "",
        "content": None,
    } | facts


def measured(rows: list[dict[str, Any]], samples: list[dict[str, Any]]) -> Atlas:
    return measure_atlas(pd.DataFrame(rows), pd.DataFrame(samples), Path("run"))


def small_ones_lost(images: int = 40) -> Atlas:
    """`none` and `fine` are right; `blind` keeps half of the smallest referents and all of the others."""
    rows, samples = [], []
    for image in range(images):
        side = SIDES[image % 4]
        truth = box(side)
        samples.append(asked(image, truth, f"the {'big ' * (image // 4 % 3)}star"))
        lost = 0.5 if side == SIDES[0] else 1.0
        rows += [
            answer("none", image, truth, truth),
            answer("fine", image, truth, truth, coverage=(image % 5) / 5),
            answer("blind", image, box(side, share=lost), truth, coverage=(image % 7) / 7),
        ]
    return measured(rows, samples)


# -- losses by factor


def test_a_method_that_loses_small_referents_is_found_and_the_others_are_not() -> None:
    found = small_ones_lost()
    assert found.lines["pruner"].tolist() == ["fine", "blind"], "the smallest loss first"
    area = found.bins[(found.bins["factor"] == "area") & (found.bins["pruner"] == "blind")]
    assert area["loss"].tolist() == pytest.approx([0.5, 0, 0, 0])
    assert area["expressions"].tolist() == area["images"].tolist() == [10, 10, 10, 10]
    assert area["to"].tolist() == pytest.approx([side * side / (HEIGHT * WIDTH) for side in SIDES])
    contrasts = found.contrasts.set_index(["pruner", "factor"])
    row = contrasts.loc["blind", "area"]
    assert row["difference"] == pytest.approx(-0.5) and row["difference high"] < -0.4 and row["q"] < 0.05
    assert contrasts.loc["fine", "area"]["q"] == 1
    assert not (contrasts.loc["blind", "words"]["q"] < 0.05)
    told = findings(found)
    start = "The smallest referents lose more than the largest beyond chance in 1 of 2 rows"
    assert told["area"].startswith(start)
    assert "blind at 64: 50.0 against 0.0 points, difference -50.0" in told["area"]
    assert "cannot be told" in told["words"]
    assert "crop" in found.unknown and "sees all of every image" in told["crop"]
    assert "`downsample` is not in the run" in told["difficulty"]
    text = markdown(found, "python -m harness study atlas --run run")
    assert all(sentence in text for sentence in told.values())
    assert "`python -m harness study atlas" in text


def test_few_images_tell_nothing() -> None:
    found = small_ones_lost(8)
    told = findings(found)
    assert all("cannot be told" in told[name] for name in ("area", "words", "explained"))
    assert found.bins["loss low"].isna().all()
    told = findings(small_ones_lost(4))
    assert "boundary IoU loses more or less than IoU cannot be told from 4 images" in told["boundary"]


def test_losses_are_paired_and_seeds_are_averaged() -> None:
    truth = box(8)
    rows = [answer("none", 0, box(8, share=0.5), truth), answer("none", 1, truth, truth)]
    for seed, share in enumerate((0.25, 0.75)):
        for image in (0, 1):
            rows.append(answer("random", image, box(8, share=share), truth, seed=seed, coverage=share))
    found = measured(rows, [asked(image, truth) for image in (0, 1)])
    assert found.answers["iou"].tolist() == pytest.approx([0.5, 0.5])
    assert found.answers["loss"].tolist() == pytest.approx([0.0, 0.5])
    assert found.answers["coverage"].tolist() == pytest.approx([0.5, 0.5])
    assert found.expressions["full"].tolist() == pytest.approx([0.5, 1.0])


def test_positions_of_one_method_are_two_rows() -> None:
    truth = box(8)
    rows = [answer(name, 0, truth, truth) for name in ("none", "trim")]
    kept = answer("trim", 0, box(8, share=0.5), truth, positions="kept")
    found = measured([*rows, kept], [asked(0, truth)])
    assert found.lines["pruner"].tolist() == ["trim", "trim, positions kept"]


def test_what_lacks_a_truth_or_an_answer_is_left_out_and_counted() -> None:
    truth = box(8)
    rows = [answer(name, image, truth, truth) for name in ("none", "trim") for image in range(4)]
    samples = [asked(image, truth) for image in range(4)]
    samples[1]["truth"] = ""
    found = measured(rows[:-1], samples)
    assert found.left_out == 2 and found.answers["place"].tolist() == [0, 2]


# -- factors


@pytest.mark.parametrize(
    ("text", "words", "noun", "look"),
    [
        ("the small red star that is left of the ring", 10, "star", {"small", "red", "star"}),
        ("left blue one", 3, "", {"blue"}),
        ("man in a blue shirt", 5, "man", {"man"}),
        ("guy's left-hand glove", 3, "glove", {"guy's", "left-hand", "glove"}),
        ("bottommost stars", 2, "star", {"star"}),
        ("left", 1, "", set()),
        ("", 0, "", set()),
    ],
)
def test_what_an_expression_calls_its_referent(text: str, words: int, noun: str, look: set[str]) -> None:
    found = said(text)
    assert (found.words, found.noun, set(found.look)) == (words, noun, look)


def test_objects_of_one_name_are_counted_per_image_and_once() -> None:
    truths = [box(4, left=left) for left in (0, 10, 20, 30)]
    texts = ["red star", "the star on the left", "ring", "the big one"]
    pairs = list(zip(truths, texts, strict=True))
    samples = [asked(0, truth, text, expression=k) for k, (truth, text) in enumerate(pairs)]
    samples.append(asked(0, truths[0], "star at the top", expression=4))  # the first referent once more
    rows = [
        answer(name, 0, truth, truth, expression=k)
        for name in ("none", "trim")
        for k, truth in enumerate([*truths, truths[0]])
    ]
    alike = measured(rows, samples).expressions["alike"].tolist()
    assert alike[:3] == [1, 1, 0] and np.isnan(alike[3]) and alike[4] == 1


def test_places_on_paper() -> None:
    """60 x 40 px: a centre crop sees columns 10 to 50."""
    truth = box(10, top=6, left=5)
    rows = pd.DataFrame([answer("none", 0, truth, truth, place=0)])
    samples = pd.DataFrame([asked(0, truth, cluster="0")])
    factors, scores = measure_factors(samples, rows, "centre-crop")
    assert factors.loc[0, ["area", "edge", "crop"]].tolist() == pytest.approx([100 / 2400, 5 / 40, -5 / 40])
    assert scores.tolist() == [1.0]
    factors, _ = measure_factors(samples, rows, "regions")
    assert np.isnan(factors.loc[0, "crop"]), "only the model knows where its views lie"


def test_frames_of_a_clip_are_averaged() -> None:
    truths = [box(4), np.zeros((HEIGHT, WIDTH), dtype=bool), box(8)]
    masks = [box(4), np.zeros((HEIGHT, WIDTH), dtype=bool), box(8, left=40)]
    text, wrote = (BETWEEN.join(map(run_lengths, frames)) for frames in (truths, masks))
    rows = pd.DataFrame([answer("none", 0, masks[0], truths[0], frames=3, place=0) | {"mask": wrote}])
    samples = pd.DataFrame([asked(0, truths[0], cluster="0") | {"truth": text}])
    factors, scores = measure_factors(samples, rows, "whole")
    assert factors["area"].tolist() == pytest.approx([(16 + 64) / 2 / 2400]), "where it is seen"
    assert scores.tolist() == pytest.approx([(1 + 1 + 0) / 3])


def test_a_mask_that_is_not_the_counted_one_is_refused() -> None:
    truth = box(8)
    rows = [answer("none", 0, truth, truth), answer("trim", 0, truth, truth, intersection=63)]
    told = r"mask of trim on refcoco:val:0 is not the one .* \(64 pixels .* not 63\)"
    with pytest.raises(UserError, match=told):
        measured(rows, [asked(0, truth)])
    clip = [row | {"frames": 2} for row in rows]
    with pytest.raises(UserError, match="mask of none on refcoco:val:0 has 1 frames where its truth has 2"):
        measured(clip, [asked(0, truth) | {"truth": BETWEEN.join([run_lengths(truth)] * 2)}])


# -- coverage


def test_coverage_that_is_the_loss_explains_all_of_it_and_another_nothing() -> None:
    rows, samples = [], []
    for image in range(60):
        truth = box(20)
        share = (1 + image % 10) / 10
        samples.append(asked(image, truth, "star " * (1 + image // 10 % 3)))
        lost = box(20, share=share)
        rows += [
            answer("none", image, truth, truth),
            answer("all", image, lost, truth, coverage=share),
            answer("nothing", image, lost, truth, coverage=(image // 10) / 10),
        ]
    found = measured(rows, samples)
    table = found.explained.set_index("pruner")
    for name in ("alone", "partial"):
        assert table.loc["all", f"{name} R2"] == pytest.approx(1)
        assert table.loc["all", f"{name} R2 low"] > 0.99
        assert table.loc["nothing", f"{name} R2"] == pytest.approx(0, abs=1e-9)
        assert table.loc["nothing", f"{name} R2 low"] == 0
        assert table.loc["nothing", f"{name} q"] > 0.5
    assert "in 1 of 2 rows, and in 1 where all other factors" in findings(found)["explained"]


def test_shares_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(90, 2))
    x = z @ [1.0, -0.5] + rng.normal(size=90)
    y = z @ [2.0, 1.0] + 0.7 * x + rng.normal(size=90)
    images = np.repeat(np.arange(45), 2)

    def left(columns: np.ndarray[Any, Any]) -> float:
        design = np.column_stack([np.ones(90), columns])
        return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())

    alone, beside = explained(x, y, images), explained(x, y, images, z)
    assert alone.value == pytest.approx(1 - left(x[:, None]) / ((y - y.mean()) ** 2).sum())
    assert beside.value == pytest.approx(1 - left(np.column_stack([z, x])) / left(z))
    assert beside.low < beside.value < beside.high and beside.p < 0.01 and beside.r > 0


def test_what_another_factor_explains_is_not_coverage_s() -> None:
    rng = np.random.default_rng(2)
    z, images = rng.normal(size=200), np.arange(200)
    x, y = z + 0.5 * rng.normal(size=200), -z + 0.5 * rng.normal(size=200)
    alone, beside = explained(x, y, images), explained(x, y, images, z[:, None])
    assert alone.value > 0.4 and alone.r < 0
    assert beside.value < 0.05 and beside.low == 0
    assert np.isnan(explained(np.ones(200), y, images).value), "nothing varies"
    assert np.isnan(explained(x[:4], y[:4], images[:4], z[:4, None]).value), "as many numbers as unknowns"
    assert np.isnan(explained(z, y, images, z[:, None]).value), "the other factor is the same one"


# -- boundaries


def literal_boundary(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As `mask_to_boundary` of the official code: eroded d times by 3 x 3, with a border of zeros."""
    height, width = mask.shape
    distance = max(1, round(0.02 * float(np.sqrt(height**2 + width**2))))
    eroded = ndimage.binary_erosion(np.pad(mask, 1), np.ones((3, 3)), iterations=distance)[1:-1, 1:-1]
    return mask & ~eroded


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (7, 5), (40, 60), (63, 64), (64, 65), (128, 200), (480, 640), (2000, 70)]
)
def test_boundary_iou_is_the_official_one(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    noise = ndimage.gaussian_filter(rng.normal(size=(4, height, width)), (0, height / 12, width / 12))
    empty, full = np.zeros((1, height, width), dtype=bool), np.ones((1, height, width), dtype=bool)
    masks = np.concatenate([noise > np.median(noise), empty, full])
    distance = boundary.boundary_distance(height, width)
    bits = [boundary.decode_bits(run_lengths(mask), height, width) for mask in masks]
    edges = [boundary.inner_boundary(one, distance) for one in bits]
    literal = [literal_boundary(mask) for mask in masks]
    assert [boundary.pixels(edge) for edge in edges] == [int(edge.sum()) for edge in literal]
    for one, first in zip(edges, literal, strict=True):
        for other, second in zip(edges, literal, strict=True):
            outer = int((first | second).sum())
            expected = int((first & second).sum()) / outer if outer else 1.0
            assert boundary.boundary_iou(one, other) == expected


# -- hard and easy


def test_methods_swap_between_hard_and_easy_expressions() -> None:
    rows, samples = [], []
    for image in range(40):
        truth, hard = box(20), image % 2 == 0
        samples.append(asked(image, truth, text="star " * (1 + image % 3)))
        kept = {"none": 1.0, "downsample": 0.5 if hard else 1.0}
        kept |= {"sharp": 0.9 if hard else 0.8, "broad": 0.6 if hard else 1.0, "trim": 0.3}
        rows += [
            answer(name, image, box(20, share=share), truth, coverage=(image % 9) / 9)
            for name, share in kept.items()
        ]
    found = measured(rows, samples)
    assert found.split is not None
    board = found.split.board.set_index("pruner")
    shown = ["hard", "easy", "hard rank", "easy rank"]
    assert board.loc["sharp", shown].tolist() == pytest.approx([0.9, 0.8, 1, 2])
    assert board.loc["broad", shown].tolist() == pytest.approx([0.6, 1.0, 2, 1])
    assert np.isnan(board.loc["downsample", "hard rank"]), "its own score chose the halves"
    assert found.split.swaps[["hard better", "easy better"]].to_numpy().tolist() == [["sharp", "broad"]]
    counts = found.split.counts.iloc[0]
    assert counts["hard expressions"] == counts["easy images"] == 20
    told = findings(found)["difficulty"]
    assert (
        "At 64 tokens 20 of 40 expressions are hard" in told and "1 pair swaps places beyond chance" in told
    )
    assert "better on hard" in markdown(found, "")
    kept = [row for row in rows if row["cluster"] in {f"train2014/{image}.jpg" for image in range(6)}]
    assert (
        "whether two of them swap places cannot be told from so few"
        in findings(measured(kept, samples))["difficulty"]
    )


# -- runs that tell nothing


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        atlas(folder)
    return str(error.value)


def test_runs_that_tell_nothing_are_refused_in_a_sentence(tmp_path: Path) -> None:
    rows = [row for row in some_rows() if row["dataset"] == "refcocog"]
    bound = [row for row in rows if row["pruner"] == "none"]
    pruned = [row for row in rows if row["pruner"] != "none"]
    told = refused(store(tmp_path / "open", rows, finished=False))
    assert "is not finished" in told and "give its command again" in told
    told = refused(store(tmp_path / "pruned", pruned))
    assert "has no row of `none`" in told and "litelvlm" in told and "--pruners none" in told
    assert "unpruned row alone" in refused(store(tmp_path / "bound", bound))
    pooled = [row | {"coverage": None} for row in rows]
    assert "records no kept tokens of fastv(layer=3), litelvlm" in refused(store(tmp_path / "pooled", pooled))
    other = [row | {"backbone": "glamm", "cell": row["cell"] + "b"} for row in rows]
    told = refused(store(tmp_path / "two", [*rows, *other]))
    assert "several kinds of backbone (glamm, glamm-mini)" in told
    failed = [
        {
            name: row[name]
            for name in ("dataset", "split", "backbone", "protocol", "pruner", "budget", "seed", "cell")
        }
        | {
            "sample": row["sample"],
            "expression": -1,
            "place": -1,
            "of": 1,
            "status": "failed",
            "reason": "no",
        }
        for row in bound
    ]
    assert "no evaluated sample" in refused(store(tmp_path / "failed", failed))


# -- a whole one


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the fake backbone, and its atlas through the command line."""
    root = tmp_path_factory.mktemp("atlas")
    write_data(root / "data", images=12)
    with pytest.MonkeyPatch.context() as patch:
        known(patch)
        swept = ["--backbones", "fake", "--data", root / "data", "--datasets", "refcoco:val", "--limit", 0]
        swept += ["--pruners", "none,random,uniform,downsample", "--budgets", "8,16", "--costs", "off"]
        for words in ([*swept, "--out", root / "run"], ["study", "atlas", "--run", root / "run"]):
            patch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
            assert cli.main() == 0
    return root / "run" / "atlas"


def test_a_whole_atlas(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, page = ((whole / name).read_text() for name in ("atlas.md", "atlas.html"))
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)|\]\(([^)]*html)\)", text):
        assert (whole / "".join(name)).stat().st_size > 2000
    found = atlas(whole.parent)
    assert len(found.lines) == 6 and found.split is not None
    for name, table in frames_of(found).items():
        assert len(pd.read_csv(whole / f"{name}.csv")) == len(table), name
    assert "<script" not in page and "://" not in page
    assert len(page) < 2_000_000
    # every mean is there, and so are the worst behind it
    assert page.count("<details id=") == len(found.bins)
    examples = worst(found, 3)
    assert page.count('class="example"') == len(examples)
    assert page.count('class="shots"') == len(examples), "all images of so small a run have a picture"
    losses = found.answers["loss"].to_numpy()
    for (line, factor, place), part in examples.groupby(["line", "factor", "bin"]):
        bins = found.bins[(found.bins["line"] == line) & (found.bins["factor"] == factor)]
        mean = bins.set_index("bin").loc[place, "loss"]
        assert losses[part["answer"].iloc[0]] >= mean - 1e-9
        assert (np.diff(losses[part["answer"]]) <= 1e-9).all(), "the largest first"
    first = {path.name: path.read_bytes() for path in whole.iterdir() if path.suffix in (".csv", ".svg")}
    words = ["study", "atlas", "--run", str(whole.parent), "--out", str(whole.parent / "again")]
    monkeypatch.setattr(sys, "argv", ["python -m harness", *words])
    assert cli.main() == 0
    assert findings(found)["explained"] in capsys.readouterr().out
    assert {name: (whole.parent / "again" / name).read_bytes() for name in first} == first


def test_examples_without_a_picture_stay_and_a_full_page_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = atlas(whole.parent)
    assert "The page is full" not in (whole / "atlas.html").read_text()
    lost = atlas_page.recorded_picture(whole.parent, str(found.expressions["picture"].iloc[0]))

    def recorded(folder: Path, name: str) -> Path | None:
        path = recorded_picture(folder, name)
        return None if path == lost else path

    monkeypatch.setattr(atlas_page, "recorded_picture", recorded)
    text = atlas_page.html(found, whole, "command")
    shown = text.count('class="shots"')
    assert 0 < shown < text.count('class="example"') == len(worst(found, 3))
    assert "data:image/jpeg;base64,)" not in text and "The page is full" not in text
    monkeypatch.setattr(atlas_page, "BYTES", 20_000)
    text = atlas_page.html(found, whole, "command")
    assert text.count('class="shots"') < shown and "The page is full" in text


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
def test_the_page_opens_its_examples(whole: Path) -> None:
    pytest.importorskip("playwright")
    with chromium() as browser:
        one = opened(browser, whole / "atlas.html", width=420, phone=True)
        cell = one.page.locator("details").first
        cell.locator("summary").click()
        assert cell.locator(".shot i").first.bounding_box()["width"] > 50
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 420
        assert not one.complaints and len(one.requests) == 1


def test_what_a_study_needs_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["atlas"], "--run results/runs/<id>"),
        (["positions", "--run", "x"], "--run belongs to the study of atlas and ladder"),
        (["atlsa"], "atlas"),
    ):
        monkeypatch.setattr(sys, "argv", ["python -m harness", "study", *words])
        assert cli.main() == 2
        assert told in capsys.readouterr().err
