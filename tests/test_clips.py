"""Clips through the engine: measured in their groups, frame by frame, the same for any number of workers, and
nothing that a damaged frame takes along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from backbones.base import Grounded, Row
from backbones.parts.clips import BETWEEN, Frames, decoded, run_lengths
from harness import data, metrics
from harness.engine.runner import Plan, Way, prepare, run
from harness.engine.truth import ClipTruth
from harness.metrics.video import means_of
from harness.store import records
from harness.store.rows import validate
from harness.store.run_folder import run_info
from pruners import UserError, parse
from tests.fake_backbone import SIDE, FakeBackbone
from tests.fake_video import FakeVideo, write_clips

pytestmark = pytest.mark.usefixtures("text_only")

DAVIS = (("ref-davis17", "val"),)


def plan_of(
    root: Path, pairs: tuple[tuple[str, str], ...] = DAVIS, pruners: str = "none,uniform,oracle"
) -> Plan:
    return Plan(tuple(parse(pruners)), (16,), pairs, data=str(root))


def done(plan: Plan, folder: Path, backbone: FakeVideo | None = None, **way: object) -> pd.DataFrame:
    backbone = backbone or FakeVideo()
    assert run(plan, backbone, prepare(plan, backbone), folder, Way(**way))  # type: ignore[arg-type]
    return records.load_records(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def frame(root: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return done(plan_of(root), tmp_path_factory.mktemp("runs") / "run")


def test_frames_are_decoded_when_asked_for_and_run_lengths_come_back() -> None:
    masks = np.random.default_rng(0).random((3, 7, 9)) < 0.4
    assert np.array_equal(decoded(BETWEEN.join(map(run_lengths, masks)), 7, 9), masks)
    clip = Frames.of([np.zeros((2, 2, 3), np.uint8)] * 7, window=3)
    assert clip.windows() == [range(3), range(3, 6), range(6, 7)]
    assert Frames.of(clip.images).windows() == [range(7)]


def test_answers_of_an_annotator_are_measured_together(root: Path, frame: pd.DataFrame) -> None:
    samples = {sample.id: sample for sample in data.load_samples(*DAVIS[0], root, "video")}
    for (sample, pruner, group), rows in frame.groupby(["sample", "pruner", "group"]):
        one = samples[str(sample)]
        places = [k for k, said in enumerate(one.expressions) if said.group == group]
        rows = rows.set_index("expression").loc[[one.expressions[k].id for k in places]]
        predictions = np.stack([decoded(mask, one.height, one.width) for mask in rows["mask"]])
        expected = metrics.measure(predictions, ClipTruth(one).of(places), "video", one.dataset)
        for row, counted in zip(rows.to_dict("records"), expected, strict=True):
            assert row["curves"].keys() == {
                name for name, value in counted.items() if isinstance(value, list)
            }
            assert {name: row[name] for name in ("j", "f", "j_fixed", "f_fixed")} == {
                name: counted[name] for name in ("j", "f", "j_fixed", "f_fixed")
            }, (sample, pruner, group)
            assert all([*row["curves"][name]] == counted[name] for name in row["curves"])
            assert means_of({name: list(value) for name, value in row["curves"].items()}) == (
                row["j"],
                row["f"],
            )
    assert frame["group"].nunique() == 4 and (frame["frames"] >= 5).all() and set(frame["views"]) == {2}


def test_expressions_without_an_annotator_are_measured_alone(root: Path, tmp_path: Path) -> None:
    rows = done(plan_of(root, (("mevis", "valid_u"),), "none"), tmp_path / "run")
    (sample,) = [
        one for one in data.load_samples("mevis", "valid_u", root, "video") if one.id.endswith("clip1")
    ]
    mine = rows[rows["sample"] == sample.id].set_index("expression")
    truth = ClipTruth(sample)
    for place, said in enumerate(sample.expressions):
        mask = decoded(str(mine.loc[said.id, "mask"]), sample.height, sample.width)
        (alone,) = metrics.measure(mask[None], truth.of([place]), "video", "mevis")
        assert (alone["j"], alone["f"]) == (mine.loc[said.id, "j"], mine.loc[said.id, "f"])


def test_void_pixels_are_no_target_and_cost_nothing(root: Path) -> None:
    sample = next(one for one in data.load_samples(*DAVIS[0], root, "video") if one.id.endswith("clip0"))
    truth = ClipTruth(sample).of([0])
    assert (truth[:, :, :2] == metrics.IGNORED).all() and set(np.unique(truth)) == {0, 1, 255}
    assert np.array_equal(truth[0], np.stack([sample.masks(k)[0] for k in range(len(sample.frames))]))
    seen = ClipTruth(sample).seen([0, 4], (0, 3))
    assert seen.shape == (2, 2, sample.height, sample.width) and not seen[:, :, :2].any()


def test_the_oracle_sees_the_truth_of_every_views_frame(frame: pd.DataFrame) -> None:
    oracle, uniform = (frame[frame["pruner"] == name] for name in ("oracle", "uniform"))
    assert oracle["coverage"].mean() > 0.9 > uniform["coverage"].mean()
    kept = records.kept_tokens(oracle["kept"].iloc[0], 2 * SIDE * SIDE).reshape(2, -1)
    assert kept.sum(1).tolist() == [16, 16] and not np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize("way", [{"workers": 2}, {"share": False}])
def test_digits_hang_neither_on_workers_nor_on_sharing(
    root: Path, frame: pd.DataFrame, tmp_path: Path, way: dict[str, object]
) -> None:
    other = done(plan_of(root), tmp_path / "run", **way)

    pd.testing.assert_frame_equal(frame, other)


def test_a_damaged_frame_fails_its_clip_alone(root: Path, tmp_path: Path, frame: pd.DataFrame) -> None:
    own = write_clips(tmp_path / "data")
    plan = plan_of(own)
    samples = data.load_samples(*DAVIS[0], own, "video")
    middle = samples[1].frames[2]  # of no view, so that it is met when masks are made
    middle.write_bytes(middle.read_bytes()[:300])
    rows = done(plan, tmp_path / "run", max_failures=0.5)
    assert set(rows["sample"]) == {one.id for one in samples} - {samples[1].id}
    (why,) = records.failures(tmp_path / "run").values()
    assert middle.name in why
    left = frame[frame["sample"].isin(rows["sample"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows.drop(columns="data"), left.drop(columns="data"))


class Swapping(FakeVideo):
    """Another process exchanges a frame of one clip after it was loaded, before its masks are made."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:
        if rows[0].sample.endswith("clip1"):
            Image.new("RGB", Image.open(self.path).size).save(self.path)
        return super().ground_rows(rows, share)


def test_a_clip_that_changes_while_it_is_grounded_becomes_no_number(root: Path, tmp_path: Path) -> None:
    own = write_clips(tmp_path / "data")
    plan = plan_of(own)
    clip = next(one for one in data.load_samples(*DAVIS[0], own, "video") if one.id.endswith("clip1"))
    rows = done(plan, tmp_path / "run", Swapping(clip.frames[2]))
    assert clip.id not in set(rows["sample"]) and rows["sample"].nunique() == 3
    assert "changed while the run went on" in records.failures(tmp_path / "run")[clip.id]


def test_what_is_not_public_is_answered_and_not_scored(root: Path, tmp_path: Path) -> None:
    rows = done(plan_of(root, (("ref-youtube-vos", "valid"),), "none"), tmp_path / "run")
    assert len(rows) and rows["mask"].str.len().min() > 3
    assert "j" not in rows and (rows["union"] == 0).all()
    assert (records.samples(tmp_path / "run")["truth"] == "").all()


def test_a_row_that_its_frames_do_not_make_is_refused(root: Path, tmp_path: Path) -> None:
    done(plan_of(root, pruners="none"), tmp_path / "run")
    cells = run_info(tmp_path / "run")["cells"]
    place = next((tmp_path / "run" / records.FOLDER).iterdir())
    row = next(row for row in records.rows_of(place) if row["status"] == "ok")
    assert validate(dict(row), cells)["curves"]
    more = row["curves"] | {"j_inner": [count + 1 for count in row["curves"]["j_inner"]]}
    for wrong, why in (
        ({"measures": row["measures"] | {"j": row["measures"]["j"] / 2 + 0.1}}, "its J and F are"),
        ({"curves": more}, "its J and F are|is not a part of its"),
        ({"curves": row["curves"] | {"j_inner": row["curves"]["j_inner"][:-1]}}, "has .* frames"),
        ({"mask": row["mask"].rpartition(" ")[0]}, "its mask has"),
        ({"frames": row["frames"] + 1}, "its mask has .* frames and its clip"),
        ({"mask": ""}, "its mask has 0 frames"),
        ({"curves": {}}, "it has no j_inner"),
        ({"curves": {}, "measures": {}}, "neither J and F nor their frames"),
        ({"measures": {}}, "its J and F are"),
        *(
            ({"measures": {key: value for key, value in row["measures"].items() if key != name}}, why)
            for name, why in (("j", "its J and F are"), ("f_fixed", "no f_fixed"), ("n_rest", "no n_rest"))
        ),
        *(
            ({"measures": row["measures"] | {name: value}}, name)
            for name, value in (("j_fixed", 2.0), ("n_rest", -1), ("n_rest", 0.5), ("j_rest", 1.5))
        ),
    ):
        with pytest.raises(ValueError, match=why):
            validate(row | wrong, cells)


def test_backbones_get_the_data_that_they_can_look_at(root: Path, tmp_path: Path) -> None:
    plan = replace(plan_of(root), datasets="all")
    assert {split.name[0] for split in prepare(plan, FakeVideo())} == {
        "ref-davis17",
        "mevis",
        "ref-youtube-vos",
    }
    with pytest.raises(UserError, match=r"fake looks at images, and .* holds none"):
        prepare(plan_of(root), FakeBackbone())
    with pytest.raises(UserError, match="fake-video looks at clips"):
        prepare(replace(plan, data=None, datasets="refshapes:val"), FakeVideo())


def test_a_data_set_that_no_backbone_looks_at_is_refused() -> None:
    both = Plan(datasets="refshapes:val,refclips-davis:val")
    image, video = FakeBackbone(), FakeVideo()
    assert both.pairs_of(image) == [("refshapes", "val")]
    both.check_looked_at([image, video])
    Plan().check_looked_at([video])
    with pytest.raises(UserError, match="None of fake can look at refclips-davis:val; leave that out"):
        both.check_looked_at([image])
    with pytest.raises(UserError, match="None of fake-video can look at refshapes:val"):
        both.check_looked_at([video])


def test_pictures_of_some_frames_are_kept(root: Path, tmp_path: Path) -> None:
    done(plan_of(root, pruners="none"), tmp_path / "run")
    kept = sorted((tmp_path / "run" / "images").iterdir())
    first = [path for path in kept if "@" not in path.name]
    assert len(first) == 4 and len(kept) == sum(
        len(s.frames) for s in data.load_samples(*DAVIS[0], root, "video")
    )
    assert all(Image.open(path).format == "JPEG" for path in kept)


def test_objects_that_no_expression_means_are_scored_as_officially(tmp_path: Path) -> None:
    root = write_clips(tmp_path / "data", 1)
    (known,) = data.load_samples(*DAVIS[0], root, "video")
    folder = known.targets[0][0].files()[0].parent
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as opened:
            ids, palette = np.array(opened), opened.getpalette()
        ids[20:22, :4] = 3
        third = Image.fromarray(ids, "P")
        third.putpalette(palette)
        third.save(path)
    (sample,) = data.load_samples(*DAVIS[0], root, "video")
    assert [one.id for one in sample.unspoken] == [3] and data.content(sample) != data.content(known)
    rows = done(plan_of(root, pruners="none"), tmp_path / "run")
    assert rows.groupby("group")["n_rest"].sum().tolist() == [1.0] * 4
    truth = ClipTruth(sample)
    scores = []
    for _, mine in rows.groupby("group"):
        masks = np.stack([decoded(mask, sample.height, sample.width) for mask in mine["mask"]])
        padded = np.concatenate([masks, np.zeros_like(masks[:1])])
        every = metrics.measure(padded, np.concatenate([truth.of([0, 4]), truth.unspoken()]), "video", "")
        scores.append(sum(row["j"] for row in every) / 3)
    assert metrics.get("j").value(rows) == pytest.approx(sum(scores) / 4, abs=1e-12)
