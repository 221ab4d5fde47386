"""What a panel shows of the tokens that a method kept: the same in the picture of `try` and on the page."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray


def lit(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The patches that a panel shows bright: the kept ones; all where no token stands for a single patch,
    since pooled tokens (of `downsample`, say) cover the whole picture between them.

    Args:
        kept: (V * N,) bool, view after view; all views of an answer, so that one of which nothing stays is
            dark.
    """
    return kept if kept.any() else np.ones_like(kept)


@cache
def kept_words(tokens: int, patches: int) -> str:
    """Tokens in words: patches, and beside them those that stand for no single patch (class, mean, pooled).

    Args:
        tokens: in the language model's last layer.
        patches: among them, with a place in the picture.

    Example:
        >>> kept_words(64, 64), kept_words(64, 63), kept_words(64, 0)
        ('64 patches', '63 patches, 1 without a place', '64 without a place')
    """
    placed = f"{patches:,} {'patch' if patches == 1 else 'patches'}"
    other = max(0, tokens - patches)
    parts = ([placed] if patches or not other else []) + ([f"{other:,} without a place"] if other else [])
    return ", ".join(parts)
