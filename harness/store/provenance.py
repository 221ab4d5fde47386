"""Where a number comes from: code, packages, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "groundprune",
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "pillow",
    "pycocotools",
    "sentencepiece",
)


HOME = Path(__file__).resolve().parents[2]
# may move a number in its last bits or more
DECISIVE = ("commit", "diff", "packages", "python", "threads", "device_name")


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=HOME, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def checkout() -> dict[str, Any]:
    """Commit and, where files differ from it, a hash of the difference; None for code that lies in no clone
    of its own."""
    top = _git("rev-parse", "--show-toplevel")
    changes = _git("diff", "HEAD") if top and Path(top).resolve() == HOME else None
    if changes is None:
        return {"commit": None, "dirty": None, "diff": None}
    digest = hashlib.sha256(changes.encode()).hexdigest()[:16] if changes else None
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes), "diff": digest}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, str]:
    """What times hang on beside the device: the processor, and a digest of the host's name, which tells two
    machines of one kind apart and names neither."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:8],
    }


def collect(device: str) -> dict[str, Any]:
    """Facts that do not change the answer but explain it."""
    import torch

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        **checkout(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        **machine(),
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or "cpu",
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which decisive facts of two collections differ."""
    return [fact for fact in DECISIVE if before.get(fact) != now.get(fact)]
