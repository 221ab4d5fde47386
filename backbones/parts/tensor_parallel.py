"""A language model over several devices: each has some of the heads and some of the feed-forward part of
every layer."""

from __future__ import annotations

import os
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import LlamaModel

from backbones.parts import llama
from pruners.base import UserError


def mesh(size: int, device: str) -> DeviceMesh:
    """This process's team of `size` neighbours.

    Raises:
        UserError: the launcher did not start a multiple of `size` processes.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % size:
        raise UserError(
            f"--tensor-parallel {size} needs a multiple of {size} processes and there are {world}; "
            f"start with torchrun --nproc_per_node {size} -m harness ..."
        )
    kind = torch.device(device).type
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return init_device_mesh(kind, (world // size, size), mesh_dim_names=("data", "tensor"))["tensor"]


def split_layers(llm: LlamaModel, team: DeviceMesh) -> None:
    """Leave every process of the team its share of each layer; the rest of the model stays whole everywhere.

    Raises:
        UserError: the attention heads do not divide evenly.
    """
    config, size = llm.config, team.size()
    if config.num_attention_heads % size or config.num_key_value_heads % size:  # type: ignore[operator]
        raise UserError(
            f"--tensor-parallel {size} does not divide {config.num_attention_heads} attention heads "
            f"({config.num_key_value_heads} of keys); give a number that does."
        )
    # torch names the styles after the columns of x W: the outputs, which are the rows of a linear layer's
    # weight
    plan = {name: ColwiseParallel() for name in llama.BY_OUTPUT} | {
        name: RowwiseParallel() for name in llama.BY_INPUT
    }
    llama.share(llm, lambda layer: parallelize_module(layer, team, plan), partial(_gather, team=team))  # type: ignore[arg-type]


def _gather(scores: Tensor, team: DeviceMesh) -> Tensor:
    """(B, H / size, K) of every process -> (B, H, K) for all."""
    parts = [torch.empty_like(scores) for _ in range(team.size())]
    dist.all_gather(parts, scores.contiguous(), group=team.get_group())
    return torch.cat(parts, dim=1)
