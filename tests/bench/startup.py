"""How long the first answer takes: `python -m tests.bench.startup`, median and worst of new processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

TIMES = 9
COMMANDS = (["--help"], ["list"])


def main() -> None:
    """Measure and print."""
    for words in COMMANDS:
        taken = []
        for _ in range(TIMES):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "harness", *words], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - start)
        print(
            f"python -m harness {' '.join(words):8} median {statistics.median(taken):.2f} s, worst "
            f"{max(taken):.2f} s of {TIMES}"
        )


if __name__ == "__main__":
    main()
