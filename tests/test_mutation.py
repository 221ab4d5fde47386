"""The changes that `python -m tests.mutation` makes, and a run of it over a module of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.mutation.__main__ import main
from tests.mutation.changes import changes, drawn
from tests.mutation.trials import ended

HERE = Path(__file__).parent


def made(line: str) -> set[str]:
    """What a line of a function's body becomes."""
    source = f"def function():\n    {line}\n".encode()
    found = changes(source)
    for one in found:
        compile(one.applied(source), "module", "exec")
    return {one.now for one in found}


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        ("a = b < c", {"a = (b <= c)", "a = (b >= c)"}),
        ("a = b < c == d", {"a = (b <= c == d)", "a = (b >= c == d)", "a = (b < c != d)"}),
        ("a = b in c", {"a = (b not in c)"}),
        ("a = b + c", {"a = (b - c)"}),
        ("a = b and c", {"a = (b or c)"}),
        ("a = not b", {"a = b"}),
        ("a = -2", {"a = 2", "a = -3", "a = -1"}),
        ("a = 3", {"a = 4", "a = 2"}),
        ("a = 0", {"a = 1", "a = -1"}),
        ("a = 0.5", {"a = 1.0"}),
        ("a = True", {"a = False"}),
        ("a = min(b, c)", {"a = max(b, c)"}),
        ("a = b.amax(c)", {"a = b.amin(c)"}),
        ("a = where(b, c, d)", {"a = where(b, d, c)"}),
        ("a = [b for b in c if d]", {"a = [b for b in c if (not d)]"}),
        ("a = b if c else d", {"a = b if (not c) else d"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"pass"}),
        ("a(b)", {"pass"}),
        ("return a", {"return None"}),
        ("raise Fault(1 + 2)", {"pass"}),
    ],
)
def test_a_line_changes_in_one_place_at_a_time(line: str, becomes: set[str]) -> None:
    assert made(line) == becomes


@pytest.mark.parametrize(
    "line",
    [
        '"""Words 1 < 2."""',
        'a = f"{b + 1}"',
        'a = "b" + c',
        "assert a < b",
        "a: Literal[1, 2]",
        "print(1 + 2)",
        "a = cast(b, c)",
        "a = zip(b, strict=True)",
        "a = isinstance(b, c | d)",
        "return",
    ],
)
def test_what_no_answer_hangs_on_is_left_alone(line: str) -> None:
    assert made(line) in (set(), {"pass"} if line == "return" else set())


def test_an_edit_elsewhere_leaves_the_choice_as_it_is() -> None:
    body = "".join(f"    a = {k} + b\n" for k in range(30))
    before = f"def function():\n{body}".encode()
    after = f"'''Other words.'''\nC = 5\n\ndef other():\n    return 3\n\ndef function():\n{body}".encode()
    first = [one.now for one in drawn(changes(before), 8, 0, "module")]
    second = drawn([one for one in changes(after) if one.scope == "function"], 8, 0, "module")
    assert [one.now for one in second] == first and second[0].line == drawn(changes(before), 8, 0, "module")[
        0
    ].line + 6
    assert [one.now for one in drawn(changes(before), 8, 1, "module")] != first
    assert [one.now for one in drawn(changes(before), 8, 0, "other")] != first


MODULE = '''
def clipped(value, most):
    """No more than the most."""
    if value > most:
        return most
    return value


def unseen(value):
    return value
'''
TESTED = """
from harness.tiny import clipped

def test_clipped():
    assert clipped(3, 10) == 3 and clipped(12, 10) == 10
"""


def test_a_run_names_what_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the most both branches say the same, and nothing calls `unseen`."""
    for name in ("harness", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "harness" / "tiny.py").write_text(MODULE)
    (tmp_path / "tests" / "test_tiny.py").write_text(TESTED)
    shutil.copytree(
        HERE / "mutation", tmp_path / "tests" / "mutation", ignore=shutil.ignore_patterns("*cache*")
    )
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    known = {"harness/*.py": ("tests/test_tiny.py",)}
    found = tmp_path / "survivors.json"
    assert main(["harness/tiny.py", "--count", "100", "--write", str(found)], tmp_path, known) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == [
        "  survived: harness/tiny.py:4  if value > most:  ->  if (value >= most):  (1 tests passed)",
        "  survived: harness/tiny.py:10  return value  ->  return None  (no test comes here)",
        "harness/tiny.py: 3 of 5 noticed (60 %), 2 survived",
    ]
    assert main(["--again", str(found), "--tests", "tests/test_tiny.py"], tmp_path, known) == 0
    assert "harness/tiny.py: 0 of 2 noticed (0 %), 2 survived" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.py")} == before
    assert main(["nowhere.py"], tmp_path, known) == 2
    assert "No tests are known for 'nowhere.py'" in capsys.readouterr().err


def test_what_takes_too_long_is_ended() -> None:
    slow, quick = (
        subprocess.Popen(["sleep", seconds], start_new_session=True).pid for seconds in ("60", "0")
    )
    assert ended(slow, 0.1) is None and ended(quick, 30) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(slow, 0)
