"""The command line: a whole run, and one sentence with exit code 2 for everything that a user can get
wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pruners
from harness import cli, data, metrics
from harness.store import folders, records
from tests.fake_backbone import FakeBackbone, known, write_data

pytestmark = pytest.mark.usefixtures("text_only")

PLUGIN = Path(__file__).parent / "sample_plugin" / "sample_pruner.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[FakeBackbone]:
    return known(monkeypatch)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def test_a_run_prints_its_leaderboard_and_names_its_folder(
    root: Path,
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = (
        "--backbones",
        "fake",
        "--data",
        root,
        "--datasets",
        "refcoco",
        "--budgets",
        "8,24",
        "--batch-size",
        5,
    )
    options += ("--limit", 2, "--out", tmp_path / "run")
    assert command(monkeypatch, *options, "--full") == 0
    told = capsys.readouterr()
    assert "Retain 24 tokens" in told.out
    assert str(tmp_path / "run") in told.out
    left_out = [line.split()[2] for line in told.err.splitlines() if line.startswith("left out: ")]
    assert left_out == ["feather", "pyramiddrop"], "four layers cannot average an eighth of the tokens"
    assert "Left out: feather cannot average 8 tokens" in told.out
    assert loaded[0].batch_size == 5
    frame = records.load_records(tmp_path / "run")
    assert frame.groupby("split")["sample"].nunique().to_dict() == {"testA": 2, "val": 2}
    assert sorted(set(frame["pruner"])) == sorted(pruners.names())
    assert (tmp_path / "run" / "leaderboard.md").read_text() in told.out
    assert (tmp_path / "run" / "leaderboard.csv").exists()
    assert command(monkeypatch, *options, "--export", tmp_path / "board.json") == 0  # of a finished run
    short = capsys.readouterr().out
    assert "Retain 24 tokens" in short and "Rel. %" in short and str(tmp_path / "run") in short
    assert len(short) < len(told.out) / 2 and "litelvlm" in (tmp_path / "board.json").read_text()


def test_the_default_folder_is_named_after_the_run_and_found_again(
    root: Path, tmp_path: Path, loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
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
    assert command(monkeypatch, *options) == 0
    assert command(monkeypatch, *options) == 0
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    assert records.run_info(folder)["run"].startswith(folder.name)
    assert [backbone.encoded for backbone in loaded] == [[3], []]
    assert command(monkeypatch, *options, "--force") == 0
    assert command(monkeypatch, *options) == 0
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}-2"}
    assert [backbone.encoded for backbone in loaded[2:]] == [[3], []]
    assert command(monkeypatch, *options, "--out", folder, "--force") == 0
    assert len(list(folder.parent.iterdir())) == 3


def test_force_under_a_launcher_needs_a_folder_that_all_agree_on() -> None:
    with pytest.raises(pruners.UserError, match="--force cannot be agreed on"):
        folders.choose(None, "a1b2c3d4e5", force=True, world=2)


def test_a_plugin_file_joins_the_board(
    root: Path, tmp_path: Path, loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pruners import registry

    monkeypatch.setattr(registry.PRUNERS, "known", dict(registry.PRUNERS.known))
    options = ("--backbones", "fake", "--data", root, "--datasets", "refcoco:val", "--budgets", "8")
    words = (
        *options,
        "--plugin",
        PLUGIN,
        "--pruners",
        "none,brightest,brightest(power=1.0)",
        "--out",
        tmp_path / "run",
    )
    assert command(monkeypatch, *words) == 0
    assert set(records.load_records(tmp_path / "run")["pruner"]) == {
        "none",
        "brightest",
        "brightest(power=1.0)",
    }


def test_list_names_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "list") == 0
    told = capsys.readouterr().out
    for word in (
        "fastv(layer=2, budget='final')",
        "reads",
        "https://arxiv.org",
        "glamm-mini",
        "refshapesg",
        "refcocog",
    ):
        assert word in told


BAD = {
    "pruner": (["--pruners", "litelvm"], ["'litelvm'", "Did you mean 'litelvlm'?"]),
    "parameter": (["--pruners", "fastv(layr=3)"], ["'layr'", "Did you mean 'layer'?"]),
    "pattern": (["--pruners", "zzz*"], ["'zzz*'", "fastv"]),
    "bracket": (["--pruners", "fastv(layer=3"], ["unclosed bracket"]),
    "budget too large": (["--budgets", "8,65"], ["65", "64"]),
    "budget no number": (["--budgets", "many"], ["'many'", "--budgets 64,128,192"]),
    "budget of another script": (["--budgets", "٦٤"], ["whole numbers", "--budgets 64,128,192"]),
    "budget with a line": (["--budgets", "8,6_4"], ["'6_4'", "--budgets 64,128,192"]),
    "budget beyond all numbers": (["--budgets", "9" * 5000], ["whole numbers", "--budgets 64,128,192"]),
    "budget negative": (["--budgets", "-8"], ["--budgets -8", "1 or more"]),
    "seed": (["--seed", "-5", "--pruners", "random"], ["--seed -5", "0 to 4294967295"]),
    "no budget": (["--budgets", ","], ["--budgets is empty"]),
    "layer too deep": (["--pruners", "fastv(layer=9)"], ["4 layers", "1 to 3"]),
    "backbone": (["--backbones", "glam-mini"], ["'glam-mini'", "Did you mean 'glamm-mini'?"]),
    "no backbone": (["--backbones", ""], ["--backbones is empty"]),
    "data set": (["--datasets", "refcocoo"], ["'refcocoo'", "Did you mean 'refcoco'?"]),
    "split": (["--datasets", "refcoco:testC"], ["'testC'", "val, testA"]),
    "data folder": (["--data", "no/such/folder"], ["no/such/folder"]),
    "protocol": (["--protocol", "glam"], ["'glam'", "Did you mean 'glamm'?"]),
    "limit": (["--limit", "-3"], ["-3"]),
    "limit no number": (["--limit", "few"], ["--limit", "integer"]),
    "plugin": (["--plugin", "no_such_plugin.py"], ["no_such_plugin.py"]),
    "costs": (["--costs", "guessed"], ["'guessed'", "off"]),
    "option": (["--prunners", "all"], ["Did you mean '--pruners'?", "--help"]),
    "command": (["leaderbord"], ["leaderbord", "--help"]),
    "baseline": (["gate", "--baseline", "no_such.json"], ["no_such.json", "--accept"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    case: str,
    root: Path,
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong, told = BAD[case]
    right = {
        "--backbones": "fake",
        "--data": str(root),
        "--datasets": "refcoco",
        "--budgets": "8",
        "--out": str(tmp_path),
    }
    words = (
        wrong
        if not wrong[0].startswith("--")
        else [w for pair in (right | {wrong[0]: wrong[1]}).items() for w in pair]
    )
    assert command(monkeypatch, *words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    *before, last = output.err.splitlines()
    assert last.startswith("error: ")
    assert not [line for line in before if line.startswith(("error", "Traceback"))]
    for word in told:
        assert word in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dtype", "float23"], "Did you mean 'float32'?"),
        (["--attn", "flash"], "flash_attention_2"),
        (["--device", "gpu"], "Did you mean 'cuda'?"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--backbones", "glamm"], "--checkpoint DIR"),
        (["--backbones", "glamm", "--checkpoint", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_the_real_backbones_refuse(
    options: list[str],
    told: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "--data", root, "--datasets", "refcoco", *options) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and told in last
    assert not [line for line in before if line.startswith(("error", "Traceback"))]


def test_a_folder_that_is_a_file(
    root: Path,
    tmp_path: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    options = (
        "--backbones",
        "fake",
        "--data",
        root,
        "--datasets",
        "refcoco",
        "--budgets",
        "8",
        "--out",
        tmp_path / "file",
    )
    assert command(monkeypatch, *options) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_debug_shows_the_traceback(loaded: list[FakeBackbone], monkeypatch: pytest.MonkeyPatch) -> None:
    from pruners import UserError

    with pytest.raises(UserError):
        command(monkeypatch, "--pruners", "litelvm", "--debug")


def test_an_interrupt_says_how_to_go_on(
    root: Path,
    loaded: list[FakeBackbone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.engine import runner

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "prepare", interrupted)
    assert (
        command(monkeypatch, "--backbones", "fake", "--data", root, "--datasets", "refcoco", "--budgets", "8")
        == 130
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("stopped, nothing was recorded; to begin again: ")
    assert "--datasets refcoco --budgets 8" in last


def test_help_needs_no_heavy_import() -> None:
    script = (
        "import sys\nfrom harness.cli import main\nsys.argv = ['harness', '--help']\ncode = main()\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)\n"
        "raise SystemExit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    for option in (
        "--pruners",
        "--budgets",
        "--protocol",
        "--plugin",
        "--checkpoint",
        "--costs",
        "gate",
        "list",
        "try",
        "doctor",
        "diagnose",
    ):
        assert option in done.stdout


def test_the_list_names_what_a_plugin_registers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.py").write_text(
        "from harness import data, metrics\n"
        "from harness.metrics.overlap import CumulativeIoU\n"
        "@data.register\nclass Zoo(data.DataSet):\n    name, reference = 'zoo', 'my zoo'\n"
        "    def splits(self, dataset, root): ...\n    def load(self, dataset, split, root): ...\n"
        "@metrics.register\nclass Mine(CumulativeIoU):\n    name, title = 'mine', 'my own'\n"
    )
    for kind in (data.registry.sets, metrics.registry.metrics):
        monkeypatch.setattr(kind, "known", dict(kind.known))
    assert command(monkeypatch, "list", "--plugin", tmp_path / "more.py") == 0
    told = capsys.readouterr().out
    assert "  zoo  my zoo" in told and "  mine  my own: the sum of intersections" in told
    for name in ("refshapesg", "grefcoco", "docs/own-data.md", "ciou", "p@0.9"):
        assert name in told


def test_the_list_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom harness.commands.list_ import show\nshow()\n"
        "raise SystemExit(0 if type(sys.modules['torch']).__name__ == '_Later' else 'it was imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
