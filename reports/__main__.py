"""`python -m reports RUN...`: render the report of recorded runs again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pruners.base import UserError
from reports import report


def main(arguments: list[str]) -> int:
    """Render the runs together; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m reports", description="Leaderboard, figures and page of recorded runs."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run, e.g. results/runs/<id>; several become one report",
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write to; by default the first run's")
    parser.add_argument("--latex", action="store_true", help="write leaderboard.tex too")
    parser.add_argument("--full", action="store_true", help="print all columns, each explained")
    parser.add_argument(
        "--export", metavar="FILE", type=Path, help="write the tables there, too: .csv, .json, .md or .tex"
    )
    parser.add_argument("--baseline", metavar="PRUNER", help="compare every row with this pruner, e.g. fastv")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="Python file that registers metrics"
    )
    parser.add_argument(
        "--metric", metavar="NAME", help="rank by this metric, e.g. giou; by default ciou, of clips j&f"
    )
    try:
        given = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if given.plugin:
            from pruners import load_plugin

            for path in given.plugin:
                load_plugin(path)
        if given.export is not None:
            from reports import export

            export.check(given.export)
        made = report(given.runs, given.out, given.baseline, given.latex, given.metric)
        if given.export is not None:
            export.write([made.sheet()], given.export)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(made.text(given.full))
    if given.export is not None:
        print(f"export: {given.export}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
