"""published/*.toml: every spec says what its numbers are of, and its plan computes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import backbones
import pruners
from harness import metrics
from harness.cost import EXPLAIN
from harness.data import refer, registry
from harness.plan import Plan
from reports import efficiency, publication

TABLES = {table.file: table for table in publication.specs()}
ROOT = Path(__file__).parent.parent


def test_every_file_has_an_entry() -> None:
    assert set(TABLES) == {path.stem for path in publication.FOLDER.glob("*.csv")}
    assert len(TABLES) == len(publication.specs())


@pytest.mark.parametrize("file", TABLES)
def test_an_entry_is_a_plan_of_its_rows(file: str) -> None:
    table, rows = TABLES[file], publication.read_published(file)
    plan = table.plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.backbones == (table.backbone,) and plan.protocol == table.protocol
    assert plan.answers == (table.answers,)
    assert [pruner.spec() for pruner in plan.chosen()] == list(plan.pruners)
    assert set(rows["pruner"]) == set(plan.pruners) <= set(pruners.names())
    printed = rows[rows["pruner"] != "none"]["budget"]
    assert printed.empty or {str(int(budget)) for budget in printed} == set(plan.budgets)
    splits = plan.datasets.split(",")
    for name, metric in table.metrics.items():
        columns = {table.column(name, tuple(split.split(":"))) for split in splits}  # type: ignore[arg-type]
        assert columns <= set(rows), (name, columns)
        assert table.column(name, ("another", "val")) not in rows
        if name in metrics.names():
            assert metrics.get(name).unit == metric.unit


@pytest.mark.parametrize("file", TABLES)
def test_what_is_not_there_yet_is_marked(file: str) -> None:
    """And the mark goes when it is there."""
    table = TABLES[file]
    sets = {split.partition(":")[0] for split in table.plan.datasets.split(",")}
    absent = {table.backbone} - set(backbones.names())
    absent |= set(table.metrics) - set(metrics.names()) - set(EXPLAIN)
    absent |= sets - set(refer.PUBLISHED) - set(registry.names()) - set(registry.REFSHAPES)
    assert bool(table.pending) == bool(absent)
    assert all(name in table.pending for name in absent)
    if not absent:
        plan = table.plan
        assert backbones.one(plan.backbones[0]).check_protocol(plan.protocol) == table.protocol


def test_tables_are_found_by_what_they_are_of() -> None:
    assert [table.file for table in publication.published_of("glamm", "ciou")] == ["refcoco"]
    assert not publication.published_of("glamm", "giou") and not publication.published_of(
        "glamm-mini", "ciou"
    )
    clips = [table.file for table in publication.published_of("videoglamm", "j")]
    assert clips == ["ref-davis-17", "refer-youtube-vos"]
    assert not publication.published_of("videoglamm-mini", "j&f")
    assert len(efficiency.published("glamm")) == len(efficiency.published("glamm-7b")) == 7
    assert efficiency.published("glamm-mini").empty


def test_the_own_table_is_that_of_the_model_card() -> None:
    """Printed once more for `reproduce`, and nowhere another number."""
    card = (ROOT / "backbones" / "mini" / "README.md").read_text()
    card = card.split("`python -m harness --pruners all")[1]
    rows: dict[tuple[str, str], list[str]] = {}
    budget, names = "576", [""]
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[0] == "method":
            names = cells
        elif cells[0].startswith("**"):
            budget = "".join(sign for sign in cells[0] if sign.isdigit())
        elif "Avg." in names and len(cells) == len(names) and not set(cells[0]) <= set(":-"):
            found = dict(zip(names, cells, strict=True))
            key = found["method"].partition(" (")[0], budget
            rows.setdefault(key, [value.partition(" ")[0] for value in cells[1 : names.index("Avg.") + 1]])
        elif rows and cells[0].startswith("What was aimed at"):
            break
    spec = publication.spec("embedded")
    printed = {
        (row.pruner, str(row.budget)): [number.text for number in row.numbers.values()] for row in spec.rows
    }
    assert len(printed) == 62 and printed == rows
