"""`python -m reports RUN...`: the same as `python -m harness report RUN...`."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Render the runs together; returns the exit code."""
    from harness.cli import main as command

    return command(["report", *arguments])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
