"""Whether a bundle can stand on a board: what it says is held to what follows from something else that it
says, and scores are made of counts alone."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from harness.bundle import content
from harness.bundle.conformance import CHECKS
from harness.bundle.content import BESIDE, MARKS, OF_CELL, OF_METHOD, PATH, Bundle
from harness.bundle.files import MOST_VALUES, read, refuse
from harness.cost.measure import ROUNDS
from harness.cost.store import load_costs
from harness.engine.cells import Setting
from harness.store.rows import validate
from pruners.base import UserError

FAILURES = 0.01  # of the samples: more than that, and a row rests on others than its neighbours
LONGEST = 2000  # letters of a text
MOST_FRAMES, MOST_VIEWS = 10_000, 100  # of a medium
MOST_CELLS = 20_000
WEB = re.compile(r"https://[\w.-]+(/[^\s<>\"']*)?")
RUN = re.compile(r"[0-9a-f]{8,64}")
NAME = re.compile(r"[^\x00-\x1f\x7f]*")
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("format", "run", "time", "by", "url", "licence", "digest"), str),
    **dict.fromkeys(
        ("code", "environment", "samples", "failed", "cells", "methods", "costs", "results"), dict
    ),
    **dict.fromkeys(("plans", "continued", "other_code", "marks"), list),
    "schema": int,
    "finished": bool,
}
OF_ENTRY: dict[str, type] = {
    **{name: type(value) for name, value in BESIDE.items()},
    **dict.fromkeys(("dataset", "split", "pruner", "source", "positions", "data"), str),
    **{"setting": dict, "parameters": list, "budget": int, "seed": int, "own_positions": bool},
}
OF_CODE = {"commit": (str, type(None)), "dirty": (bool, type(None)), "diff": (str, type(None)), "files": dict}
OF_MACHINE = {
    **dict.fromkeys(("python", "system", "processor", "device"), str),
    "packages": dict,
    "threads": (int, type(None)),
}
OF_RESULTS = {"rows": int, "sha256": str}
# of one of a method's facts; the others are those of its cells
OF_FACTS = {"name": str, "reference": str, "own": bool, "conformance": dict}
VALUES = {
    "positions": ("compact", "kept"),
    "stage": ("tower", "layer", "both"),
    "budget_kind": ("final", "mean", "label"),
    "kind": ("method", "control"),
}


def accept(path: Path) -> list[str]:
    """Verify a bundle as a board does that takes it from a stranger.

    Returns:
        What it is, in sentences.

    Raises:
        UserError: it is refused, and why.
    """
    return _told(path, verified(path))


def verified(path: Path) -> Bundle:
    """A bundle that can stand on a board.

    Raises:
        UserError: it is refused, and why.
    """
    bundle = read(path)
    if (why := problem(bundle)) is not None:
        refuse(path, why)
    return bundle


def problem(bundle: Bundle) -> str | None:
    """Why a bundle is refused; None if it is not."""
    try:
        return next(_problems(bundle), None)
    except UserError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        # of the many values that nothing here writes, one that the code above does not foresee
        return f"it says what cannot be ({type(error).__name__}: {' '.join(str(error).split())[:100]})"


def _problems(bundle: Bundle) -> Iterator[str]:
    """Why a bundle is refused, the first thing first; later ones may rest on what earlier ones saw to."""
    yield from _shape(bundle.facts)
    yield from _texts(bundle)
    yield from _cells(bundle)
    yield from _methods(bundle.facts)
    yield from _sizes(bundle)
    yield from _counts(bundle)
    yield from comparable(bundle)
    yield from _costs(bundle)


def _held(what: str, said: Any, kinds: Mapping[str, Any]) -> Iterator[str]:
    """Whether a mapping has these names and no others, each of its type."""
    if not isinstance(said, dict):
        yield f"{what} is a {type(said).__name__}"
        return
    if strange := sorted(set(said) - set(kinds)):
        yield f"{what} says {strange[0][:40]!r}, which this version does not know"
        return
    if lost := sorted(set(kinds) - set(said)):
        yield f"{what} says nothing of {lost[0]!r}"
        return
    for name, kind in kinds.items():
        wrong = not isinstance(said[name], kind)
        if wrong or (isinstance(said[name], bool) and kind is int):
            yield f"{what} has {str(said[name])[:40]!r} for {name!r}"


def _shape(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from _held("it", facts, KINDS)
    if facts["format"] != content.FORMAT:
        yield f"its format is {facts['format'][:40]!r}"
    yield from _held("its code", facts["code"], OF_CODE)
    yield from _held("its results", facts["results"], OF_RESULTS)
    yield from _held("its environment", facts["environment"], OF_MACHINE)
    for texts in (facts["code"]["files"], facts["environment"]["packages"]):
        if not all(isinstance(text, str) for text in texts.values()):
            yield "its code or its packages are told in something else than texts"
    for plan in facts["plans"]:
        if not isinstance(plan, dict) or set(plan) - set(content.OF_PLAN) or not _plain(plan.values()):
            yield "its plan is none"
    if not RUN.fullmatch(facts["run"]):  # its page is a file of that name
        yield f"its run is called {facts['run'][:40]!r}, which is no digest"
    for name in ("samples", "failed"):
        if not all(type(count) is int and count >= 0 for count in facts[name].values()):
            yield f"its {name} are no counts"
    if not 0 < len(facts["cells"]) <= MOST_CELLS:
        yield f"it has {len(facts['cells'])} cells"
    if set(facts["costs"]) not in (set(), {"header", "lines", "conventions"}):
        yield "its costs are none"


def _plain(values: Iterable[Any]) -> bool:
    """Whether these are what a plan has: texts, numbers, and lists of texts."""
    return all(
        one is None
        or isinstance(one, str | int | float)
        or (isinstance(one, list) and all(isinstance(text, str) for text in one))
        for one in values
    )


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from (str(name), *_strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _texts(bundle: Bundle) -> Iterator[str]:
    """Texts are short and plain, and none is a path of somebody's machine."""
    rows = bundle.rows
    texts = [*_strings(bundle.facts), *rows["sample"].unique(), *rows["shown"].unique()]
    for text in texts:
        if len(text) > LONGEST or not NAME.fullmatch(text):
            yield f"a text in it is too long or holds what is no letter: {text[:40]!r}"
        if found := PATH.search(text):
            yield f"it holds a path of somebody's machine, {found[0][:60]!r}"
    for name in ("medium", "cell"):
        odd = next((text for text in rows[name].unique() if not re.fullmatch(r"[0-9a-f]{16}", text)), None)
        if odd is not None:
            yield f"a {name} in it is no digest: {odd[:40]!r}"


def _cells(bundle: Bundle) -> Iterator[str]:
    names = {*OF_CELL, *BESIDE}
    settings = {field.name: int if field.name == "draws" else str for field in fields(Setting)}
    for cell, entry in bundle.facts["cells"].items():
        yield from _held(f"its cell {cell[:16]}", entry, {name: OF_ENTRY[name] for name in names})
        yield from _held(f"the setting of its cell {cell[:16]}", entry["setting"], settings)
        for name, valid in VALUES.items():
            if entry[name] not in valid:
                yield f"its cell {cell[:16]} has {entry[name][:40]!r} for {name!r}"
        grid = entry["grid"]
        if len(grid) not in (0, 2) or not all(type(side) is int and 0 < side < 300 for side in grid):
            yield f"its cell {cell[:16]} has a grid of {str(grid)[:40]}"
        if min(entry["budget"], entry["sent"]) < 0 or entry["pooled"] < 1:
            yield f"its cell {cell[:16]} has a budget of {entry['budget']}"
        if content.cell_id(entry) != cell:
            yield f"its cell {cell[:16]} has another digest than what it says of itself"


def _methods(facts: Mapping[str, Any]) -> Iterator[str]:
    used = {entry["pruner"] for entry in facts["cells"].values()}
    if used != set(facts["methods"]):
        others = ", ".join(sorted(used ^ set(facts["methods"])))[:80]
        yield f"its methods are not those of its cells ({others})"
    for name, method in facts["methods"].items():
        kinds = {one: OF_FACTS.get(one) or OF_ENTRY[one] for one in OF_METHOD}
        yield from _held(f"its method {name[:60]}", method, kinds)
        if method["name"] != name.partition("(")[0]:
            yield f"its method {name[:60]} is called {method['name'][:60]!r}"
        for entry in (entry for entry in facts["cells"].values() if entry["pruner"] == name):
            shared = [one for one in OF_METHOD if one in entry and one != "parameters"]
            if differing := [one for one in shared if entry[one] != method[one]]:
                yield f"its method {name[:60]} and one of its cells differ in {differing[0]}"
            own = [pair for pair in entry["parameters"] if pair[0] != "seed"]
            if own != method["parameters"] or not all(isinstance(key, str) for key, _ in own):
                yield f"its method {name[:60]} and one of its cells differ in parameters"
        if not isinstance(method["conformance"].get("checks"), str) or len(method["conformance"]) != 2:
            yield f"its method {name[:60]} does not say what it was tested by"
        if not method["source"]:
            yield f"its method {name[:60]} has no digest of its source"
        if sorted(method["conformance"].get("passed", [])) != sorted(CHECKS):
            yield f"its method {name[:60]} did not pass the checks of conformance of this version"
        if not method["reference"]:
            yield f"its method {name[:60]} says nothing of where it is from"
        if not method["own"]:
            yield from _foreign(name, facts)
        elif name.partition("(")[0] not in _known():
            yield f"its method {name[:60]} is said to be this project's, which has none of that name"


def _foreign(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    lost = [word for word in ("by", "licence") if not facts[word]]
    if not WEB.fullmatch(facts["url"]):
        lost.append("url")
    if lost:
        given = ", ".join(f"--{word}" for word in lost)
        yield (
            f"its method {name[:60]} is not this project's, and nobody says where its source is: give "
            f"{given}, an https address of the source among them"
        )


def _known() -> list[str]:
    import pruners

    return list(pruners.names())


def _sizes(bundle: Bundle) -> Iterator[str]:
    """Numbers that something as long is made of: a mask for every frame, a bit for every token."""
    rows = bundle.rows
    for name, most in (("frames", MOST_FRAMES), ("views", MOST_VIEWS)):
        if len(rows) and not 1 <= int(rows[name].min()) <= int(rows[name].max()) <= most:
            yield f"its {name} are from {rows[name].min()} to {rows[name].max()}, and may be 1 to {most}"
    if int(rows["frames"].sum()) > MOST_VALUES:
        yield f"its rows have {rows['frames'].sum()} frames together, and may have {MOST_VALUES}"


def _counts(bundle: Bundle) -> Iterator[str]:
    """Every row, as a run's own reader looks at it, and the same expressions in every cell of a split."""
    facts, rows = bundle.facts, bundle.rows
    cells = facts["cells"]
    if strange := set(rows["cell"]) ^ set(cells):
        yield f"its cell {min(strange)} has rows and no description, or none at all"
    twice = rows.duplicated(["cell", "sample", "expression"])
    if twice.any():
        yield f"{int(twice.sum())} of its results stand there twice, first {rows['sample'][twice].iloc[0]!r}"
    for number, row in enumerate(content.records_of(bundle)):
        try:
            validate(row, cells)
        except ValueError as error:
            yield f"row {number} ({row['sample']!r} of {row['pruner']} at {row['budget']}) cannot be: {error}"
    split = rows["cell"].map({cell: f"{entry['dataset']}:{entry['split']}" for cell, entry in cells.items()})
    for name, part in rows.groupby(split):
        sizes = part.groupby("cell").size()
        if len(part[["sample", "expression"]].drop_duplicates()) != sizes.min() or sizes.min() != sizes.max():
            several = f"{sizes.min()} to {sizes.max()} expressions"
            yield f"its rows of {name} rest on {several}, or on other ones, and do not compare"
        if part["sample"].nunique() != facts["samples"].get(name):
            yield f"it has {part['sample'].nunique()} samples of {name} and says {facts['samples'].get(name)}"
        if (
            len({cells[cell]["data"] for cell in part["cell"].unique()}) != 1
            or not cells[part["cell"].iloc[0]]["data"]
        ):
            yield f"its cells of {name} rest on other data than each other, or on none that has a fingerprint"


def comparable(bundle: Bundle) -> Iterator[str]:
    """Why a run's rows do not compare with those of others."""
    facts = bundle.facts
    if not facts["finished"]:
        yield "its run is not finished"
    if facts["other_code"]:
        yield (
            f"results of {', '.join(map(str, facts['other_code']))} were computed by other code than the "
            f"rest of their rows (--keep-code)"
        )
    said = [mark for mark in MARKS if mark in facts["marks"]]
    if said != content.marks(facts) or len(said) != len(facts["marks"]):
        yield f"it is marked {facts['marks']!r} where its run is {content.marks(facts)!r}"
    failed, asked = sum(facts["failed"].values()), sum(facts["samples"].values())
    if failed > FAILURES * (asked + failed):
        yield (
            f"{failed} of its {asked + failed} samples failed, and {100 * FAILURES:g} % may; see what "
            f"`python -m harness doctor` says of the data"
        )
    parts = {cell: _part(entry) for cell, entry in facts["cells"].items()}
    full = {parts[cell] for cell, entry in facts["cells"].items() if entry["pruner"] == "none"}
    lost = sorted({part[1] for part in parts.values() if part not in full})
    if lost:
        yield (
            f"it has no row `none` of {', '.join(lost)}, so nothing says what an unpruned model reaches "
            f"there; run again with --pruners none,... --out and the same folder"
        )


def _part(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What rows of one `none` share: the setting, and the split."""
    return str(sorted(entry["setting"].items())), f"{entry['dataset']}:{entry['split']}"


def _costs(bundle: Bundle) -> Iterator[str]:
    """Costs are read as a run's own; times of few rounds are chance."""
    if not bundle.facts["costs"]:
        return
    with tempfile.TemporaryDirectory() as folder:
        empty = Bundle(bundle.facts, bundle.rows.head(0))
        try:
            costs: pd.DataFrame = load_costs(content.unpack(empty, Path(folder) / "run"))
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            yield f"its costs are damaged ({' '.join(str(error).split())[:200]})".replace(folder, "")
            return
    kind = bundle.facts["costs"]["header"].get("costs")
    if kind not in ("measured", "projected") or costs.empty:
        yield f"its costs are {str(kind)[:40]!r}, which are neither measured nor projected"
    if kind == "measured":
        rounds = costs["rounds"].min() if "rounds" in costs and costs["rounds"].notna().all() else 0
        if rounds < ROUNDS:
            yield (
                f"its costs rest on {int(rounds)} rounds, and {ROUNDS} are the least; give the run's command "
                f"again, which measures what is missing"
            )
    numbers = costs.select_dtypes("number")
    if any(math.isinf(value) for name in numbers for value in numbers[name]):
        yield "its costs hold what is no number"


def _told(path: Path, bundle: Bundle) -> list[str]:
    """What was accepted, and what its reader has to know."""
    from harness.store import code

    facts, known = bundle.facts, _known()
    names = list(facts["methods"])
    told = [
        f"{path}: accepted, run {facts['run']}, {len(names)} methods ({', '.join(names)}), "
        f"{len(facts['cells'])} cells, {len(bundle.rows)} results of {', '.join(facts['samples'])}"
    ]
    told += [f"marked {mark}: {MARKS[mark]}" for mark in facts["marks"]]
    for name, method in facts["methods"].items():
        if not method["own"]:
            told.append(f"{name} is by {facts['by']}, source at {facts['url']} ({facts['licence']})")
        elif method["name"] in known:
            import pruners

            if code.of_pruner(pruners.get(method["name"])) != method["source"]:
                told.append(f"{name} was computed by another version of this project's {method['name']}")
    return told
