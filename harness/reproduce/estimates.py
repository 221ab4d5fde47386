"""How large and how long: memory and hours of a plan, from shapes alone, before a file is here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

import backbones
from harness.cost import projection, sharing
from harness.cost.lines import lines_of
from harness.cost.roofline import GPUS, Gpu, compute_seconds
from harness.engine.served import served
from harness.plan import Plan
from harness.reproduce.spec import Spec
from pruners.errors import UserError

MARGIN = 1.2  # of memory: workspaces, fragments, and what allocators keep
REACHED = 0.3  # of a GPU's peak rate: an assumption, told beside the figure
AT_ONCE = 8  # images whose encodings are in memory together


@dataclass(frozen=True)
class Estimate:
    """What a plan takes.

    Attributes:
        weights: bytes.
        peak: bytes alive beside the weights, of one batch.
        images: of all splits; sentences where each is asked alone.
        macs: multiply-adds of the whole plan, cells sharing what they have in common; 0 where sizes of splits
            are not known.
        cells: rows of the table that is computed.
        gpu: of this machine, if its data sheet is known; None without one.
        has: bytes of this machine's GPU; None without one.
        notes: what else the figures rest on, as how long a clip is.
    """

    weights: int
    peak: int
    images: int
    macs: float
    cells: int
    gpu: Gpu | None
    has: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        """Bytes on a GPU, with a margin."""
        return round(MARGIN * (self.weights + self.peak))

    def hours(self, on: Gpu) -> tuple[float, float]:
        """Of a GPU: at its peak rate, which is a bound, and at REACHED of it."""
        bound = compute_seconds(self.macs, on) / 3600
        return bound, bound / REACHED


def of(spec: Spec, plan: Plan) -> Estimate | None:
    """What a plan takes by the projection of the spec's `shapes`; None where these are not known.

    Args:
        plan: of the spec, with the user's `limit` and precision.
    """
    name = spec.shapes or spec.backbone
    settings = backbones.one(name)
    try:
        model = settings.shapes()
    except UserError:
        if spec.shapes:
            raise
        return None  # its files would tell
    if model is None:
        return None
    dtype = getattr(torch, plan.dtype)
    prompt = model.prompt()
    able, _ = served(plan.chosen(), settings)
    lines = lines_of(able, plan.budgets, 0, model.grid, model.shape.layers, settings.stated)
    projected = projection.project(model, lines, prompt, dtype=dtype)
    elements = sum(
        one.numel()
        for module in vars(model).values()
        if isinstance(module, nn.Module)
        for one in module.parameters()
    )
    inside = int(projected.cells["activation_peak"].max()) * min(plan.batch_size, len(lines) * AT_ONCE)
    outside = max(projected.peaks.values(), default=0) * (1 if settings.medium == "video" else AT_ONCE)
    images = macs = 0
    for dataset, split in spec.columns:
        held = spec.split(f"{dataset}:{split}")
        if held is None:
            continue
        many = min(plan.limit or held.images, held.images)
        images += many
        # a drawn conversation holds all that is asked of an image; else every sentence has one of its own
        alone = spec.protocol not in settings.drawn and held.sentences is not None
        talks = max(1, round((held.sentences or 0) / held.images)) if alone else 1
        one = prompt.alone() if alone else prompt
        macs += many * sharing.account(projected, lines, one, talks).shared
    return Estimate(
        elements * dtype.itemsize, max(inside, outside), images, float(macs), len(lines), *_card(plan.device)
    )


def _card(device: str) -> tuple[Gpu | None, int | None]:
    """Data sheet and bytes of the card that a plan's device means, the first one where it names none; None
    without a GPU, the sheet also of a card that is not known."""
    place = torch.device(device if device.startswith("cuda") else "cuda:0")
    if not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count():
        return None, None
    name = torch.cuda.get_device_name(place).lower()
    sheet = next((sheet for key, sheet in GPUS.items() if key in name), None)
    return sheet, torch.cuda.get_device_properties(place).total_memory
