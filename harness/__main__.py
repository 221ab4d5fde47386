"""`python -m harness`, and the command `groundprune`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line; Ctrl-C is no traceback, not even while its first modules are imported."""
    try:
        from harness.cli import main as run
    except KeyboardInterrupt:
        print("stopped before anything began", file=sys.stderr)
        return 130
    code = run()
    if code in (130, 143):  # stopped: nobody waits until every library has let go of its memory
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
