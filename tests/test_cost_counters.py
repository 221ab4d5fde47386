"""No operator is counted as nothing: formulas where torch has none, and an error where nobody has one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.cost import meters
from pruners import UserError


def test_cost_counter_has_no_silent_zeros() -> None:
    matrix, vector = torch.randn(6, 4), torch.randn(4)
    heads = torch.randn(1, 2, 5, 8)
    for run, macs in (
        (lambda: torch.mv(matrix, vector), 24),
        (lambda: torch.addmv(torch.randn(6), matrix, vector), 24),
        (lambda: torch.dot(vector, vector), 4),
        (lambda: torch.cdist(matrix, matrix), 6 * 6 * 4),
        (
            lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
            2 * 2 * 5 * 5 * 8,
        ),
    ):
        counting = meters.counter()
        with counting, torch.no_grad():
            run()
        assert counting.get_total_flops() == 2 * macs


@torch.library.custom_op("groundprune_tests::attend", mutates_args=())
def foreign_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """An attention kernel as a package brings it: torch's counter has never heard of it."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (lambda: foreign_attention(*[torch.randn(1, 2, 5, 8)] * 3), "groundprune_tests.attend"),
        (lambda: torch.zeros(4, 4).addmm_(torch.randn(4, 4), torch.randn(4, 4)), "aten.addmm_"),
        (lambda: torch.linalg.svd(torch.randn(4, 4)), "aten._linalg_svd"),
    ],
)
def test_cost_of_an_operator_without_a_formula_is_an_error(run: Callable[[], object], named: str) -> None:
    with pytest.raises(UserError, match=rf"{named} has no formula"), meters.counter():
        run()
    with meters.counter() as after:  # no mode is left behind
        torch.randn(2, 3) @ torch.randn(3, 4)
    assert after.get_total_flops() == 2 * 2 * 3 * 4


def test_cost_of_an_operator_that_fvcore_does_not_know_is_an_error() -> None:
    heads = torch.nn.Linear(4, 4)
    with pytest.raises(UserError, match="groundprune_tests::attend has no formula"):
        meters.fvcore_macs(heads, lambda x: foreign_attention(x, x, x), torch.randn(1, 2, 5, 4))
