"""Recorded answers a few rows at a time, for what needs their masks: of a whole data set, all of them are
gigabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

from harness.store.records import Journals, is_shown
from harness.store.run_folder import cells_of, done_info, run_info, split_folder, splits_of
from harness.store.tables import batches_of

ANSWERS = "ok.parquet"


def answers(folder: Path, columns: Sequence[str], at_once: int) -> Iterator[pd.DataFrame]:
    """Rows of status ok of the current cells, some columns of them.

    Raises:
        UserError: what is there cannot be trusted; names file and line.
    """
    info = run_info(folder)
    shown, tables = cells_of(info), done_info(folder).get("splits", {})
    for dataset, split in splits_of(shown):
        place = split_folder(folder, dataset, split)
        facts = tables.get(place.name, {}).get(ANSWERS)
        if facts is not None and (place / ANSWERS).is_file():
            for frame in batches_of(folder, place / ANSWERS, facts, columns, at_once):
                yield frame[frame["cell"].isin(list(shown))].reset_index(drop=True)
            continue
        rows = (
            {name: row[name] for name in columns}
            for row in Journals(place, info["cells"]).rows()
            if row["status"] == "ok" and is_shown(row, shown)
        )
        while some := list(islice(rows, at_once)):
            yield pd.DataFrame(some)
