"""`python -m tests.lock` renews constraints.txt: the newest versions inside pyproject.toml's ranges, all that
they need included.

They are installed into a fresh virtual environment; run `.ci/run` afterwards, which tests the new set in
full.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bounds import ROOT, locked

HEAD = "# Exact versions of all packages that a change was tested with; renewed by `python -m tests.lock`.\n"


def main() -> None:
    """Install, list, write."""
    torch = f"torch=={locked()['torch']}"  # moved by hand: its builds are made for machines
    with tempfile.TemporaryDirectory() as place:
        python = Path(place) / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run(
            [*pip, "install", "--quiet", torch, "setuptools", "wheel", "-e", f"{ROOT}[test,docs]"], check=True
        )
        # deepspeed's build reads the torch that is there; processes on a CPU need none of its kernels
        distributed = [*pip, "install", "--quiet", "--no-build-isolation", "-e", f"{ROOT}[distributed]"]
        subprocess.run(distributed, check=True, env=os.environ | {"DS_BUILD_OPS": "0"})
        told = subprocess.run(
            [*pip, "freeze", "--all", "--exclude-editable"], check=True, capture_output=True, text=True
        ).stdout
    # a build's local name (+cpu) is left out, so that the same line serves every machine
    found = sorted(
        (line.split("+")[0] for line in told.splitlines() if "==" in line and not line.startswith("pip==")),
        key=str.lower,
    )
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(found) + "\n", encoding="utf-8")
    print(f"{len(found)} packages: constraints.txt")


if __name__ == "__main__":
    main()
