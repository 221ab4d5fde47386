"""`python -m tests.mutation [MODULE ...] [--count N] [--seed S]`: do the tests bite?

Changes one place of a module at a time (`tests/mutation/changes.py` says how), in a copy of the tree, and
runs those of the tests in TESTS that come by the place, the quickest files first, until one fails. A change
that none notices has survived: either a test is missing, or the change gives the same answers, in which case
`equivalent.toml` lists it with the reason. Lines are attributed to tests by one run of all of them, in which
each module is edited without effect; a test that fails then tells nothing and is left out.

MODULE is a file or a folder; all that TESTS knows without it. The same seed draws the same changes, whatever
else of the module is edited. `--write FILE` keeps the survivors, `--again FILE` tries those alone, and
`--tests FILE ...` with other tests than those of TESTS.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.mutation.changes import Change, changes, drawn

ROOT = Path(__file__).parent.parent.parent
EQUIVALENT = Path(__file__).parent / "equivalent.toml"

VIDEO = ("tests/test_video_metrics.py", "tests/golden/test_video.py")
REPORTS = (
    "tests/test_comparable.py",
    "tests/test_reports.py",
    "tests/test_reports_video.py",
    "tests/test_merging.py",
    "tests/test_terminal.py",
)
RUNS = (
    "tests/test_rows.py",
    "tests/test_scores.py",
    "tests/test_records.py",
    "tests/test_harness.py",
    "tests/test_schema_3.py",
    "tests/test_growth.py",
    "tests/test_clips.py",
    "tests/test_stability.py",
)
# whose tests are to notice a change of what; a file belongs to the first pattern that fits
TESTS: dict[str, tuple[str, ...]] = {
    "pruners/*.py": (
        "tests/test_pruners.py",
        "tests/test_pruners2.py",
        "tests/test_pruners2_layers.py",
        "tests/test_checks.py",
        "tests/test_conformance.py",
        "tests/test_schedules.py",
        "tests/golden/test_pruners.py",
        "tests/golden/test_pruners2.py",
        "tests/golden/test_pruners2_layers.py",
    ),
    "harness/metrics/bootstrap.py": ("tests/test_statistics.py",),
    "harness/metrics/video.py": VIDEO,
    "harness/metrics/boundary.py": VIDEO,
    "harness/metrics/sequences.py": VIDEO,
    "harness/metrics/*.py": (
        "tests/test_metrics.py",
        "tests/test_metric_objects.py",
        "tests/test_grefcoco.py",
    ),
    "harness/gate/*.py": ("tests/test_gate.py", "tests/test_gate_comparison.py"),
    "harness/store/*.py": RUNS,
    "harness/engine/*.py": RUNS,
    "reports/comparable.py": REPORTS,
    "reports/tables.py": REPORTS,
    "reports/leaderboard.py": REPORTS,
    "reports/pareto.py": ("tests/test_figures.py",),
}
NEUTRAL = b"\nif False:\n    _edited = 0\n"  # other code, the same answers
SHORTEST = 20.0  # seconds that every change has at least
SLOWER = 6.0  # times as long as its tests took when they were watched, a change may take


class Mistake(Exception):
    """A sentence for whoever typed the command."""


@dataclass(frozen=True)
class Verdict:
    """What became of a change.

    Attributes:
        fate: "killed", "timed out" or "survived".
        by: the test that failed, or why none did.
    """

    module: str
    change: Change
    fate: str
    by: str

    def __str__(self) -> str:
        return f"{self.module}:{self.change.line}  {self.change.was}  ->  {self.change.now}  ({self.by})"


class Copy:
    """The tree, copied, and a process in it that runs tests."""

    def __init__(self, root: Path, place: Path) -> None:
        self.tree = place / "tree"
        listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        named = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, named):
            if (root / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.tree / name)
        quiet = ["-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "."]
        subprocess.run([sys.executable, *quiet], cwd=self.tree, check=False, capture_output=True)
        settings = {"PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        self.answer = place / "answer.json"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.trials", str(self.answer)],
            cwd=self.tree,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Copy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, **job: Any) -> dict[str, Any]:
        """One job's answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        told = self.process.stdout.readline()
        if not told:
            raise Mistake("The process that runs the tests ended; its words are above.")
        found: dict[str, Any] = json.loads(told)
        return found

    @contextmanager
    def holding(self, module: str, text: bytes) -> Iterator[None]:
        """The module with another text."""
        file = self.tree / module
        before = file.read_bytes()
        file.write_bytes(text)
        try:
            yield
        finally:
            file.write_bytes(before)


class Watched:
    """What one run of a group's tests showed: who comes by which line, how long each takes."""

    def __init__(self, copy: Copy, modules: Sequence[str], files: Sequence[str]) -> None:
        sources = {module: (copy.tree / module).read_bytes() for module in modules}
        for module, text in sources.items():
            (copy.tree / module).write_bytes(text + NEUTRAL)
        traced = [str(copy.tree / module) for module in modules]
        told = copy.ask(trace=traced, files=list(files), limit=7200.0)
        for module, text in sources.items():
            (copy.tree / module).write_bytes(text)
        if told["code"] not in (0, 1) or not told.get("seconds"):
            words = copy.answer.with_suffix(".out").read_text(errors="replace").strip().splitlines()
            raise Mistake("The tests do not run as they are:\n" + "\n".join(words[-15:]))
        copy.ask(load=told["modules"])
        self.tree = copy.tree
        self.left_out: list[str] = told["failed"]
        self.seconds: dict[str, float] = {
            name: seconds for name, seconds in told["seconds"].items() if name not in self.left_out
        }
        self.told = told
        self.totals: dict[str, float] = {}
        for name, seconds in self.seconds.items():
            self.totals[_file(name)] = self.totals.get(_file(name), 0.0) + seconds

    def tests(self, module: str, change: Change, most: float) -> tuple[list[str], int]:
        """Those that come by a change, the quickest file first, and how many are left out because the others
        take `most` seconds already."""
        path = str(self.tree / module)
        places = set(range(change.lines[0], change.lines[1] + 1))

        def by(lines: dict[str, list[int]]) -> bool:
            return not places.isdisjoint(lines.get(path, ()))

        everywhere = not change.running or by(self.told["loaded"])
        if everywhere:  # whoever comes by the module first: what is imported, others may read as well
            places = set(range(1, (self.tree / module).read_bytes().count(b"\n") + 2))
        files = {file for file, lines in self.told["fixtures"].items() if by(lines)}
        near = [name for name in self.seconds if by(self.told["lines"][name]) or _file(name) in files]
        others = set(self.seconds if everywhere else () if near else self.told["apart"]) - set(near)
        found = [*near, *(name for name in self.seconds if name in others)]
        turns: dict[str, int] = {}
        order: list[tuple[bool, int, float, str]] = []
        for name in sorted(found, key=self.seconds.__getitem__):
            turns[_file(name)] = turns.get(_file(name), 0) + 1
            order.append((name in others, turns[_file(name)], self.seconds[name], name))
        quick: set[str] = set()
        together = 0.0
        for *_, seconds, name in sorted(order):  # the quickest of every file, then the next of every file
            if not quick or together + seconds <= most:
                together += seconds
                quick.add(name)

        def file_first(name: str) -> tuple[float, str]:
            return self.totals[_file(name)], _file(name)

        return sorted((name for name in found if name in quick), key=file_first), len(found) - len(quick)


def _file(test: str) -> str:
    """That a test stands in."""
    return test.partition("::")[0]


def judged(copy: Copy, watched: Watched, module: str, change: Change, most: float) -> Verdict:
    """Try one change with tests that take `most` seconds together."""
    tests, slower = watched.tests(module, change, most)
    if not tests:
        return Verdict(module, change, "survived", "no test comes here")
    limit = SHORTEST + SLOWER * sum(watched.seconds[name] for name in tests)
    with copy.holding(module, change.applied((copy.tree / module).read_bytes())):
        told = copy.ask(tests=tests, limit=limit)
    if told["code"] is None:
        return Verdict(module, change, "timed out", f"{limit:.0f} s")
    if told["code"] == 0:
        rest = f", {slower} slower ones did not run" if slower else ""
        return Verdict(module, change, "survived", f"{len(tests)} tests passed{rest}")
    # a failed test, an error while tests are collected, a crash; not what befalls the harness itself
    if told["code"] in (1, 2) or (told["code"] < 0 and told["code"] != -signal.SIGKILL):
        return Verdict(module, change, "killed", told.get("failed") or "it does not load")
    return Verdict(module, change, "survived", f"its tests could not be run (exit code {told['code']})")


def known_modules(
    root: Path, asked: Sequence[str], table: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Modules and their tests, of what was asked for, or all.

    Raises:
        Mistake: something is no module that TESTS has tests for.
    """
    files = sorted(
        str(path.relative_to(root))
        for folder in dict.fromkeys(pattern.partition("/")[0] for pattern in table)
        for path in (root / folder).rglob("*.py")
    )
    tests = {
        file: next((named for pattern, named in table.items() if fnmatch.fnmatchcase(file, pattern)), ())
        for file in files
    }
    tests = {file: named for file, named in tests.items() if named}
    if not asked:
        return tests
    found: dict[str, tuple[str, ...]] = {}
    for name in asked:
        bare = name.strip("/")
        mine = {file: named for file, named in tests.items() if file == bare or file.startswith(f"{bare}/")}
        if not mine:
            raise Mistake(
                f"No tests are known for {name!r}: name a file or a folder of {', '.join(table)}, "
                "or add it to TESTS in tests/mutation/__main__.py."
            )
        found |= mine
    return found


def equivalents(path: Path) -> dict[tuple[str, str, str], str]:
    """(module, before, after) of the changes that change no answer, and why."""
    listed = tomllib.loads(path.read_text(encoding="utf-8")).get("change", []) if path.exists() else []
    return {(one["module"], one["was"], one["now"]): one["why"] for one in listed}


def main(
    arguments: Sequence[str] | None = None, root: Path = ROOT, table: Mapping[str, tuple[str, ...]] = TESTS
) -> int:
    """Try, print, count.

    Args:
        root: the tree, under version control.
        table: as TESTS.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--count", type=int, default=20, help="changes per module (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="of tests per change, as timed when watched; slower ones are left out (default 60)",
    )
    parser.add_argument("--write", type=Path, help="file for the survivors")
    parser.add_argument("--again", type=Path, help="such a file: try these alone")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="instead of those that TESTS has")
    parser.add_argument("--show", action="store_true", help="also what killed each of the others")
    asked = parser.parse_args(arguments)
    try:
        return _report(asked, root, table)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2


def _report(asked: argparse.Namespace, root: Path, table: Mapping[str, tuple[str, ...]]) -> int:
    modules = known_modules(root, asked.modules, table)
    if asked.tests:
        modules = dict.fromkeys(modules, tuple(asked.tests))
    same = equivalents(EQUIVALENT)
    again = json.loads(asked.again.read_text()) if asked.again else None
    chosen: dict[str, list[Change]] = {}
    for module in modules:
        found = changes((root / module).read_bytes())
        texts = {(module, one.was, one.now) for one in found}
        for _, was, now in sorted(key for key in same if key[0] == module and key not in texts):
            print(f"{EQUIVALENT.name} names what {module} no longer has: {was}  ->  {now}")
        if again is not None:
            found = [one for one in found if _place(module, one) in again]
        else:
            found = drawn(found, asked.count, asked.seed, module)
        chosen[module] = [one for one in found if (module, one.was, one.now) not in same]
        if len(found) > len(chosen[module]):
            print(f"{module}: {len(found) - len(chosen[module])} drawn that change no answer")
    groups: dict[tuple[str, ...], list[str]] = {}
    for module in modules:
        if chosen[module]:
            groups.setdefault(modules[module], []).append(module)
    all_told: list[Verdict] = []
    start = time.monotonic()
    for files, members in groups.items():
        with tempfile.TemporaryDirectory() as place, Copy(root, Path(place)) as copy:
            watched = Watched(copy, members, files)
            if watched.left_out:
                print(f"left out, since they fail on edited code: {', '.join(watched.left_out)}")
            for module in members:
                told = []
                for change in chosen[module]:
                    told.append(judged(copy, watched, module, change, asked.seconds))
                    if told[-1].fate == "survived" or asked.show:
                        print(f"  {told[-1].fate}: {told[-1]}", flush=True)
                all_told += told
                print(f"{module}: {_counts(told)}", flush=True)
    print(f"all: {_counts(all_told)} in {time.monotonic() - start:.0f} s")
    if asked.write:
        kept = [_place(one.module, one.change) for one in all_told if one.fate == "survived"]
        asked.write.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


def _place(module: str, change: Change) -> list[Any]:
    """What tells a change from all others, wherever its lines are by now."""
    return [module, change.scope, change.was, change.now, change.nth]


def _counts(told: Sequence[Verdict]) -> str:
    """ "18 of 20 noticed (90 %), 2 survived"."""
    fates = [one.fate for one in told]
    noticed = len(fates) - fates.count("survived")
    share = f" ({100 * noticed / len(fates):.0f} %)" if fates else ""
    late = f", {fates.count('timed out')} of them by the time limit" if "timed out" in fates else ""
    return f"{noticed} of {len(fates)} noticed{share}{late}, {fates.count('survived')} survived"


if __name__ == "__main__":
    raise SystemExit(main())
