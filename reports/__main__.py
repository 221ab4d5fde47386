"""`python -m reports RUN...` is `python -m harness report RUN...`, `python -m reports site RUN...` is
`python -m harness site RUN...`."""

from __future__ import annotations

import sys


def main(arguments: list[str]) -> int:
    """Render the runs together, or a site of them; returns the exit code."""
    from harness.cli import main as command

    return command(arguments if arguments[:1] == ["site"] else ["report", *arguments])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
