"""Recorded answers a few rows at a time, for what needs their masks: of a whole data set, all of them are
gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from harness.store.records import shown_tables
from harness.store.run_folder import cells_of, done_info, run_info, split_folder, splits_of
from harness.store.tables import batches_of

ANSWERS = "ok.parquet"


def answers(folder: Path, columns: Sequence[str], at_once: int) -> Iterator[pd.DataFrame]:
    """Rows of status ok of the current cells, some columns of them.

    Raises:
        UserError: what is there cannot be trusted; names file and line.
    """
    for table in answer_tables(folder, columns, at_once):
        yield table.to_pandas()


def answer_tables(folder: Path, columns: Sequence[str], at_once: int) -> Iterator[pa.Table]:
    """As `answers`, as Arrow tables."""
    info = run_info(folder)
    shown, tables = cells_of(info), done_info(folder).get("splits", {})
    for dataset, split in splits_of(shown):
        place = split_folder(folder, dataset, split)
        facts = tables.get(place.name, {}).get(ANSWERS)
        if facts is not None and (place / ANSWERS).is_file():
            yield from batches_of(folder, place / ANSWERS, facts, columns, at_once)
            continue
        for some in shown_tables(place, info["cells"], shown):
            table = some["ok"].select(list(columns))
            for first in range(0, len(table), at_once):
                yield table.slice(first, at_once)
