"""This process's place among those that a launcher started: torchrun, deepspeed and srun each say it in their
own words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pruners.base import UserError

Word = TypeVar("Word")

# (rank, world size, rank on this machine); torchrun and deepspeed share the first line, srun has the second
VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Place:
    """One of `world` processes that share a run.

    Attributes:
        local: its number on its machine, which picks its device.
        team: how many neighbours work as one, because they share a model; the first of them claims and
            writes.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    team: int = 1

    @property
    def leads(self) -> bool:
        """Whether it speaks for its team."""
        return self.rank % self.team == 0

    def agree(self, word: Word) -> Word:
        """What the team's leader says."""
        if self.team == 1:
            return word
        import torch.distributed as dist

        said = [word]
        dist.broadcast_object_list(said, src=self.rank - self.rank % self.team, group=_team(self.team))
        return said[0]

    def device(self, asked: str) -> str:
        """The device for this process: "auto" becomes what works here, "cuda" the card with its local number.

        Raises:
            UserError: it is no device, or is not here.
        """
        from backbones.device import resolve

        found = resolve(asked, self.local)
        return f"cuda:{self.local}" if found == "cuda" and self.world > 1 else found

    def order(self, parts: int) -> list[int]:
        """Its team's share first, every n-th part of n teams; then what the others may leave behind."""
        teams, own = self.world // self.team, self.rank // self.team
        return [*range(own, parts, teams), *(k for k in range(parts) if k % teams != own)]


@cache
def _team(size: int) -> Any:
    """The process group of this process's team; all processes make all groups."""
    import torch.distributed as dist

    return dist.new_subgroups(size)[0]


def here(team: int = 1) -> Place:
    """The place that the environment tells, alone if it tells none.

    Raises:
        UserError: the variables contradict each other.
    """
    for names in VARIABLES:
        if names[0] in os.environ and names[1] in os.environ:
            said = [os.environ.get(name, "0") for name in names]
            try:
                rank, world, local = (int(word) for word in said)
                if not 0 <= rank < world:
                    raise ValueError
            except ValueError:
                shown = ", ".join(f"{name}={word}" for name, word in zip(names, said, strict=True))
                raise UserError(
                    f"The launcher's variables make no sense ({shown}); unset them to run alone."
                ) from None
            return Place(rank, world, local, team)
    return Place()
