"""One plan: to JSON and back, from a run and from a settings file, in Python; budgets as shares; options that
fold into texts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import backbones
import harness
from backbones.registry import ATTENTION, DTYPES, IMAGE_BACKENDS
from harness import cli
from harness.commands.sweep import Result
from harness.engine.budgets import tokens_of
from harness.engine.cells import expand
from harness.plan import Plan, read_plans, with_settings
from harness.store import records
from harness.store.journal import write_atomically
from harness.store.run_folder import LOOSE
from pruners import UserError, parse
from reports import render
from tests.fake_backbone import LAYERS, FakeBackbone, known, write_data

pytestmark = pytest.mark.usefixtures("text_only")

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackbone]:
    return known(monkeypatch)


@pytest.fixture
def plan(root: Path) -> Plan:
    return Plan("none,uniform", "8,33%", "refcoco", data=str(root), backbones="fake", costs="off")


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


# --- texts
# ---------------------------------------------------------------------------------------------------------

words = (
    st.text(st.characters(codec="utf-8", exclude_characters=",()[]'\""), min_size=1)
    .map(str.strip)
    .filter(bool)
)
lists = st.lists(words, max_size=3).map(tuple)
sizes = st.one_of(
    st.integers(1, 10**6).map(str),
    st.decimals("0.01", 100, places=2).map(lambda share: f"{share}%"),
    st.decimals("0.01", 1, places=2).map(str),
)
plans = st.builds(
    Plan,
    pruners=lists,
    budgets=st.lists(sizes, min_size=1, max_size=4),
    datasets=words,
    protocol=st.sampled_from(["each", "glamm"]),
    limit=st.none() | st.integers(0, 10**6),
    seed=st.integers(0, 2**32 - 1),
    data=st.none() | words,
    seeds=st.integers(1, 99),
    backbones=st.sampled_from(["glamm-mini", ("glamm-mini", "glamm(checkpoint='a, (b)', clip='c')")]),
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3", "mps"]),
    dtype=st.sampled_from(DTYPES),
    attn=st.sampled_from(ATTENTION),
    image_backend=st.sampled_from(IMAGE_BACKENDS),
    batch_size=st.integers(1, 99),
    costs=st.sampled_from([None, "off", "projected", "measured"]),
    plugins=lists,
)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_a_plan_goes_to_json_and_back(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_text_with_commas_a_list_and_pruners_themselves_are_one_plan() -> None:
    plan = Plan(
        ("none", "fastv(layer=3)", "random(seed=7)"), ("64", "33%", "0.2"), "refcoco:val,refcoco+:val"
    )
    assert plan == Plan("none, fastv(layer=3),random(seed=7)", "64,33%,0.2", "refcoco:val,refcoco+:val")
    chosen = parse("none,fastv(layer=3),random(seed=7)")
    pairs = (("refcoco", "val"), ("refcoco+", "val"))
    assert plan == Plan(chosen, [64, "33%", 0.2], pairs)  # type: ignore[arg-type]
    assert [pruner.spec() for pruner in plan.chosen()] == [pruner.spec() for pruner in chosen]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("limit", -1, "--limit -1 is negative"),
        ("limit", True, "--limit takes a whole number, not True"),
        ("limit", "few", "--limit takes a whole number, not 'few'"),
        ("seed", -1, "--seed -1"),
        ("seeds", 0, "--seeds 0 is too small; give 1 to 1000"),
        ("batch_size", 0, "--batch-size 0"),
        ("budgets", (), "--budgets is empty"),
        ("budgets", "many", "--budgets takes whole numbers and shares, not 'many'"),
        ("budgets", "0%", "is no share"),
        ("budgets", "101%", "is no share"),
        ("budgets", "1.5", "is no share"),
        ("budgets", "33 %", "'33 %'"),
        ("budgets", [True], "--budgets takes a text, not True"),
        ("pruners", 3, "--pruners takes texts, not 3"),
        ("pruners", [3], "--pruners takes a text, not 3"),
        ("pruners", "fastv(layer=3", "unclosed bracket"),
        ("plugins", {"a": 1}, "--plugin takes texts"),
        ("costs", "guessed", "There are no costs 'guessed'"),
        ("device", None, "--device takes a text, not None"),
        ("budget", "64", "A plan has no 'budget'; .* Did you mean 'budgets'?"),
    ],
)
def test_a_plan_checks_itself(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Plan.from_json({field: value})


# --- budgets
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "small", "large"),
    [
        ("64", 64, 64),
        ("33%", 21, 190),  # 21.12 of 64, 190.08 of 576
        ("0.33", 21, 190),
        (".33", 21, 190),
        ("22%", 14, 127),
        ("11%", 7, 63),
        ("12.5%", 8, 72),
        ("2.34375%", 2, 14),  # 1.5 and 13.5 are rounded up
        ("1.0", 64, 576),
        ("100%", 64, 576),
    ],
)
def test_a_share_is_resolved_on_every_grid(text: str, small: int, large: int) -> None:
    for side, count in ((8, small), (24, large)):
        lines = expand(parse("none,uniform"), (text,), 0, (side, side), LAYERS)
        assert [(line.name, line.budget, line.asked) for line in lines] == [
            ("none", side * side, ""),
            ("uniform", count, text),
        ]


def test_a_share_of_less_than_a_token_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"--budgets 0.1% of this backbone's 64 visual tokens is less than one"
    ):
        tokens_of("0.1%", 64)


def test_a_share_and_its_count_are_one_cell_and_the_table_shows_both(
    plan: Plan, tmp_path: Path, loaded: list[FakeBackbone]
) -> None:
    found = harness.evaluate(replace(plan, budgets=("33%", "21", "0.5")), tmp_path)
    frame = found.frame
    assert sorted(set(frame["budget"])) == [21, 32, 64]
    assert {cell["budget_asked"] for cell in records.run_info(tmp_path)["cells"].values()} == {
        "",
        "33%",
        "0.5",
    }
    assert "**Retain 21 (33 %) tokens**" in found.leaderboard
    assert "**Retain 32 (50 %) tokens**" in found.leaderboard
    before = [backbone.encoded for backbone in loaded]
    assert harness.evaluate(replace(plan, budgets=("21", "32")), tmp_path).frame.equals(frame)
    assert [backbone.encoded for backbone in loaded] == [*before, []]


# --- in Python
# -----------------------------------------------------------------------------------------------------


def test_three_lines_of_python(plan: Plan, tmp_path: Path, loaded: list[FakeBackbone], root: Path) -> None:
    from harness import Plan, evaluate

    result = evaluate(
        Plan(
            pruners="none,random",
            budgets="50%",
            datasets="refcoco:val",
            data=str(root),
            seeds=2,
            backbones="fake",
        ),
        tmp_path / "run",
    )
    assert isinstance(result, Result) and result.folder == tmp_path / "run"
    assert result.leaderboard == (tmp_path / "run" / "leaderboard.md").read_text()
    assert result.frame.groupby(["pruner", "budget", "seed"]).size().to_dict() == {
        ("none", 64, 0): 8,
        ("random", 32, 0): 8,
        ("random", 32, 1): 8,
    }
    assert loaded[0].encoded == [3]


def test_importing_the_harness_is_light() -> None:
    script = (
        "import sys\nimport harness\nfrom harness.plan import LISTS\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)\n"
        "assert callable(harness.evaluate) and harness.Plan.seed == 0\n"
        "heavy |= {'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        harness.evaluat  # noqa: B018


# --- a run again
# ---------------------------------------------------------------------------------------------------


def test_a_run_is_repeated_from_its_run_json(
    plan: Plan,
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    harness.evaluate(replace(plan, pruners=("none", "vis*", "random"), limit=2), tmp_path / "run")
    wanted = records.load_records(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "run" / records.RUN
    assert command(monkeypatch, "--from", file, "--out", tmp_path / "again") == 0
    pd.testing.assert_frame_equal(records.load_records(tmp_path / "again"), wanted)
    told = records.run_info(tmp_path / "again")["plan"]
    assert told == records.run_info(tmp_path / "run")["plan"]
    assert told["pruners"] == ["none", "visionzip", "vispruner", "random"] and told["limit"] == 2
    assert told["datasets"] == "refcoco:val,refcoco:testA"
    assert command(monkeypatch, "--from", file) == 0
    (folder,) = (tmp_path / "elsewhere" / "results" / "runs").iterdir()
    pd.testing.assert_frame_equal(records.load_records(folder), wanted)
    assert (
        command(
            monkeypatch, "--from", file.parent, "--limit", 1, "--out", tmp_path / "less", "--pruners", "none"
        )
        == 0
    )
    less = records.load_records(tmp_path / "less")
    assert less["sample"].nunique() == 2 and set(less["pruner"]) == {"none"}
    capsys.readouterr()


def test_a_run_that_grew_is_repeated_as_a_whole(
    plan: Plan, tmp_path: Path, loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.evaluate(plan, tmp_path / "run")
    harness.evaluate(replace(plan, pruners=("fastv",), budgets=("24",), limit=2), tmp_path / "run")
    assert command(monkeypatch, "--from", tmp_path / "run" / records.RUN, "--out", tmp_path / "again") == 0
    pd.testing.assert_frame_equal(
        records.load_records(tmp_path / "again"), records.load_records(tmp_path / "run")
    )
    assert [plan.pruners for plan in read_plans(tmp_path / "run")] == [("none", "uniform"), ("fastv",)]
    assert [backbone.encoded for backbone in loaded[2:]] == [[4, 2, 4]]


def test_a_plan_that_was_written_down_runs(
    plan: Plan, tmp_path: Path, loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(plan.to_json()))
    assert command(monkeypatch, "--from", tmp_path / "recipe.json", "--out", tmp_path / "run") == 0
    assert records.load_records(tmp_path / "run")["pruner"].nunique() == 2


def _no_plan(folder: Path) -> None:
    info = json.loads((folder / records.RUN).read_text())
    old = {name: info[name] for name in info if name not in ("sweeps", "plan", "samples")} | {"schema": 3}
    write_atomically(folder / records.RUN, old, LOOSE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / records.RUN).unlink(), "There is no .*run.json"),
        (lambda folder: (folder / records.RUN).write_text("{"), "is damaged"),
        (
            lambda folder: (folder / records.RUN).write_text('{"prunners": []}'),
            "no 'prunners'; .* Did you mean 'pruners'",
        ),
        (_no_plan, "made by an earlier version, which wrote no plan down; give its options again"),
        (
            lambda folder: (folder.parent / "data").rename(folder.parent / "gone"),
            "Data folder .*data' is no folder",
        ),
        (lambda folder: (folder.parent / "norm.py").unlink(), "There is no plugin file .*norm.py"),
    ],
)
def test_what_cannot_be_repeated_is_one_sentence(
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    said: str,
) -> None:
    from pruners import registry
    from tests.test_code import PLUGIN

    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    monkeypatch.setattr("harness.store.code.STARTED", float("inf"))
    (tmp_path / "norm.py").write_text(PLUGIN)
    data = str(write_data(tmp_path / "data"))
    plugins = (str(tmp_path / "norm.py"),)
    harness.evaluate(
        Plan("none,norm", "8", "refcoco:val", data=data, backbones="fake", plugins=plugins), tmp_path / "run"
    )
    assert records.run_info(tmp_path / "run")["plan"]["plugins"] == list(plugins)
    change(tmp_path / "run")
    capsys.readouterr()
    assert command(monkeypatch, "--from", tmp_path / "run" / records.RUN, "--out", tmp_path / "again") == 2
    *before, told = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and not [line for line in before if line.startswith("error")]
    assert pd.Series([told]).str.contains(said).all(), told
    assert not (tmp_path / "again").exists()


# --- settings file
# -------------------------------------------------------------------------------------------------


def test_a_settings_file_holds_options_and_the_command_line_wins(
    root: Path, tmp_path: Path, loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f'backbones = "fake"\ndata = "{root}"\ndatasets = "refcoco:val"\npruners = ["none", '
        f'"fastv(layer=3)", "random"]\n'
        f'budgets = [8, "50%"]\nlimit = 2\nbatch-size = 5\nseeds = 1\nno-share = true\nmax_failures = '
        f'0.5\nout = "{tmp_path / "run"}"\n'
    )
    assert command(monkeypatch, "--settings", file, "--limit", 1, "--budgets", "24") == 0
    plan = Plan.from_json(records.run_info(tmp_path / "run")["plan"])
    assert plan == Plan(
        "none,fastv(layer=3),random",
        "24",
        "refcoco:val",
        limit=1,
        data=str(root),
        seeds=1,
        backbones="fake",
        batch_size=5,
        protocol="each",
        answers="forced",
        device="cpu",
    )
    assert loaded[0].batch_size == 5
    assert loaded[0].encoded == [1] * 3  # every cell for itself


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('prunners = "all"', "sets 'prunners', which is no option; .* Did you mean 'pruners'?"),
        ("limit = 'few'", "sets limit to 'few'"),
        ("limit = ", "is no TOML"),
        ("budgets = ['many']", "--budgets takes whole numbers"),
        ("settings = 'other.toml'", "sets 'settings', which is no option"),
        (None, "cannot be read"),
    ],
)
def test_a_settings_file_that_cannot_be(
    content: str | None,
    said: str,
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "mine.toml").write_text(content)
    assert command(monkeypatch, "--settings", tmp_path / "mine.toml", "--backbones", "fake") == 2
    *before, told = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and not [line for line in before if line.startswith("error")]
    assert pd.Series([told]).str.contains(said).all(), told


# --- backbones as texts
# --------------------------------------------------------------------------------------------


def test_options_of_glamm_fold_into_its_text() -> None:
    assert with_settings(["glamm-mini", "glamm"], checkpoint=Path("DIR"), clip="hub/name", sam_dims=None) == (
        "glamm-mini",
        "glamm(checkpoint='DIR', clip='hub/name')",
    )
    own = "glamm(checkpoint='A', sam_dims='s.json')"
    assert with_settings([own], checkpoint="B") == ("glamm(checkpoint='B', sam_dims='s.json')",)
    assert with_settings([own], checkpoint=None, clip=None) == (own,)
    with pytest.raises(
        UserError, match="--sam-dims belongs to the backbone glamm or lisa, and --backbones names glamm-mini"
    ):
        with_settings(["glamm-mini"], sam_dims="s.json")
    with pytest.raises(UserError, match=r"There is no backbone 'glam'; .* Did you mean 'glamm'?"):
        with_settings(["glam(checkpoint='A')"], clip="B")


def test_settings_of_a_backbone_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    asked: list[dict[str, Any]] = []

    def load(name: str, **settings: Any) -> FakeBackbone:
        asked.append({"name": name} | settings)
        return FakeBackbone()

    monkeypatch.setattr(backbones, "load", load)
    options = (
        "--data",
        root,
        "--datasets",
        "refcoco:val",
        "--budgets",
        "8",
        "--pruners",
        "none",
        "--costs",
        "off",
    )
    text = "glamm(checkpoint='DIR, (1)')"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR, (1)").mkdir()
    assert (
        command(monkeypatch, *options, "--backbones", text, "--clip", "CLIP", "--out", tmp_path / "run") == 0
    )
    told = {name: asked[0][name] for name in ("name", "device", "dtype", "tensor_parallel")}
    assert told == {
        "name": "glamm(checkpoint='DIR, (1)', clip='CLIP')",
        "device": "cpu",
        "dtype": "float32",
        "tensor_parallel": 1,
    }
    monkeypatch.setattr(FakeBackbone, "name", "glamm")
    assert command(monkeypatch, *options, "--backbones", text, "--out", tmp_path / "named") == 0
    (recorded,) = records.run_info(tmp_path / "named")["plan"]["backbones"]
    assert recorded == f"glamm(checkpoint='{tmp_path}/DIR, (1)')", "and runs again from any folder"


def test_two_backbones_of_one_name_need_a_folder_each(
    plan: Plan, tmp_path: Path, loaded: list[FakeBackbone]
) -> None:
    with pytest.raises(UserError, match="two of --backbones have one name"):
        harness.evaluate(
            replace(plan, backbones=("glamm(checkpoint='1')", "glamm(checkpoint='2')")), tmp_path
        )


def test_a_protocol_is_one_of_the_backbone(plan: Plan, tmp_path: Path, loaded: list[FakeBackbone]) -> None:
    with pytest.raises(UserError, match=r"fake has no protocol 'eech', .* Did you mean 'each'"):
        harness.evaluate(replace(plan, protocol="eech"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_backbones_have_a_folder_each(plan: Plan, tmp_path: Path, loaded: list[FakeBackbone]) -> None:
    result = harness.evaluate(replace(plan, backbones=("fake", "glamm-mini"), limit=1), tmp_path)
    assert result.folders == (tmp_path / "fake", tmp_path / "glamm-mini")
    assert len(result.frame) == sum(len(records.load_records(folder)) for folder in result.folders)
    assert render(tmp_path / "fake")[0].read_text() in result.leaderboard
