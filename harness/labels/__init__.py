"""Labels that others gave to expressions which a run has answered: which ones are sound, and what they
mean."""

from harness.labels.base import Label, Labels
from harness.labels.files import read_labels
from harness.labels.join import Joined, answered, join
from harness.labels.rescore import Rescored, rescore

__all__ = ["Joined", "Label", "Labels", "Rescored", "answered", "join", "read_labels", "rescore"]
