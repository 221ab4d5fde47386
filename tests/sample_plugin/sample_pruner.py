"""The smallest pruner: keep the patches with the largest features."""

from dataclasses import dataclass

from torch import Tensor

from pruners import ScorePruner, VisualTokens, register


@register
@dataclass(frozen=True)
class Brightest(ScorePruner):
    """Patches with the largest norm."""

    power: float = 2.0
    name = "brightest"
    reference = "tests/sample_plugin"

    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) norm of every patch."""
        return tokens.patches.float().norm(p=self.power, dim=1)
