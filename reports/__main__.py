"""`python -m reports RUN...`: render the leaderboard of recorded runs again."""

from __future__ import annotations

import sys

from pruners.base import UserError
from reports.leaderboard import render


def main(arguments: list[str]) -> int:
    """Render every run folder named; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m reports RUN...   (folders of runs, e.g. results/runs/<time>-<id>)")
        return 0 if arguments else 2
    try:
        for folder in arguments:
            print(render(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
