"""One grammar for all commands: the same option is of one name, type and meaning everywhere, and whatever is
wrong is one finished sentence before anything is loaded."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.models import OptionInfo

import backbones
from backbones import device as devices
from harness import cli
from harness.commands import options, tables
from harness.commands.sweep import evaluate
from harness.plan import Plan
from harness.ranges import RANGES
from pruners import UserError, parse
from pruners.errors import reason
from tests.fake_backbone import FakeBackbone, known, write_data

PANELS = {options.ASKED, options.MODEL, options.DATA, options.RUN, options.COSTS, options.OUTPUT}


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["python -m harness", *map(str, words)])
    return cli.main()


def names(option: OptionInfo) -> tuple[str, ...]:
    """All spellings of an option, the first one as it is called; typer takes that for a default at first."""
    words = (option.default, *(option.param_decls or ()))
    return tuple(word for word in words if isinstance(word, str) and word.startswith("--"))


def commands() -> dict[str, Any]:
    """The function of every command by its name; the sweep, which needs none, by an empty one."""
    found = {"": cli.app.registered_callback.callback}  # type: ignore[union-attr]
    for one in cli.app.registered_commands:
        found[one.name or one.callback.__name__] = one.callback  # type: ignore[union-attr]
    return found


def shown() -> list[tuple[str, Any, Any, Any]]:
    """(command, option, its type, its default) of all that `--help` shows."""
    found = []
    for name, function in commands().items():
        parameters = inspect.signature(function).parameters
        for word, hint in get_type_hints(function, include_extras=True).items():
            option = next(iter(get_args(hint)[1:]), None)
            if isinstance(option, OptionInfo) and not option.hidden and word not in ("debug", "version"):
                found.append((name, option, get_args(hint)[0], parameters[word].default))
    return found


def declared() -> dict[str, set[str]]:
    """The helps of every option that `harness.commands.options` declares."""
    found: dict[str, set[str]] = {}
    for alias in [*vars(options).values(), *vars(tables).values()]:
        for fact in get_args(alias)[1:]:
            if isinstance(fact, OptionInfo):
                found.setdefault(names(fact)[0], set()).add(fact.help)  # type: ignore[index, arg-type]
    return found


# -- one grammar


def test_an_option_is_of_one_name_type_and_panel_in_all_commands() -> None:
    known: dict[str, tuple[Any, ...]] = {}
    for name, one, kind, _ in shown():
        first, facts = names(one)[0], (names(one), kind, one.rich_help_panel)
        if first == "--out":  # of a submission it has to be given
            facts = (names(one), one.rich_help_panel)
        assert known.setdefault(first, facts) == facts, (name, first)
        assert one.rich_help_panel in PANELS, (name, first)
    for pair in (("--budgets", "--budget"), ("--backbones", "--backbone"), ("--datasets", "--dataset")):
        assert known[pair[0]][0] == pair
    spellings = [text for facts in known.values() for text in facts[0]]
    assert len(spellings) == len(set(spellings))


def test_every_help_is_one_that_is_declared() -> None:
    known = declared()
    for name, one, _, _ in shown():
        assert one.help in known[names(one)[0]], (name, names(one)[0])


def test_helps_speak_of_their_own_command() -> None:
    helps = {(name, names(one)[0]): one.help for name, one, _, _ in shown()}
    assert helps[("diagnose", "--limit")] == "images per split, 0 for all"
    for (name, option), told in helps.items():
        if option == "--out":
            assert ("PNG" in told) == (name == "try"), name
            assert ("run, which goes on" in told) == (name == ""), name


def test_every_command_that_loads_a_model_takes_the_gpu_where_there_is_one() -> None:
    defaults = {name: default for name, one, _, default in shown() if names(one)[0] == "--device"}
    assert defaults == dict.fromkeys(("", "try", "diagnose", "study", "reproduce"), "auto")
    assert Plan().device == "auto"


@pytest.mark.parametrize("name", [name for name in commands() if name])
def test_a_mistake_points_at_the_help_of_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, name, "--nothing-like-it") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith(f" See python -m harness {name} --help.\n")


@pytest.mark.parametrize("program", ["/usr/bin/groundprune", "harness/__main__.py"])
def test_usage_is_the_same_however_it_was_called(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "cost", "--help"])
    assert cli.main() == 0
    assert "python -m harness cost [OPTIONS]" in capsys.readouterr().out


def test_both_spellings_are_one_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("--budget", "many"),
        ("cost", "--budget", "many"),
        ("try", "--budgets", "many"),
        ("study", "positions", "--budget", "many"),
    ):
        assert command(monkeypatch, *words) == 2
        assert "not 'many'" in capsys.readouterr().err


def test_the_version_needs_no_torch() -> None:
    script = (
        "import sys\nfrom harness.cli import main\nsys.argv = ['harness', '--version']\ncode = main()\n"
        "raise SystemExit('torch was imported' if 'torch' in sys.modules else code)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert re.match(r"groundprune \d.*, torch \d.*, transformers \d.*, Python 3\.", done.stdout)
    if (root / ".git").exists():
        assert re.search(r"\(commit [0-9a-f]{12}", done.stdout)


# -- devices


def test_auto_is_the_cpu_where_no_gpu_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert devices.resolve("auto") == "cpu"
    assert "built without CUDA" in devices.told("auto", "cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.resolve("auto") == "cpu"
    assert devices.told("auto", "cpu") == "device: cpu (torch finds no CUDA GPU)"
    assert devices.told("cpu", "cpu") == "device: cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available.\nand more")

    monkeypatch.setattr(torch, "ones", broken)
    assert devices.resolve("auto") == "cpu"
    assert "cuda:0 does not work: RuntimeError: no kernel image is available. and more" in devices.told(
        "auto", "cpu"
    )


def test_auto_is_the_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.engine.ranks import Place

    tried = []
    ones = torch.ones

    def works(*size: int, device: str) -> torch.Tensor:
        tried.append(device)
        return ones(*size)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", works)
    assert Place().device("auto") == "cuda"
    assert Place(rank=3, world=4, local=1).device("auto") == "cuda:1"
    assert tried == ["cuda:0", "cuda:1"]  # a process that shares a machine touches its own card alone
    assert Plan().resolved().device == "cuda"


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cuda:-1", "tpu", "CPU", "", "meta", "cuda 0", "cpu:1"])
def test_a_device_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match=r"there are auto, cpu, cuda, cuda:1, mps\."):
        Plan(device=text)
    with pytest.raises(UserError, match=r"there are auto, cpu, cuda, cuda:1, mps\."):
        backbones.load("glamm-mini", device=text)


def test_a_card_beyond_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="There is no --device cuda:7 here; this machine has cuda:0 alone"):
        devices.resolve("cuda:7")


def test_auto_on_the_cpu_is_the_run_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from harness.store import records

    loaded = known(monkeypatch)
    root = write_data(tmp_path / "data")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--backbones", "fake", "--data", root, "--datasets", "refcoco:val", "--budgets", 8]
    words += ["--pruners", "none", "--out", tmp_path / "run"]
    assert command(monkeypatch, *words) == 0
    info = records.run_info(tmp_path / "run")
    assert info["sweeps"][0]["plan"]["device"] == "cpu"
    assert [cell["setting"]["device"] for cell in info["cells"].values()] == ["cpu"]
    assert command(monkeypatch, *words, "--device", "cpu") == 0
    assert "nothing computed" in capsys.readouterr().err
    assert [one.encoded for one in loaded][1:] == [[]]
    assert records.run_info(tmp_path / "run")["sweeps"] == info["sweeps"]


# -- numbers, refused before anything is loaded

WRONG = {
    "seed": ("-1", str(2**32), "9" * 99),
    "limit": ("-3", "9" * 30),
    "seeds": ("0", "1000000"),
    "batch-size": ("0", "-4", "9" * 20),
    "workers": ("-1", "100000"),
    "max-failures": ("2", "nan", "inf", "-inf", "-0.1"),
    "tensor-parallel": ("0", "-1", "9999999"),
    "budgets": ("0", "-8", "0%", "150%", "nan", "inf", "", "64,,128", ",64", "64,", "9" * 15),
    "pruners": ("none,,random", ",none"),
    "datasets": ("refshapes:val,,", ""),
    "positions": ("", "kept,,", "kep"),
    "answers": ("forced,,generated", "spoken"),
    "dtype": ("float8", "", "Float32"),
    "attn": ("flash", ""),
    "costs": ("maybe", ""),
    "image-backend": ("cv2",),
    "device": ("gpu", "cuda:x"),
    "protocol": ("glam",),
    "backbones": ("", "glam"),
}
ELSEWHERE = [
    ["cost", "--text-tokens", "-5"],
    ["cost", "--text-tokens", "9" * 20],
    ["cost", "--gpu", "rtx9090"],
    ["cost", "--attn", "flash"],
    ["cost", "--budgets", "0"],
    ["study", "placements", "--frames", "0"],
    ["study", "placements", "--limit", "3"],
    ["study", "placements", "--gpu", "rtx9090"],
    ["study", "positions", "--seed", "-1"],
    ["study", "positions", "--frames", "8"],
    ["diagnose", "--limit", "-1"],
    ["diagnose", "--device", "gpu"],
    ["try", "--budget", "0"],
    ["try", "--dtype", "float8"],
]


def no_model(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


def sentence(told: str) -> str:
    """What stands behind `error: ` in the last line, if it has the shape of one sentence; before it stands at
    most what was about to run.

    Raises:
        AssertionError: it has not.
    """
    *before, last = told.splitlines()
    assert last.startswith("error: ") and told.endswith("\n"), told
    assert not [line for line in before if line.startswith(("error", "Traceback"))], told
    said = last.removeprefix("error: ")
    assert re.search(r"[^.]\.$|\?$", said), said
    for leak in ("<ast.", "object at 0x", "<unknown>", "Traceback", "malformed node", "('invalid"):
        assert leak not in said, said
    return said


@pytest.mark.parametrize(
    "words", [[f"--{name}", value] for name, values in WRONG.items() for value in values]
)
def test_a_value_out_of_range_is_refused_before_anything_is_loaded(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backbones, "load", no_model)
    assert command(monkeypatch, *words) == 2
    sentence(capsys.readouterr().err)


@pytest.mark.parametrize("words", ELSEWHERE, ids=" ".join)
def test_other_commands_refuse_the_same(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backbones, "load", no_model)
    assert command(monkeypatch, *words) == 2
    sentence(capsys.readouterr().err)


@pytest.mark.parametrize("name", [name for name in RANGES if name in Plan.__dataclass_fields__])
@pytest.mark.parametrize("value", [-1, 2**70, 1.5, float("nan"), "3", True])
def test_python_gets_the_same_ranges(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} "):
        Plan(**{name: value})


def test_so_does_a_run_from_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", no_model)
    for how in ({"workers": 10**6}, {"max_failures": float("nan")}, {"tensor_parallel": 0}):
        with pytest.raises(UserError, match=f"^--{next(iter(how)).replace('_', '-')} "):
            evaluate(Plan(), **how)  # type: ignore[arg-type]


# -- files


@pytest.mark.parametrize("words", [["--out"], ["diagnose", "--out"], ["report", "run", "--out"]])
def test_an_out_that_cannot_be_a_folder_is_refused_first(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backbones, "load", no_model)
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert command(monkeypatch, *words, out) == 2
        assert f"{str(tmp_path / 'file')!r} is a file" in sentence(capsys.readouterr().err)


PLUGINS = {
    "syntax": ("def (:\n", "invalid syntax in line 1"),
    "raises": ("raise ValueError('boom.')\n", "(ValueError: boom);"),
    "exits": ("import sys\nsys.exit(3)\n", "it ends the program with 3"),
    "nothing": ("a = 1\n", "registers no pruner"),
    "leaks": ("raise ValueError(object())\n", "<object>"),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_that_is_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = PLUGINS[kind]
    (tmp_path / "plugin.py").write_text(text)
    assert command(monkeypatch, "--plugin", tmp_path / "plugin.py") == 2
    assert told in sentence(capsys.readouterr().err)


SETTINGS = {
    "no TOML": ("a = ", "is no TOML"),
    "unknown": ('prunners = "all"', "Did you mean 'pruners'?"),
    "type": ('seed = "x"', "sets seed to 'x'"),
    "boolean": ("limit = true", "takes a text or a number"),
    "switch": ("force = 3", "true or false"),
    "table": ("budgets = {a = 1}", "a list of them"),
    "range": ("seed = -1", "--seed -1 is negative"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_cannot_be(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = SETTINGS[kind]
    (tmp_path / "my.toml").write_text(text)
    assert command(monkeypatch, "--settings", tmp_path / "my.toml") == 2
    assert told in sentence(capsys.readouterr().err)


# -- commands


@pytest.mark.parametrize("word", ["run", "eval", "sweep"])
def test_a_sweep_needs_no_command(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, word, "--limit", 1) == 2
    assert f"no command {word!r}" in (told := sentence(capsys.readouterr().err))
    assert "A sweep needs no command" in told


def test_options_before_a_command_are_not_lost_silently(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--backbone", "glamm-mini", "--limit", 3, "cost") == 2
    told = sentence(capsys.readouterr().err)
    assert told.startswith("--backbones, --limit before the command cost would be lost")


def test_report_is_a_command_and_the_module_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from reports.__main__ import main

    known(monkeypatch)
    root = write_data(tmp_path / "data")
    words = ["--backbones", "fake", "--data", root, "--datasets", "refcoco:val", "--budgets", 8]
    assert command(monkeypatch, *words, "--pruners", "none,random", "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert command(monkeypatch, "report", tmp_path / "run", "--against", "none", "--out", tmp_path / "a") == 0
    first = capsys.readouterr().out
    assert "vs none" in first
    assert main([str(tmp_path / "run"), "--baseline", "none", "--out", str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == first.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert main([str(tmp_path / "none")]) == 2
    assert "There are no records" in sentence(capsys.readouterr().err)


# -- a folder that holds another run


def test_a_folder_of_another_run_says_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known(monkeypatch)
    root, run = write_data(tmp_path / "data"), tmp_path / "run"
    words = ["--backbones", "fake", "--data", root, "--datasets", "refcoco:val", "--budgets", 8]
    words += ["--pruners", "none", "--out", run]
    assert command(monkeypatch, *words) == 0
    capsys.readouterr()
    monkeypatch.setattr(FakeBackbone, "dtype", "bfloat16")
    assert command(monkeypatch, *words, "--dtype", "bfloat16") == 2
    told = sentence(capsys.readouterr().err)
    assert "its dtype is 'float32' and this one's 'bfloat16'" in told
    for mend in ("--dtype float32", f"--from {run / 'run.json'} --out {run}", "another --out folder"):
        assert mend in told
    monkeypatch.undo()
    known(monkeypatch)
    assert command(monkeypatch, "--from", run / "run.json", "--out", run) == 0


# -- sentences


def test_a_sentence_has_one_full_stop() -> None:
    inner = UserError("It was moved.")
    assert str(UserError(f"There is no file: {inner}.")) == "There is no file: It was moved."
    assert str(UserError("Give --seed 0")) == "Give --seed 0."
    assert str(UserError("two\nlines. Did you mean 'a'?")) == "two lines. Did you mean 'a'?"
    assert reason(inner) == "It was moved"
    assert reason(FileNotFoundError(2, "No such file or directory", "a")) == "No such file or directory"


letters = st.text("abl(),=[]{}'\"\\.*?@:;<>+-1290 \n\tλ\x00", max_size=20)
malformed = st.one_of(
    letters,
    st.builds("fastv({})".format, letters),
    st.builds("fastv(layer={})".format, letters),
    st.builds(
        "random(seed={})".format, st.sampled_from(["x", "f()", "lambda: 1", "1+y", "(1,", "{}", "a.b"])
    ),
    st.builds("litelvlm,{}".format, letters),
)


@given(malformed)
@settings(max_examples=300, deadline=None)
def test_whatever_a_selection_is_what_is_wrong_is_one_sentence(text: str) -> None:
    for read in (parse, backbones.parse):
        try:
            read(text)
        except UserError as error:
            sentence(f"error: {error}\n")


@given(malformed)
@settings(max_examples=25, deadline=None)
def test_and_exit_code_2(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "load", no_model)
        try:
            parse(text)
        except UserError:
            assert command(patch, "--budgets", "64", f"--pruners={text}") == 2
