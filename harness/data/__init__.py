"""Data sets: which there are, where they come from, and their samples.

RefShapes generates itself; what lies in the official REFER layout and own data are read from the folder that
`--data` names; others register themselves.
"""

from harness.data.dataset import DataSet, Splits
from harness.data.refer import load_refer
from harness.data.refshapes.writer import prepare_refshapes
from harness.data.registry import (
    COLUMNS,
    REFSHAPES_COLUMNS,
    datasets,
    get,
    load_samples,
    medium_of,
    names,
    parse_datasets,
    register,
)
from harness.data.sample import (
    Annotation,
    Content,
    DataError,
    Expression,
    Sample,
    Track,
    content,
    fingerprint,
    identify,
)

__all__ = [
    "COLUMNS",
    "REFSHAPES_COLUMNS",
    "Annotation",
    "Content",
    "DataError",
    "DataSet",
    "Expression",
    "Sample",
    "Splits",
    "Track",
    "content",
    "datasets",
    "fingerprint",
    "get",
    "identify",
    "load_refer",
    "load_samples",
    "medium_of",
    "names",
    "parse_datasets",
    "prepare_refshapes",
    "register",
]
