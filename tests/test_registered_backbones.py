"""Backbones by name: registered, written, listed, looked at; and one that is no GLaMM through every
command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import backbones
import pruners
from backbones import Family, Runtime, Settings
from backbones.glamm.settings import Glamm
from backbones.registry import BACKBONES
from harness import cli, doctor
from harness.gate import baseline, check
from harness.plan import Plan
from harness.store import records, run_folder
from harness.store.journal import write_atomically
from pruners import UserError, plugins
from pruners.registry import PRUNERS
from reports import render
from tests.fake_backbone import write_data

HERE = Path(__file__).parent
SAMPLE = HERE / "sample_plugin" / "sample_backbone.py"
PICTURE = HERE / "golden/glamm/refer/Refer_Segm/coco_2014/train2014/img_11.png"
PYTEST = ("-q", "-rf", "-n", "0", "-p", "no:cacheprovider")
LACKING = {
    *("cdpruner", "dart", "divprune", "fastervlm", "fastv", "feather", "hiprune", "holov", "litelvlm"),
    *("nuwa", "prumerge", "pyramiddrop", "scope", "sparsevlm", "visionzip", "vispruner"),
}


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of these tests, nor the ones that the conformance tests have loaded."""
    for registry in (BACKBONES, PRUNERS):
        own = {name: cls for name, cls in registry.known.items() if "plugin" not in cls.__module__}
        monkeypatch.setattr(registry, "known", own)


@pytest.fixture
def sample() -> str:
    """The sample plugin, loaded as --plugin does; its backbone's name."""
    (name,) = plugins.import_plugin(SAMPLE)["backbone"]
    return name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def settings_class(**facts: Any) -> type[Settings]:
    """A registrable class with these facts; `name` and `reference` are there."""
    bases = facts.pop("bases", (Settings,))
    body = {"name": "mine", "reference": "here", "load": lambda self, how: None} | facts
    return dataclass(frozen=True)(type("Mine", bases, {"__module__": __name__} | body))


# -- registration


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"reference": None}, "has no reference"),
        ({"name": "a,b"}, "cannot be named so"),
        ({"name": "glamm"}, "Two backbones are named 'glamm'"),
        ({"signals": frozenset({"smell"})}, "answers smell; signals is a frozenset of attention"),
        ({"signals": {"keys"}}, "answers set; signals is a frozenset"),
        ({"geometry": "round"}, "geometry 'round'; there are centre-crop, whole, regions"),
        ({"protocols": {}}, "has no protocols"),
        ({"drawn": ("glamm",)}, "draws glamm, which is none of its protocols"),
        ({"answers": ("guessed",)}, "answers that are \\('guessed',\\); they are a tuple of 'forced' or"),
        ({"__annotations__": {"size": int}}, "gives size no default"),
        ({"__annotations__": {"signals": frozenset}, "signals": frozenset()}, "makes signals a parameter"),
        ({"load": Settings.load}, "cannot be made with its defaults"),
    ],
)
def test_registration_looks_at_what_the_harness_reads(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        backbones.register(settings_class(**facts))
    assert ("\n" not in str(caught.value) and "The backbone" in str(caught.value)) or "Two backbones" in str(
        caught.value
    )


def test_what_is_no_backbone_is_refused() -> None:
    with pytest.raises(UserError, match=r"takes a subclass of backbones.Settings"):
        backbones.register(Family)
    with pytest.raises(UserError, match=r"takes a subclass of backbones.Settings"):
        backbones.register(pruners.get("none"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("glam", "There is no backbone 'glam'.*Did you mean 'glamm'"),
        ("glamm(checkpiont='x')", "no parameter 'checkpiont'.*Did you mean 'checkpoint'"),
        ("glamm(checkpoint=here)", r"Cannot read the backbone .*texts in quotes"),
        ("glamm(checkpoint=3)", "checkpoint is a text in quotes or None, not 3"),
        ("glamm(checkpoint='x'", "unclosed bracket"),
        ("glamm-mini(size=3)", "glamm-mini has no parameter 'size'; it has no parameters"),
        ("", "--backbones is empty; there are glamm, "),
        ("tiny*", "matches no backbone"),
    ],
)
def test_texts_that_name_no_backbone(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        backbones.parse(text)


def test_a_text_rebuilds_its_settings() -> None:
    text = "glamm(checkpoint='a, b', clip='owner/clip@v1')"
    (settings,) = backbones.parse(text)
    assert settings.spec() == text and backbones.parse(settings.spec()) == [settings]
    assert [one.spec() for one in backbones.parse(f"glamm-mini,{text},glamm-mini")] == ["glamm-mini", text]
    with pytest.raises(UserError, match="names 2 backbones"):
        backbones.load("glamm-mini,glamm")


def test_files_that_are_given_apart_fill_what_the_text_leaves_out() -> None:
    (settings,) = backbones.parse("glamm(checkpoint='mine')")
    filled = backbones.with_files(settings, checkpoint="theirs", clip=Path("clip"), sam_dims=None)
    assert filled.spec() == "glamm(checkpoint='mine', clip='clip')"
    (mini,) = backbones.parse("glamm-mini")
    assert backbones.with_files(mini, checkpoint="theirs") == mini


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dtype": "float23"}, "Did you mean 'float32'"),
        ({"attn": "spda"}, "Did you mean 'sdpa'"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"tensor_parallel": 0}, "--tensor-parallel 0"),
        ({"image_backend": "mmvc"}, "Did you mean 'mmcv'"),
    ],
)
def test_a_runtime_checks_itself(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Runtime(**settings)
    assert Runtime(device="cpu:0").device == "cpu"


@given(st.text(max_size=60), st.text(max_size=60))
@example('it\'s \\\\ "C:\\\\"', ",),(")
def test_what_a_text_says_is_what_was_written(checkpoint: str, clip: str) -> None:
    asked = Glamm(checkpoint=checkpoint, clip=clip)
    assert backbones.parse(f"{asked.spec()},glamm-mini") == [asked, *backbones.parse("glamm-mini")]


# -- plugins


def test_a_plugin_file_may_register_both_kinds(tmp_path: Path) -> None:
    both = SAMPLE.read_text() + (HERE / "sample_plugin" / "sample_pruner.py").read_text()
    (tmp_path / "both.py").write_text(both)
    assert plugins.import_plugin(tmp_path / "both.py") == {
        "pruner": ["brightest"],
        "backbone": ["sample"],
    }
    assert pruners.load_plugin(tmp_path / "both.py") == ["brightest"]
    assert backbones.load("sample(sharpness=9.0)").ground(PICTURE, "red", "brightest", 8).tokens_final == 8


def test_a_plugin_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(SAMPLE.read_text() + "\nraise RuntimeError('half-way')\n")
    with pytest.raises(UserError, match="half-way"):
        plugins.import_plugin(tmp_path / "half.py")
    assert "sample" not in backbones.names()
    (tmp_path / "nothing.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"registers no pruner and no backbone.*@backbones.register"):
        plugins.import_plugin(tmp_path / "nothing.py")


def test_an_installed_package_is_found_by_its_entry_point(sample_site: Path) -> None:
    words = "import backbones; print(backbones.load('sample').grid, 'sample' in backbones.names())"
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=HERE.parent,
        env=os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{sample_site}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[0] == "(6, 10) True", done.stderr


# -- what is on the hub


def test_a_hub_name_is_fetched_at_its_revision(
    golden_glamm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache if it is there; offline, one sentence; a local folder of that name wins."""
    import huggingface_hub

    folder = tmp_path / "hub"
    shutil.copytree(golden_glamm_dir / "checkpoint", folder)
    shutil.copy(golden_glamm_dir / "sam_dims.json", folder / "sam_dims.json")
    asked: list[tuple[str, str | None]] = []

    def snapshot(name: str, revision: str | None = None, **how: Any) -> str:
        asked.append((name, revision))
        if name != "someone/glamm":
            raise FileNotFoundError(name)
        return str(folder)

    def unreachable(*_given: object, **_how: object) -> None:
        raise OSError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    clip = str(golden_glamm_dir / "clip")
    found = backbones.load(f"glamm(checkpoint='someone/glamm@v1.5', clip={clip!r})")
    assert found.name == "glamm" and asked == [("someone/glamm", "v1.5")]
    with pytest.raises(UserError, match=r"checkpoint 'other/glamm' is neither .* reachable on the hub; give"):
        backbones.load(f"glamm(checkpoint='other/glamm', clip={clip!r})")
    assert asked[1:] == [("other/glamm", None)]
    shutil.copytree(folder, tmp_path / "other" / "glamm")
    assert backbones.load(f"glamm(checkpoint='other/glamm', clip={clip!r})").fingerprint == found.fingerprint
    assert len(asked) == 2
    (config,) = backbones.parse(f"glamm(checkpoint='someone/glamm', clip={clip!r})")
    assert {weight.device.type for weight in config.shapes().model.parameters()} == {"meta"}


def test_numbers_alone_cannot_run() -> None:
    with pytest.raises(UserError, match="numbers alone"):
        backbones.load("glamm-7b")
    assert backbones.one("glamm-7b").shapes().shape.layers == 32
    with pytest.raises(UserError, match="needs weights"):
        backbones.one("glamm").shapes()


# -- what a family lacks


def test_what_a_backbone_lacks_is_a_sentence(sample: str) -> None:
    backbone = backbones.load(sample)
    reasons = {one.name: backbone.lacks(one) for one in pruners.parse("all")}
    assert {name for name, reason in reasons.items() if reason} == LACKING
    assert reasons["vispruner"] == "vispruner reads cls_attention[-2], which sample cannot answer."
    assert "no layers to cut between" in reasons["fastv"]
    assert not any(backbones.one("glamm-mini").lacks(one) for one in pruners.parse("all"))
    with pytest.raises(UserError, match="vispruner reads"):
        backbone.ground(PICTURE, "it", "vispruner", 4)


def test_a_choice_of_a_class_token_that_is_not_there_is_refused(sample: str) -> None:
    import torch

    from pruners import CLS, Pruner, Selection, View, checks

    @dataclass(frozen=True)
    class Class(Pruner):
        name = "class"
        reference = "here"

        def select(self, tokens: View, budget: int) -> Selection:
            return Selection(torch.tensor([CLS, *range(budget - 1)]))

    view = View(torch.ones(4, 2), None, (2, 2), 1, lambda need: torch.ones(4))
    with pytest.raises(UserError, match="chose the class token of a vision tower that has none"):
        checks.select(Class(), view, 2)


def test_list_shows_which_pruner_runs_where(
    sample: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @pruners.register
    @dataclass(frozen=True)
    class Far(pruners.ScorePruner):
        name = "far"
        reference = "here"
        needs = frozenset({pruners.Need("llm_patches")})

        def score(self, tokens: pruners.View) -> Any:
            return tokens.llm_patches.norm(dim=1)

    assert command(monkeypatch, "list") == 0
    told = capsys.readouterr().out
    head = next(line for line in told.splitlines() if line.split()[:2] == ["glamm", "glamm-7b"])
    lines = (line.split() for line in told.split(head)[1].splitlines() if line.strip())
    rows = {name: marks for name, *marks in lines if set(marks) <= {"yes", "-"}}
    column = head.split().index("sample")
    assert {name for name, marks in rows.items() if marks and marks[column] == "-"} == LACKING | {"far"}
    assert set(rows["trim"]) == {"yes"}
    assert rows["far"] == ["-" if name == "sample" else "yes" for name in head.split()]
    # in front of the pool of the placement grid and behind it, a method cannot prune
    clips = {name for name in head.split() if name.startswith("videoglamm")}
    unable = {name for name, mark in zip(head.split(), rows["nuwa"], strict=True) if mark == "-"}
    assert clips and unable == {*clips, "sample"}
    assert "visionzip reads cls_attention[-2], keys[-2], which sample cannot answer." in told
    assert "methods: divprune, far; controls: none, downsample, random, uniform" in told
    assert "sample(sharpness=50.0)  Masks by colour" in told and "protocols: each:" in told


# -- a whole run of one that is no GLaMM


def test_the_sample_backbone_through_the_main_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--backbones", "sample", "--plugin", SAMPLE, "--datasets", "refshapes:val", "--limit", 2)
    run = tmp_path / "run"
    assert command(monkeypatch, *words, "--pruners", "all", "--budgets", 16, "--out", run) == 0
    told = capsys.readouterr()
    left_out = [line for line in told.err.splitlines() if line.startswith("left out: ")]
    assert {line.split()[2] for line in left_out} == LACKING
    info = records.run_info(run)
    assert set(info["left_out"]) == LACKING
    assert all(f"left out: {reason}" in left_out for reason in info["left_out"].values())
    assert {cell["geometry"] for cell in info["cells"].values()} == {"whole"}
    frame = records.load_records(run)
    assert set(frame["pruner"]) == set(pruners.names()) - LACKING - {"brightest"}
    assert set(frame["geometry"]) == {"whole"} and set(frame["grid"]) == {"6x10"}
    page = render(run)[0].read_text()
    (footer,) = (line for line in page.splitlines() if line.startswith("- Left out: "))
    assert all(reason in footer for reason in info["left_out"].values())
    html = (run / "report.html").read_text()
    assert '"regions": [[0.0, 0.0, 1.0, 1.0]]' in html or '"regions":[[0.0,0.0,1.0,1.0]]' in html
    assert command(monkeypatch, *words, "--pruners", "fastv,visionzip", "--budgets", 16, "--out", run) == 2
    assert "No pruner is left: fastv prunes inside" in capsys.readouterr().err


def test_pruners_that_are_left_out_later_are_told_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cells are the same, so it is the same run."""
    words = ("--backbones", "sample", "--plugin", SAMPLE, "--datasets", "refcoco:val", "--data", root)
    for asked in ("none,uniform", "none,uniform,fastv"):
        assert command(monkeypatch, *words, "--pruners", asked, "--budgets", 16, "--out", tmp_path) == 0
        assert set(records.run_info(tmp_path)["left_out"]) == {"fastv"} & set(asked.split(","))


def test_the_sample_backbone_through_try_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--backbone", "sample(sharpness=9.0)", "--plugin", SAMPLE)
    assert command(monkeypatch, "try", *words, "--budget", 16, "--out", tmp_path / "try.png") == 0
    told = capsys.readouterr().out
    assert told.count("left out: ") == len(LACKING) and told.count("IoU") == 6
    assert (tmp_path / "try.png").stat().st_size > 10_000
    assert command(monkeypatch, "try", *words, "--pruners", "fastv", "--budget", 16) == 2
    assert "No pruner is left" in capsys.readouterr().err
    assert command(monkeypatch, "cost", *words) == 2
    assert "The shapes of sample are not known" in capsys.readouterr().err
    assert command(monkeypatch, "diagnose", *words, "--datasets", "refshapes:val", "--limit", 1) == 2
    assert "similarities of sample cannot be read" in capsys.readouterr().err
    sweep = ("--backbones", "sample", "--plugin", SAMPLE, "--datasets", "refshapes:val", "--limit", 1)
    assert command(monkeypatch, *sweep, "--costs", "measured", "--out", tmp_path / "run") == 2
    assert "The costs of sample are not known" in capsys.readouterr().err


def test_the_sample_backbone_through_the_gate(tmp_path: Path) -> None:
    asked = "none,uniform,trim,fastv"
    subset = Plan(asked, (16,), "refshapes:val", limit=1, backbones=("sample",), plugins=(str(SAMPLE),))
    path = tmp_path / "baseline.json"
    check.accept(path, "sample joins", (str(SAMPLE),), subset)
    assert not check.check(path, (str(SAMPLE),)).changes
    assert set(baseline.frame(baseline.read_baseline(path))["pruner"]) == {"none", "uniform", "trim"}


# -- the conformance suite

FAULTS = {  # what a careless backbone does, as an edit of the sample; and the tests that have to find it
    "company": ("for row in rows:", "for number, row in enumerate(rows):", "a_row_alone"),
    "geometry": ("signals = ", 'geometry = "centre-crop"\n    signals = ', "declared_geometry"),
    "signal": ('"referent"})', '"referent", "keys"})', "signals_have_their_shapes"),
    "lengths": ("(len(tokens),), row", "(len(tokens) - 1,), row", "lengths_are_what"),
    "truth": (" and masks is None:", " and False:", "the_truth_is_shown"),
    "seed": (
        "    def colour(",
        "    def turn(self, expression):\n        self.asked = getattr(self, 'asked', 0) + 1\n"
        "        return type(super().turn(''))(f'{expression} {self.asked}', '[SEG]')\n\n    def colour(",
        "conversations_follow",
    ),
}


def test_conformance_finds_what_a_careless_backbone_does(tmp_path: Path) -> None:
    """The sample with one fault at a time, all in one process."""
    words: list[str | Path] = []
    for fault, (old, new, _) in FAULTS.items():
        source = SAMPLE.read_text().replace('"sample"', f'"{fault}"')
        assert old in source
        if fault == "company":
            source = source.replace("turn.question)\n", "turn.question) + 1e-6 * number\n")
            source = source.replace("turn.question) for turn", "turn.question) + 1e-6 * number for turn")
        path = tmp_path / f"{fault}.py"
        path.write_text(source.replace(old, new))
        words += ["--plugin", path]
    told = tmp_path / "told"
    child = os.fork()  # it finds everything imported
    if not child:
        with told.open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(HERE.parent)
        code = pytest.main([*PYTEST, str(HERE / "test_backbone_conformance.py"), *map(str, words)])
        sys.stdout.flush()
        os._exit(code)
    os.waitpid(child, 0)
    done = told.read_text()
    failed = [line for line in done.splitlines() if "FAILED" in line]
    for fault, (_, _, test) in FAULTS.items():
        assert any(test in line and f"[{fault}]" in line for line in failed), (fault, done)


# -- the doctor


def test_the_doctor_asks_the_family(
    tmp_path: Path, golden_glamm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("checkpoint", "clip"):
        shutil.copytree(golden_glamm_dir / part, tmp_path / part, copy_function=shutil.copyfile)
    shutil.copyfile(golden_glamm_dir / "sam_dims.json", tmp_path / "checkpoint" / "sam_dims.json")
    text = f"glamm(checkpoint={str(tmp_path / 'checkpoint')!r}, clip={str(tmp_path / 'clip')!r})"
    good = [str(one) for one in doctor.examine(asked=backbones.parse(text))]
    assert sum(f"'{tmp_path}" in line and line.startswith("ok") for line in good) == 2
    (tmp_path / "checkpoint" / "tokenizer.model").unlink()
    (bad,) = (one for one in backbones.one(text).examine() if one.level == "wrong")
    assert "no tokenizer.model" in bad.what
    assert list(backbones.one("glamm").examine()) == list(backbones.one("glamm-7b").examine()) == []


def test_run_json_with_odd_reasons_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--backbones", "sample", "--plugin", SAMPLE, "--datasets", "refcoco:val", "--data", root)
    assert command(monkeypatch, *words, "--pruners", "none", "--out", tmp_path) == 0
    info = json.loads((tmp_path / "run.json").read_text()) | {"left_out": ["fastv"]}
    write_atomically(tmp_path / "run.json", info, run_folder.LOOSE)
    with pytest.raises(UserError, match="is damaged"):
        records.run_info(tmp_path)
