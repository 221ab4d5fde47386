"""The numbers of a SAM2."""

from __future__ import annotations

from dataclasses import dataclass

from pruners.errors import UserError

PATCH = 16  # pixels of an embedding's place; masks come at a quarter of it
MEMORY_WIDTH = 64  # transformers has it as a constant


@dataclass(frozen=True)
class Sam2Numbers:
    """Sizes of a model; the defaults are those of Hiera-L.

    Attributes:
        image: side of a frame in pixels, a multiple of 32.
        width: of prompts, mask decoder and memory attention; a multiple of 64.
        embed, heads: of the image encoder's first stage; both double from stage to stage.
        blocks: per stage, four of them.
        global_blocks: numbers of the blocks that attend to the whole frame, over all stages; none of them
            opens a later stage.
        windows: side of a stage's windows.
        background: side of the learned position table that is stretched over a frame.
        memory_layers, memory_hidden: of the memory attention.
        decoder_heads, decoder_hidden, quality_hidden: of the mask decoder and its quality head.
        memories: frames that are remembered by their features, the prompted one among them.
        pointers: frames that are remembered by one vector, the prompted one among them.
    """

    image: int = 1024
    width: int = 256
    embed: int = 144
    heads: int = 2
    blocks: tuple[int, ...] = (2, 6, 36, 4)
    global_blocks: tuple[int, ...] = (23, 33, 43)
    windows: tuple[int, ...] = (8, 4, 16, 8)
    background: int = 7
    memory_layers: int = 4
    memory_hidden: int = 2048
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    quality_hidden: int = 256
    memories: int = 7
    pointers: int = 16

    def __post_init__(self) -> None:
        opening = {sum(self.blocks[:stage]) for stage in range(1, len(self.blocks))}
        inside = set(range(sum(self.blocks))) - opening
        wrong = [
            name
            for name, good in (
                ("image", self.image > 0 and self.image % (2 * PATCH) == 0),
                ("width", self.width > 0 and self.width % MEMORY_WIDTH == 0),
                ("embed", self.embed > 0 and self.heads > 0 and self.embed % self.heads == 0),
                ("blocks", len(self.blocks) == 4 and min(self.blocks) > 0),
                ("windows", len(self.windows) == 4 and min(self.windows) > 0),
                ("global_blocks", set(self.global_blocks) <= inside),
                ("decoder_heads", self.decoder_heads > 0 and self.width % (2 * self.decoder_heads) == 0),
                ("memories", self.memories > 1),
                ("pointers", self.pointers > 1),
            )
            if not good
        ]
        if wrong:
            told = ", ".join(f"{name} {getattr(self, name)}" for name in wrong)
            raise UserError(f"No SAM2 has these numbers: {told}; give the checkpoint's.")

    @property
    def low(self) -> int:
        """Side of the masks that the decoder writes."""
        return 4 * self.image // PATCH
