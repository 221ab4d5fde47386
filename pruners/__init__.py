"""Training-free visual-token pruners: one file per method, a base, a registry."""

from pruners import (
    downsample,
    fastv,
    litelvlm,
    none,
    oracle,
    prumerge,
    random,
    trim,
    uniform,
    visionzip,
    vispruner,
)
from pruners.base import (
    CLS,
    POOLED,
    ImpossibleBudget,
    LayerPruner,
    Need,
    Pruner,
    ScorePruner,
    Selection,
    UndeclaredNeed,
    UserError,
    View,
    VisualTokens,
    nearest,
)
from pruners.registry import get, load_plugin, names, parse, register

__all__ = [
    "CLS",
    "POOLED",
    "ImpossibleBudget",
    "LayerPruner",
    "Need",
    "Pruner",
    "ScorePruner",
    "Selection",
    "UndeclaredNeed",
    "UserError",
    "View",
    "VisualTokens",
    "get",
    "load_plugin",
    "names",
    "nearest",
    "parse",
    "register",
]
_BUILT_IN = (downsample, fastv, litelvlm, none, oracle, prumerge, random, trim, uniform, vispruner, visionzip)
