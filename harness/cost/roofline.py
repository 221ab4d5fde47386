"""The least time that a GPU needs, from its peak rate and its memory bandwidth: a bound, not a
measurement."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.costs import Shape
from pruners.base import UserError, nearest


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    Attributes:
        rate: dense bfloat16 floating-point operations per second, two per multiply-add.
        bandwidth: bytes per second.
    """

    name: str
    rate: float
    bandwidth: float

    @property
    def crossover(self) -> float:
        """Tokens n below which reading P bfloat16 weights takes longer than computing: n 2P / rate = 2P /
        bandwidth."""
        return self.rate / self.bandwidth


GPUS = {
    "h100": Gpu("H100 SXM", 989e12, 3.35e12),
    "h200": Gpu("H200 SXM", 989e12, 4.8e12),
    "a100": Gpu("A100 SXM 80 GB", 312e12, 2.039e12),
}


def gpu(name: str) -> Gpu:
    """A GPU by its short name.

    Raises:
        UserError: there is no such one.
    """
    if name not in GPUS:
        raise UserError(
            f"There is no data sheet of GPU {name!r}; there are {', '.join(GPUS)}.{nearest(name, GPUS)}"
        )
    return GPUS[name]


def prefill_seconds(macs: float, shape: Shape, on: Gpu, element: int = 2) -> tuple[float, bool]:
    """Seconds of the decoder layers at batch 1, and whether streaming their weights is what takes them."""
    compute = 2 * macs / on.rate
    stream = shape.layers * shape.layer_weights * element / on.bandwidth
    return max(compute, stream), stream > compute


def compute_seconds(macs: float, on: Gpu) -> float:
    """Seconds of work that is bound by arithmetic alone."""
    return 2 * macs / on.rate
