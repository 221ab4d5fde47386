"""What a diagnosis asks a backbone beyond what pruners read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from backbones.base import Encoding, Turn


class Probes(ABC):
    """What a diagnosis of text and image in one space reads, and no pruner does."""

    @abstractmethod
    def plain(self, expression: str) -> Turn:
        """The expression alone, without the words of a question."""

    @abstractmethod
    def projected_class(self, encoding: Encoding) -> Tensor:
        """(P,) the class token in the space that patches share with text."""

    @abstractmethod
    def end_attention(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the text tower's [EOS] token attends to.

        Args:
            texts: M texts, tokenised as the pruners' questions are.

        Returns:
            (M, layers) share of the attention that goes to the start token, mean over heads; (M,) tokens from
            start to [EOS].
        """
