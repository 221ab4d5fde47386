"""What one and two torch threads take beside busy processes: `python -m tests.bench.threads`.

Every line is a new process that grounds a few RefShapes images under five methods, over and over; the median
of its rounds. `spinning` is GNU OpenMP's default, in which a thread that waits for the others keeps its
processor for a while; `passive` lets it sleep at once (GOMP_SPINCOUNT=0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

ENVIRONMENTS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, spinning": {"OMP_NUM_THREADS": "2"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"},
}
OWN = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
BUSY = "while True: pass"


def work(images: int, rounds: int) -> None:
    """Ground the images and print the seconds of every round but the first."""
    from harness.engine import runner
    from harness.engine.evaluate import fill
    from harness.engine.prefetch import Parts
    from harness.engine.ranks import Place
    from harness.engine.splits import parts, samples_of
    from harness.plan import Plan

    plan = Plan(
        pruners=("none", "random", "visionzip", "litelvlm", "fastv"),
        budgets=("64",),
        datasets="refshapes:val",
        limit=images,
        seeds=1,
    )
    backbone = plan.load(Place())
    (split,) = runner.prepare(plan, backbone)
    _, loaded = Parts(samples_of([split], parts([split])), backbone.preprocess)[0]
    asks = {sample.id: split.jobs for sample in split.samples}
    for number in range(rounds + 1):
        start = time.perf_counter()
        rows = list(fill(loaded, asks, backbone, split.jobs[0].cell.setting.protocol, 0))
        assert all(row["status"] == "ok" for row in rows)
        if number:
            print(time.perf_counter() - start, flush=True)


def measure(images: int, rounds: int, environment: dict[str, str]) -> list[float]:
    """Seconds of every round of a new process."""
    known = {name: value for name, value in os.environ.items() if name not in OWN}
    words = [sys.executable, "-m", "tests.bench.threads", "--work", "--images", str(images)]
    done = subprocess.run(
        [*words, "--rounds", str(rounds)], env=known | environment, check=True, capture_output=True, text=True
    )
    return [float(line) for line in done.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1, 2], help="processes beside it")
    parser.add_argument("--work", action="store_true", help="be the one that is measured")
    given = parser.parse_args()
    if given.work:
        work(given.images, given.rounds)
        return
    print(
        f"{os.cpu_count()} processors, load before {os.getloadavg()[0]:.1f}; seconds per round of "
        f"{given.images} images, median (fastest) of {given.rounds}"
    )
    for count in given.busy:
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
        try:
            for name, environment in ENVIRONMENTS.items():
                taken = measure(given.images, given.rounds, environment)
                print(
                    f"{count} busy  {name:20} {statistics.median(taken):6.2f} ({min(taken):.2f}), load "
                    f"{os.getloadavg()[0]:.1f}",
                    flush=True,
                )
        finally:
            for one in busy:
                one.kill()
                one.wait()


if __name__ == "__main__":
    main()
