"""Comparison with golden arrays, counted for the summary."""

from __future__ import annotations

import numpy as np
import torch

# tolerances of the models' sets: features and projector, then everything behind the language model
CLOSE, LOOSE = (1e-4, 1e-3)


class Arrays:
    """Compares golden arrays and counts them for the summary."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self.properties, self.count = properties, 0

    def _counted(self) -> None:
        self.count += 1
        self.properties[:] = [("arrays", self.count)]

    def close(self, got: torch.Tensor | np.ndarray, expected: np.ndarray, atol: float, name: str) -> None:
        """Equal within a tolerance."""
        got = got.numpy(force=True) if isinstance(got, torch.Tensor) else got
        assert got.shape == expected.shape, name
        np.testing.assert_allclose(got, expected, rtol=0, atol=atol, err_msg=name)
        self._counted()

    def equal(self, got: object, expected: np.ndarray, name: str) -> None:
        """Equal in every value."""
        assert np.asarray(got).shape == expected.shape, name
        np.testing.assert_array_equal(np.asarray(got), expected, err_msg=name)
        self._counted()
