"""What a published family's files have of their own; all else, its kin share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Release:
    """A family of CLIP, Llama and SAM as its authors release it.

    Attributes:
        title: for messages.
        clip: hub name of the CLIP that it was trained with, which its own files do not hold.
        revision: the pinned one of that CLIP.
        grounding: what the names of the grounding encoder's tensors begin with.
        projector: from the vision tower to the language model: two linear layers with a GELU, or one.
        unneeded: beginnings of the names of tensors that are its own and that segmenting does not need.
    """

    title: str
    clip: str
    revision: str
    grounding: str
    projector: Literal["mlp", "linear"]
    unneeded: tuple[str, ...] = ()

    @property
    def files(self) -> str:
        """What a folder has to hold, for messages."""
        return f"--checkpoint needs the files of a {self.title} release"
