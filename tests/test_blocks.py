"""Rows that are checked thousands at a time: what is let through so is what the check of single rows lets
through, with the same values."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.store import blocks, records, rows
from harness.store.journal import Reader, line
from harness.store.records import JOURNAL, SCHEMA, SCHEMAS, Journals
from pruners import UserError
from tests.a_run import SETTING, a_cell, a_row
from tests.bench.rows import SPLITS, Drawn, cells_of, of_image

CELLS = cells_of(SPLITS[0])
NAMES = SPLITS[0]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Of a journal, of three images."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "images").mkdir()
    drawn = Drawn(200)
    made = [row for number in range(3) for row in of_image(folder, drawn, NAMES, number)]
    made = [row | ({"coverage": None} if k % 50 == 49 else {}) for k, row in enumerate(made)]
    failed = {name: made[-1][name] for name in (*rows.KEYS, *rows.ASKED, *rows.OF_CELL) if name in made[-1]}
    made.append(failed | {"status": "failed", "place": -1, "reason": "broken", "sample": "refcoco:val:9"})
    return [line(rows.validate(row, CELLS)) for row in made]


def one_by_one(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """The rows, None if one is refused."""
    found = []
    for one in lines:
        try:
            body, _, end = one[:-1].rpartition(b', "crc": "')
            if int(end[:8], 16) != zlib.crc32(body + b"}"):
                return None
            row = rows.validate(json.loads(body + b"}"), CELLS)
        except (ValueError, RecursionError):
            return None
        if (row["dataset"], row["split"]) != NAMES:
            return None
        found.append(row)
    return found


def as_rows(tables: blocks.Tables) -> list[Any]:
    return [(status, table.to_pylist()) for status, table in tables.items()]


def agree(lines: list[bytes]) -> str:
    """Whether a block is let through and right ("fast"), or is left to the other check ("left")."""
    found, wanted = blocks.sound(lines, CELLS, *NAMES), one_by_one(lines)
    if found is None:
        return "left" if wanted is None else "left, though sound"
    assert wanted is not None, "a row was let through that the check of single rows refuses"
    assert as_rows(found) == as_rows(blocks.tables_of(wanted))
    return "fast"


def resummed(row: dict[str, Any], change: dict[str, Any]) -> bytes:
    return line({name: value for name, value in (row | change).items() if name not in ("crc", *gone(change))})


def gone(change: dict[str, Any]) -> list[str]:
    return [name for name, value in change.items() if value is ...]


def test_a_sound_block_is_let_through(lines: list[bytes]) -> None:
    assert agree(lines) == "fast"
    assert agree(lines[:9]) == "fast"  # descriptions alone


VALUES = [
    *(..., None, True, "", "x", "a b", "@", "1", "0" * 16, "\x00", "\ud800", "ä", "é" * 9, [], {}, ["a"]),
    *(0, 1, -1, 2, 3, 7, 64, 65, 576, 10**6, 2**53 - 1, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1.5, 64.0, -1e-9, 1 + 1e-10, 2.0, 1e300, float("nan"), float("inf")),
    *({"a": 1}, {"a": None}, {"j_fixed": 1.0}, {"j": 0.5, "f": 0.5}, {"a": True}, {"a": [1]}, {"a": 2**60}),
    *(
        "images/a.jpg",
        "images/../a.jpg",
        "images/a.jpg\n",
        "////",
        "AAA=",
        "AA==",
        "A",
        "@@@@",
        "0o 0o",
        "0o\n",
    ),
    *("refcoco:val:0", "refcoco:testA:0", "refcoco", "val", "ok", "sample", "failed", "each", "other"),
]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_let_through_is_what_single_rows_would_be(lines: list[bytes], seed: int) -> None:
    draw = random.Random(seed)
    said: Counter[str] = Counter()
    lines = [*lines[6:20], *lines[-4:]]
    for _ in range(300):
        changed = list(lines)
        at = draw.randrange(len(lines))
        row = json.loads(lines[at])
        name = draw.choice(sorted(row.keys() - {"crc"}))
        changed[at] = resummed(row, {name: draw.choice(VALUES)})
        said[agree(changed)] += 1
    assert said["left"] > 100 and said["fast"] > 10
    assert said["left, though sound"] < said["fast"] + said["left"]


@pytest.mark.parametrize("name", sorted(rows.KEYS | rows.STATUS["ok"]))
def test_every_field_with_every_value(lines: list[bytes], name: str) -> None:
    few = lines[8:12] + lines[-2:]
    at = next(k for k, one in enumerate(few) if b'"status": "ok"' in one)
    row = json.loads(few[at])
    said = Counter(agree([*few[:at], resummed(row, {name: value}), *few[at + 1 :]]) for value in VALUES)
    assert said["left"] > 20


@pytest.mark.parametrize(
    "other",
    [
        {"intersection": 0, "union": 0, "iou": 1.0},
        {"intersection": 3, "union": 9, "iou": 3 / 9},
        {"rounding_tokens": 3.0, "rounding_iou": -0.25},
        {"rounding_tokens": 600.0, "rounding_iou": 0.0},
        {"rounding_tokens": 0.0, "rounding_iou": 1.5},
        {"seg_said": 1, "wrote": "It is [SEG]."},
        {"tokens_llm": None},
        {"tokens_llm": 12},
        {"mask": ""},
        {"shown": "0"},
        {"frames": 2, "mask": "0o 0o"},
        {"views": 2},
        {"measures": {"gres_both": 3, "gres_mask": 4.5}},
        {"measures": {"j": 0.5, "f": 0.5, "j_fixed": 0.5}},
        {"curves": {"j": [1]}},
        {"text": "of another kind of row", "height": "no number"},
        {"more": {"deep": [[[1]], {"a": "b"}]}},
        {"cell": "ffff"},
        {"seed": 1},
        {"of": 2},
        {"kept": "/" * 100},
        {"kept": "/" * 95 + "="},
        {"kept": "/" * 95 + "\n"},
    ],
    ids=str,
)
def test_fields_that_belong_together(lines: list[bytes], other: dict[str, Any]) -> None:
    at = next(k for k, one in enumerate(lines) if b'"status": "ok"' in one)
    changed = [*lines[:at], resummed(json.loads(lines[at]), other), *lines[at + 1 :]]
    everywhere = [resummed(json.loads(one), other) if b'"status": "ok"' in one else one for one in lines]
    for block in (changed, everywhere):
        agree(block)


def test_numbers_that_all_rows_measured_stay_on_the_fast_way(lines: list[bytes]) -> None:
    said = {"gres_both": 3, "gres_mask": 4.5}
    changed = [resummed(json.loads(one), {"measures": said}) if b'"ok"' in one else one for one in lines]
    assert agree(changed) == "fast"


@pytest.mark.parametrize(
    "hurt",
    [
        lambda one: one.replace(b'"cell"', b'"Cell"'),
        lambda one: one[:-1],
        lambda one: one + one,
        lambda one: b"\n",
        lambda one: one[:30] + bytes([one[30] ^ 1]) + one[31:],
        lambda one: one.replace(b', "crc"', b',"crc"'),
        lambda one: again(one[:-21] + b"}{}"),
        lambda one: again(one[:-21] + b', "a": ' + b"[" * 3000 + b"]" * 3000 + b"}"),
        lambda one: again(one[:-21] + b', "a": ' + b'{"a": ' * 900 + b"1" + b"}" * 900 + b"}"),
        lambda one: again(one[:-21] + b', "of": 3}'),
        lambda one: again(one[:-21] + b',}'),
        lambda one: again(one[:-21] + b', "a": "\xff"}'),
        lambda one: again(one[:-21] + b', "a": "\xc3\xa4"}'),
        lambda one: again(one[:-21] + b', "a": NaN}'),
        lambda one: again(b"[" + one[:-21] + b"}]"),
    ],
)  # fmt: skip
def test_damaged_lines_are_left_to_the_check_that_names_them(
    lines: list[bytes], hurt: Callable[[bytes], bytes]
) -> None:
    for at in (0, 20, len(lines) - 1):
        agree([*lines[:at], hurt(lines[at]), *lines[at + 1 :]])


def again(body: bytes) -> bytes:
    """A line with a sound checksum."""
    return b'%s, "crc": "%08x"}\n' % (body[:-1], zlib.crc32(body))


@pytest.mark.parametrize(
    "change",
    [
        {"grid": [20, 20]},
        {"grid": None},
        {"pooled": 0},
        {"sent": 12},
        {"sent": "12"},
        {"budget_kind": "mean"},
        {"budget_kind": "label"},
        {"stage": "layer"},
        {"setting": SETTING | {"backbone": "glamm", "answers": "generated"}},
        {"pruner": "other"},
        {"budget": 3},
        {"budget": True},
        {"split": "testB"},
    ],
    ids=str,
)
def test_what_a_cell_says_counts_for_its_rows(
    lines: list[bytes], change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for cell in list(CELLS)[:3]:
        with monkeypatch.context() as patch:
            patch.setitem(CELLS, cell, {**CELLS[cell], **change})
            agree(lines)


# --- journals, whichever way they are read


def journal(place: Path, lines: list[bytes], name: str = "a") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name}.jsonl"
    path.write_bytes(b"".join([line({"schema": SCHEMA}), *lines]))
    return path


def test_tables_of_a_journal_hold_its_rows(lines: list[bytes], tmp_path: Path) -> None:
    place = tmp_path / "records" / "refcoco-val"
    journal(place, lines[:200]), journal(place, lines[200:], "b")
    wanted = Counter(map(str, (records.row_key(row) for row in Journals(place, CELLS).rows())))
    keys = [records.row_key(row) for row in Journals(place, CELLS).row_keys()]
    assert Counter(map(str, keys)) == wanted and len(keys) == len(lines)


@pytest.mark.parametrize("small", [False, True], ids=["one block", "small blocks"])
def test_rows_that_stand_twice_come_once_and_those_that_differ_are_named(
    lines: list[bytes], tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        monkeypatch.setattr(records, "BLOCK", 10_000)
    place = tmp_path / "records" / "refcoco-val"
    journal(place, lines), journal(place, lines[40:120], "b")
    journal(place, [*lines[:5], lines[5], lines[5]], "c")
    keys = [records.row_key(row) for row in Journals(place, CELLS).row_keys()]
    assert len(keys) == len(set(keys)) == len(lines)
    row = json.loads(lines[60])
    journal(place, [resummed(row, {"mask": row["mask"] + "0"})], "d")
    with pytest.raises(UserError, match=r"a.jsonl:62 and .*d.jsonl:2 are the same result .*mask"):
        list(Journals(place, CELLS).tables())


def test_a_damaged_line_far_down_is_named(lines: list[bytes], tmp_path: Path) -> None:
    place = tmp_path / "records" / "refcoco-val"
    journal(place, [*lines[:-1], resummed(json.loads(lines[-2]), {"union": -3})])
    with pytest.raises(UserError, match=rf"a.jsonl:{len(lines) + 1} is damaged \(its intersection"):
        list(Journals(place, CELLS).tables())


def test_a_journal_of_another_split_is_refused(lines: list[bytes], tmp_path: Path) -> None:
    place = tmp_path / "records" / "refcoco-testA"
    journal(place, lines)
    with pytest.raises(UserError, match=r"a.jsonl:2 is damaged \(it is of refcoco:val\)"):
        list(Journals(place, CELLS).tables())


def test_a_reader_goes_on_where_its_blocks_ended(lines: list[bytes], tmp_path: Path) -> None:
    path = journal(tmp_path, lines[:50])
    reader = Reader(path, SCHEMAS, JOURNAL)
    first = [one for some in reader.blocks(5_000) for one in some]
    with path.open("ab") as file:
        file.write(b"".join(lines[50:60]) + lines[60][:-7])
    more = [(number, row["place"]) for number, row in reader]
    assert first == lines[:50]
    assert more == [(52 + k, json.loads(one)["place"]) for k, one in enumerate(lines[50:60])]


def test_places_that_have_no_number_are_looked_at_one_by_one() -> None:
    row = a_row(("refcoco", "val"), "random", 64, 0, 1)
    cells = {row["cell"]: a_cell(row, SETTING, "d", "final")}
    far = [rows.validate(row | {"place": place, "of": 2**40}, cells) for place in (1, 2**40 - 1)]
    keys = blocks.Keys()
    assert not keys.add(blocks.tables_of(far))
    assert keys.add(blocks.tables_of(far[:1])) and not keys.add(blocks.tables_of(far[:1]))
    assert records.row_key(far[0]) in keys and records.row_key(far[1]) not in keys
