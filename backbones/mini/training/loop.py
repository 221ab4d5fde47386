"""What all training stages share: seeding, two-process averaging, schedule, log and resumable checkpoints."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

MUON = 2.0  # its rate over AdamW's
LossFn = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]


def rank_and_world() -> tuple[int, int]:
    """Position of this process among the launcher's, (0, 1) when it runs alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def rng_of(seed: int, stage: str, step: int, rank: int) -> np.random.Generator:
    """Random numbers that depend on (seed, stage, step, rank) alone, so a resumed run draws what it would
    have drawn."""
    return np.random.default_rng([seed, sum(stage.encode()), step, rank])


def _average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


def run_stage(
    stage: str,
    modules: nn.Module,
    loss_fn: LossFn,
    *,
    folder: Path,
    steps: int,
    lr: float,
    seed: int,
    matrices: Sequence[nn.Parameter] = (),
    warmup: int = 200,
    weight_decay: float = 0.02,
    save_every: int = 100,
    log_every: int = 25,
) -> None:
    """Minimise `loss_fn` over the parameters of `modules` that need a gradient.

    Continues from `folder/<stage>.pt` if it is there. `loss_fn(step, rng)` returns the loss and figures for
    the log. AdamW; `matrices` by Muon (orthogonalised momentum) at twice the rate. Learning rate: linear
    warm-up, then cosine to 2 %.
    """
    rank, world = rank_and_world()
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    parameters = [p for p in modules.parameters() if p.requires_grad]
    by_muon = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in by_muon]
    optimizers: list[tuple[float, torch.optim.Optimizer]] = [
        (
            lr,
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.ndim > 1], "weight_decay": weight_decay},
                    {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                lr=lr,
                betas=(0.9, 0.98),
            ),
        )
    ]
    if matrices:
        muon = torch.optim.Muon(
            matrices, lr=MUON * lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append((MUON * lr, muon))
    checkpoint, first = folder / f"{stage}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        modules.load_state_dict(state["modules"])
        for (_, optimizer), kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first = int(state["step"])
    log, started, sums, counted = folder / f"{stage}.csv", time.time(), {}, 0  # type: ignore[var-annotated]
    modules.train()
    for step in range(first, steps):
        scale = min(1.0, (step + 1) / min(warmup, steps // 10 + 1)) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        for rate, optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        loss, figures = loss_fn(step, rng_of(seed, stage, step, rank))
        for _, optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if world > 1:
            _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for _, optimizer in optimizers:
            optimizer.step()
        for key, value in {"loss": float(loss), **figures}.items():
            sums[key] = sums.get(key, 0.0) + value
        counted += 1
        last = step + 1 == steps
        if rank == 0 and ((step + 1) % log_every == 0 or last):
            row = {"step": step + 1, "seconds": round(time.time() - started, 1)}
            row |= {key: round(value / counted, 4) for key, value in sums.items()}
            fresh = not log.exists()
            with log.open("a", newline="") as handle:
                writer = csv.DictWriter(handle, fieldnames=list(row))
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
            print(stage, row, flush=True)
            sums, counted = {}, 0
        if rank == 0 and ((step + 1) % save_every == 0 or last):
            partial = checkpoint.with_suffix(".tmp")
            torch.save(
                {
                    "modules": modules.state_dict(),
                    "optimizers": [optimizer.state_dict() for _, optimizer in optimizers],
                    "step": step + 1,
                },
                partial,
            )
            partial.replace(checkpoint)
    modules.eval()


def cache(
    path: Path, total: int, shape: tuple[int, ...], batch: int, compute: Callable[[slice], Tensor]
) -> NDArray[np.float16]:
    """Rows of a frozen encoder on disk: every rank fills its own batches, a mark file says that one is
    done."""
    rank, world = rank_and_world()
    marks = path.with_suffix(".done")
    marks.mkdir(parents=True, exist_ok=True)
    if not path.exists() and rank == 0:
        np.lib.format.open_memmap(path, "w+", dtype=np.float16, shape=(total, *shape)).flush()
    while not path.exists():
        time.sleep(0.2)
    rows = np.load(path, mmap_mode="r+")
    starts = range(0, total, batch)
    for start in tqdm(list(starts)[rank::world], desc=f"encoding {path.stem}", disable=rank > 0):
        mark = marks / str(start)
        if not mark.exists():
            rows[start : start + batch] = compute(slice(start, min(start + batch, total))).cpu().numpy()
            mark.touch()
    while sum(1 for _ in marks.iterdir()) < len(starts):
        time.sleep(0.5)
    rows.flush()
    return np.load(path, mmap_mode="r")
