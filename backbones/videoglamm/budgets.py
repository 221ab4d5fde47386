"""Where a budget acts between CLIP's patches and the language model: in front of the pool that VideoGLaMM has
there, in its place, or behind it.

Officially all patches of a frame are projected and averaged over a pool of 12 x 12 cells, so that 576 patches
become 144 tokens. The published budgets 576, 196 and 81 can be read in more than one way:

    grid     the kept patches, in the order of the selection, are laid out as a square and pooled as if they
             were an image: 144 tokens at every budget, as the public code makes of that many patches
    direct   no pool: every kept patch is a token of its own
    postpool the pooled cells are what is pruned
"""

from __future__ import annotations

from math import isqrt

from pruners.errors import ImpossibleBudget, UserError, nearest

PLACEMENTS = ("grid", "direct", "postpool")
POOL, VIDEO_POOL = 12, 8  # cells along a side: of CLIP's patches, of the video encoder's
CELLS = POOL * POOL


def check_placement(name: str) -> str:
    """The name, if it is a placement.

    Raises:
        UserError: it is none.
    """
    if name not in PLACEMENTS:
        raise UserError(
            f"videoglamm has no placement {name!r}, there are {', '.join(PLACEMENTS)}."
            f"{nearest(name, PLACEMENTS)}"
        )
    return name


def square_side(count: int, what: str = "the placement grid") -> int:
    """The side of a square of so many tokens.

    Raises:
        ImpossibleBudget: they make none.

    Example:
        >>> square_side(196)
        14
    """
    side = isqrt(count)
    if side * side != count or not count:
        below, above = max(side, 1) ** 2, (side + 1) ** 2
        raise ImpossibleBudget(
            f"{what} lays the kept patches out as a square, and {count} make none; give {below} or {above}, "
            f"or placement='direct'."
        )
    return side
