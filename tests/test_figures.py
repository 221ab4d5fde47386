"""Figures through their data: where marks stand, who beats whom beyond noise, and that no two methods look
alike."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pruners
from harness import metrics
from harness.metrics.bootstrap import Estimate
from reports import costs, figures
from reports.costs import PRICES, interval, priced
from reports.looks import COLOURS, COUNT, DASHES, MARKS, METHODS, Look, looks
from reports.pareto import Point, Standing, front, standings
from reports.tables import BOUND, Table, TableRow

BUDGETS = (64, 128, 192)
CARD, LIFT = "#1c2024", 0.42  # of the page in the dark, where colours are mixed with so much white


def row(pruner: str, budget: int, score: float, control: bool = False) -> TableRow:
    average = Estimate(score, score - 0.03, score + 0.03, math.nan, 9)
    return TableRow(
        pruner, budget, control, "tower", {}, {}, {}, average, (score,), budget, budget, pruner == "oracle"
    )


def a_table(names: tuple[str, ...] = METHODS) -> Table:
    lines = [row(BOUND, 576, 0.9)]
    lines += [
        row(name, budget, 0.3 + 0.02 * place + 0.001 * budget, name in METHODS[-4:])
        for budget in BUDGETS
        for place, name in enumerate(names)
    ]
    group: Any = SimpleNamespace(facts={"backbone": "b", "protocol": "p", "budget_kind": "final"})
    return Table("b, protocol p", group, (), tuple(lines), metrics.get("ciou"))


def some_prices(table: Table) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (line.pruner, line.budget): {
            "macs": 1e9 * line.budget,
            "prefill_ms": line.budget / 10,
            "prefill_ms_p5": line.budget / 10 - 1,
            "prefill_ms_p95": line.budget / 10 + 4,
            "rounds": 16,
        }
        for line in table.lines
    }


def curves(figure: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Of every method the places of its marks."""
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in figure.axes[0].lines
        if line.get_label() in METHODS
    }


# -- marks


def test_marks_stand_at_their_budgets_and_ticks_nowhere_else() -> None:
    table = a_table()
    drawn = figures.looks_of([table])
    for figure in (
        figures.budget_figure(table, drawn),
        figures.cost_figure(table, priced(table, some_prices(table), PRICES[1]), PRICES[1], drawn),
    ):
        axes = figure.axes[0]
        found = curves(figure)
        assert set(found) == set(METHODS)
        assert all(xs == list(BUDGETS) for xs, _ in found.values())
        assert list(axes.get_xticks()) == list(BUDGETS) and not len(axes.get_xticks(minor=True))
        assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(one) for one in BUDGETS]
    assert curves(figures.budget_figure(table, drawn))["visionzip"][1] == pytest.approx(
        [100 * (0.32 + 0.001 * budget) for budget in BUDGETS]
    )


def test_every_line_has_its_name_beside_it_and_none_covers_another() -> None:
    table = a_table()
    figure = figures.budget_figure(table, figures.looks_of([table]))
    places = {
        text.get_text(): text.get_position()[1] for text in figure.axes[0].texts if text.get_text() in METHODS
    }
    assert set(places) == set(METHODS)
    heights = np.sort(list(places.values()))
    points = 72 * figures.HIGH * figures.AXES[3] * np.diff(heights)
    assert points.min() >= figures.LETTER and heights[0] >= 0 and heights[-1] <= 1


def test_places_are_spread_in_their_order() -> None:
    assert figures.spread_out([0.5, 0.5, 0.1], 0.2, 0, 1) == pytest.approx([0.5, 0.7, 0.1])
    assert figures.spread_out([0.95, 0.99], 0.2, 0, 1) == pytest.approx([0.8, 1.0])
    crowded = figures.spread_out([0.5] * 11, 0.2, 0, 1)
    assert sorted(crowded) == pytest.approx(np.linspace(0, 1, 11))
    assert figures.spread_out([], 0.1, 0, 1) == []


# -- looks


def test_all_methods_of_this_package_have_a_look_and_no_two_the_same() -> None:
    assert {*METHODS, BOUND} == set(pruners.names())
    found = looks(pruners.names())
    assert len({(one.colour, one.mark) for one in found.values()}) == len(found)
    for colour in COLOURS:  # lines of one colour have dashes of their own
        dashes = [one.dash for name, one in found.items() if one.colour == colour]
        assert len(set(dashes)) == len(dashes)
    assert len({mark for mark in MARKS}) == len(MARKS) and len(set(DASHES)) == len(DASHES)


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    alone, among = looks(["vispruner", "mine"]), looks([*METHODS, "mine", "fastv(layer=3)"])
    assert alone["vispruner"] == among["vispruner"] and alone["mine"] == among["mine"]
    many = looks([*METHODS, *(f"own{k}" for k in range(COUNT - len(METHODS)))])
    assert len({(one.colour, one.mark) for one in many.values()}) == COUNT + 1  # `none` is grey
    assert len(looks([f"own{k}" for k in range(3 * COUNT)])) == 3 * COUNT + 1


def luminance(colour: str, lift: float = 0.0) -> float:
    """Relative luminance as WCAG has it, mixed with white in sRGB."""
    levels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    levels = [(1 - lift) * one + lift for one in levels]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in levels]
    return sum(part * one for part, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_stand_out_from_paper_and_from_the_dark(colour: str) -> None:
    style = (Path(figures.__file__).parent / "web" / "style.css").read_text()
    assert f"--card: {CARD}" in style and f"--lift: {LIFT:.0%}" in style
    assert 1.05 / (luminance(colour) + 0.05) >= 3
    assert (luminance(colour, LIFT) + 0.05) / (luminance(CARD) + 0.05) >= 3


def test_marks_are_paths_that_the_page_can_draw() -> None:
    for number in range(len(MARKS)):
        assert re.fullmatch(r"M[-\d. ]+(L[-\d. ]+)+Z", Look("#000000", number, 0).outline)


# -- fronts


def test_differences_within_the_timings_noise_make_no_front() -> None:
    """Twenty equal methods, timed with noise: the most accurate one alone is left."""
    rng = np.random.default_rng(0)
    points = []
    for k in range(20):
        middle = 10 + rng.normal(0, 0.05)
        points.append(Point(middle, middle - 0.3, middle + 0.3, 70 + k / 10, 60, 80))
    assert front(points) == [points[-1]]
    assert set(standings(points)[:-1]) == {Standing.CLOSE}


def test_what_is_faster_beyond_noise_is_on_the_front() -> None:
    slow, fast, worse = (
        Point(20, 19, 21, 80, 78, 82),
        Point(10, 9, 11, 70, 68, 72),
        Point(12, 11.5, 12.5, 60, 58, 62),
    )
    assert front([slow, worse, fast]) == [fast, slow]
    assert standings([slow, fast, worse]) == [Standing.FRONT, Standing.FRONT, Standing.BEATEN]
    equal = Point(15, 14, 16, 80, 78, 82)  # as accurate as the slow one, and faster
    assert standings([slow, equal]) == [Standing.CLOSE, Standing.FRONT]
    twin = Point(15.5, 14.5, 16.5, 80, 78, 82)
    assert standings([equal, twin]) == [Standing.FRONT, Standing.FRONT]


def test_without_intervals_nothing_is_beaten_for_sure() -> None:
    assert standings([Point(1, 1, 1, 90), Point(2, 2, 2, 10)]) == [Standing.FRONT, Standing.CLOSE]


def test_counts_have_no_noise() -> None:
    assert front([Point(1.0, 1.0, 1.0, 70), Point(1.001, 1.001, 1.001, 71)]) == [
        Point(1.0, 1.0, 1.0, 70),
        Point(1.001, 1.001, 1.001, 71),
    ]


def test_a_metric_whose_low_values_are_better_is_turned() -> None:
    table = a_table(("visionzip",))
    fewer = SimpleNamespace(scale=100, higher_is_better=False)
    turned: Any = SimpleNamespace(lines=table.lines, metric=fewer)
    for _, point in priced(turned, some_prices(table), PRICES[0]):
        assert point.low < point.score < point.high < 0


def test_the_interval_of_a_median_shrinks_with_the_rounds() -> None:
    """Against medians of simulated rounds."""
    rng = np.random.default_rng(3)
    rounds = rng.normal(100, 10, (4000, 25))
    low, high = np.quantile(np.median(rounds, axis=1), [0.025, 0.975])
    one = {"x": 100.0, "x_p5": 100 - 16.45, "x_p95": 100 + 16.45, "rounds": 25}
    assert interval(one, "x") == pytest.approx((100, low, high), abs=0.5)
    assert interval(one | {"rounds": 100}, "x")[2] == pytest.approx(100 + (interval(one, "x")[2] - 100) / 2)
    assert interval({"x": 3}, "x") == (3, 3, 3)
    skewed = interval({"x": 10.0, "x_p5": 9.0, "x_p95": 30.0}, "x")
    assert skewed[2] - 10 == pytest.approx(20 * (10 - skewed[1]))


def test_prices_of_rows_come_with_their_intervals() -> None:
    table = a_table(("visionzip", "fastv"))
    points = priced(table, some_prices(table), PRICES[1])
    assert [line for line, _ in points] == list(table.lines)
    for line, point in points:
        assert point.cost == line.budget / 10
        assert point.cheap == pytest.approx(point.cost - costs.MEDIAN_ERROR / 4)
        assert point.dear == pytest.approx(point.cost + costs.MEDIAN_ERROR)
        assert (point.low, point.score, point.high) == pytest.approx(
            [100 * end for end in (line.average.low, line.average.value, line.average.high)]  # type: ignore[union-attr]
        )
    assert not priced(table, some_prices(table), PRICES[2])


def test_the_figure_draws_the_front_and_pales_what_is_beaten() -> None:
    table = a_table((*METHODS[:6], "oracle"))
    points = priced(table, some_prices(table), PRICES[0])
    figure = figures.pareto_figure(table, points, PRICES[0], figures.looks_of([table]))
    lines = figure.axes[0].lines
    best = next(line for line in lines if line.get_linestyle() == ":")
    ranked = [point for line, point in points if line.pruner != "oracle"]
    assert list(best.get_xdata()) == [one.cost for one in front(ranked)] and len(best.get_xdata()) >= 3
    how = dict(zip(map(id, ranked), standings(ranked), strict=True))
    for line, point in points:
        here = [
            one
            for one in lines
            if list(one.get_xdata()) == [point.cost] and one.get_ydata()[0] == point.score
        ]
        assert len(here) == 1
        assert here[0].get_alpha() == figures.SHADES[how.get(id(point), Standing.CLOSE)], line.pruner
    assert set(how.values()) == set(Standing)
