"""This process's place among those that a launcher started: torchrun, deepspeed and srun each say it in their own words."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pruners.base import UserError

# (rank, world size, rank on this machine); torchrun and deepspeed share the first line, srun has the second
VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Place:
    """One of `world` processes that share a run.

    Attributes:
        local: its number on its machine, which picks its device.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def device(self, asked: str) -> str:
        """The device for this process: "cuda" becomes the card with its local number."""
        return f"cuda:{self.local}" if asked == "cuda" and self.world > 1 else asked

    def order(self, parts: int) -> list[int]:
        """Its own share first, every `world`-th part; then what the others may leave behind."""
        return [*range(self.rank, parts, self.world), *(k for k in range(parts) if k % self.world != self.rank)]


def here() -> Place:
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
                raise UserError(f"The launcher's variables make no sense ({shown}); unset them to run alone.") from None
            return Place(rank, world, local)
    return Place()
