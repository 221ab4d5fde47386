"""The record reader under random damage: it raises one kind of error, or drops what was torn off at the
end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.store import records
from harness.store.journal import line
from pruners import UserError

ROWS = [
    {"cell": f"c{k % 3}", "sample": f"s{k}", "place": 0, "of": 1, "status": "ok", "note": 'ä{}\\n"'}
    for k in range(12)
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "0.jsonl"


def content() -> bytes:
    return b"".join(line(row) for row in [{"schema": records.SCHEMA}, *ROWS])


@given(size=st.integers(0, len(content())))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cut_off_anywhere_the_whole_rows_are_read(file: Path, size: int) -> None:
    file.write_bytes(content()[:size])
    whole = content()[:size].count(b"\n")
    assert list(records.read_lines(file)) == ROWS[: max(0, whole - 1)]


@given(start=st.integers(0, len(content()) - 1), damage=st.binary(min_size=1, max_size=30))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_reported_or_costs_nothing_but_the_last_line(file: Path, start: int, damage: bytes) -> None:
    raw = bytearray(content())
    raw[start : start + len(damage)] = damage
    file.write_bytes(raw)
    try:
        rows = list(records.read_lines(file))
    except UserError as error:
        assert file.name in str(error)
        return
    hurt = range(
        bytes(content()[:start]).count(b"\n") - 1, bytes(content()[: start + len(damage)]).count(b"\n")
    )
    for k, row in enumerate(ROWS[:-1]):
        if k not in hurt:
            assert row in rows, f"row {k} was skipped silently"


@given(junk=st.binary(max_size=300))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(file: Path, junk: bytes) -> None:
    file.write_bytes(junk)
    with suppress(UserError):
        assert all(isinstance(row, dict) for row in records.read_lines(file))
