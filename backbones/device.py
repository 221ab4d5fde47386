"""Where a model runs: a device as one writes it, whether it is here, and what `auto` stands for."""

from __future__ import annotations

import re

from pruners.errors import UserError, nearest, reason

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # cuda:1 is one card of several
WRITTEN = re.compile(r"auto|cpu(:0)?|cuda(:[0-9]{1,4})?|mps(:0)?")


def check_device(text: str) -> str:
    """The text, if it is a device as one writes it, here or not; "cpu" for all ways to write the CPU.

    Raises:
        UserError: it is none.
    """
    if not WRITTEN.fullmatch(text):
        hint = nearest(text.lower().replace("gpu", "cuda"), DEVICES)
        raise UserError(f"There is no --device {text[:100]!r}; there are {', '.join(DEVICES)}.{hint}")
    return "cpu" if text.startswith("cpu") else text


def resolve(text: str, index: int = 0) -> str:
    """The device that a text stands for on this machine: "auto" is the CUDA GPU where one works, else the
    CPU.

    Args:
        index: of the card that "auto" tries.

    Raises:
        UserError: it is no device, or is not here.
    """
    import torch

    if check_device(text) == "auto":
        return "cpu" if _unusable(index) else "cuda"
    place = torch.device(check_device(text))
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {text} needs a CUDA GPU and a CUDA build of torch, and here {_unusable()}; give "
                f"--device cpu, or leave it out."
            )
        if (place.index or 0) >= (count := torch.cuda.device_count()):
            there = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise UserError(f"There is no --device {text} here; this machine has {there}, and cpu.")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "--device mps needs a Mac with its own GPU, which this machine is not; give --device cpu, or "
            "leave it out."
        )
    return check_device(text)


def make_current(device: str) -> None:
    """Let whatever names no device mean this one: random states, the thread that pins memory, NCCL, kernels
    of other packages. Without that they would be of the first card."""
    import torch

    if device.startswith("cuda:"):
        torch.cuda.set_device(device)


def told(asked: str, device: str) -> str:
    """A line that says where a model runs, and of `auto` why.

    Args:
        asked: as one wrote it.
        device: what `resolve` made of it.
    """
    import torch

    name = f" ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else ""
    why = f" ({_unusable()})" if asked == "auto" and device == "cpu" else ""
    return f"device: {device}{name}{why}"


def _unusable(index: int = 0) -> str:
    """Why no CUDA GPU can be used here; empty if the one with this index works."""
    import torch

    if not torch.version.cuda and not torch.version.hip:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU"
    try:
        (torch.ones(1, device=f"cuda:{index}") + 1).item()
    except RuntimeError as error:  # a driver that is too old, a card that torch has no kernels for, no memory
        return f"cuda:{index} does not work: {reason(error)}"
    return ""
