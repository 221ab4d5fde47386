"""The bench of serving: what is written under load is what is written alone, at the lengths and multiply-adds
that pruners state; its rows, its words and its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones.costs import Shape
from backbones.glamm.model import GlammModel
from backbones.parts.generation import Writer
from harness.cost import formulas, meters
from pruners import parse
from tests.bench import serving, serving_loop
from tests.bench.drawn import AFTER, BEFORE, NEW, Request, Rows, random_weights, request, without_weights
from tests.bench.serving_loop import Running, Served, Server, closed_loop, prefilled

PATCHES, BUDGET = 144, 40
LONGEST = (BEFORE + AFTER[1], NEW[1])
# before the model: kept, merged, by text; inside: one cut, several, numbered anew, merged; both
PRUNERS = ("none", "uniform", "visionzip", "litelvlm", "fastv", "pyramiddrop", "sparsevlm", "nuwa")
PAGE = Path(__file__).parent.parent / "docs" / "serving.md"


@pytest.fixture(scope="module")
def model() -> GlammModel:
    return random_weights(without_weights("tiny"), "cpu", torch.float64)


@pytest.fixture(scope="module")
def requests(model: GlammModel) -> list[Request]:
    return [request(model, 7, number) for number in range(24)]


def served_by(name: str) -> Served:
    (pruner,) = parse(name)
    return Served(pruner, PATCHES if name == "none" else BUDGET, PATCHES)


def under_load(
    model: GlammModel, requests: list[Request], name: str, clients: int = 5, answers: int = 9
) -> tuple[Server, list[Running]]:
    server = Server(model, served_by(name), clients, LONGEST, admit=3, checked=True)
    ticks = count()
    return server, closed_loop(server, requests.__getitem__, clients, answers, lambda: float(next(ticks)))


@torch.inference_mode()
def alone(model: GlammModel, one: Request, served: Served) -> tuple[int, ...]:
    """What the decoder's own generation writes of one request, without fill or company."""
    found = prefilled(model, [one], served)
    writer = Writer(model.language_model, model.lm_head, seg=-1, ends=(), most=one.new)
    compact = served.pruner.positions_for("compact") == "compact"
    (written,) = writer(found.states, found.past, None if compact else torch.tensor(found.follows), 1)
    return written.ids


@pytest.mark.parametrize("name", PRUNERS)
def test_tokens_under_load_are_those_written_alone(
    model: GlammModel, requests: list[Request], name: str
) -> None:
    server, done = under_load(model, requests, name)
    assert len({one.request.text for one in done}) > 3 and len({one.request.new for one in done}) > 3
    assert [one.request.number for one in done] != sorted(one.request.number for one in done)
    for one in done:
        assert tuple(one.ids) == alone(model, one.request, server.served), one.request.number
    assert len({tuple(one.ids) for one in done}) == len(done)
    assert max(len(set(one.ids)) for one in done) > 2, "not one token again and again"


@pytest.mark.parametrize("name", PRUNERS)
def test_lengths_and_choices_in_a_batch_are_those_that_are_stated_and_made_alone(
    model: GlammModel, requests: list[Request], name: str
) -> None:
    served, layers = served_by(name), model.language_model.config.num_hidden_layers
    together = prefilled(model, requests[:3], served)
    assert len({one.text for one in requests[:3]}) == 3
    for row, one in enumerate(requests[:3]):
        found = prefilled(model, [one], served)
        assert found.run.lengths == tuple(n + one.text for n in served.schedule(layers))
        assert found.run.patches[0].equal(together.run.patches[row])
        assert found.follows[0] == together.follows[row]
        torch.testing.assert_close(found.states[0], together.states[row])


@pytest.mark.parametrize("name", PRUNERS)
def test_multiply_adds_are_those_that_the_pruner_states(
    model: GlammModel, requests: list[Request], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_loop, "BUCKET", 1)  # no key is looked at that is not there
    counting = meters.counter()
    ledger, served, one = meters.mac_ledger(counting), served_by(name), requests[0]
    server = Server(model, served, 1, LONGEST, stage=ledger)
    with counting:
        closed_loop(server, requests.__getitem__, 1, 1, lambda: 0.0)
    spent = ledger.spent()
    shape = Shape.of(model.language_model.config)
    lengths = [n + one.text for n in served.schedule(shape.layers)]
    assert spent["prefill"] == formulas.language_model_macs(lengths, shape)
    heads = formulas.head_macs(one.new, shape)
    assert spent["prefill"] + spent["decode"] - heads == served.macs(one, shape)


def test_a_closed_loop_keeps_every_client_waiting_for_one_answer(
    model: GlammModel, requests: list[Request]
) -> None:
    """And no more are prefilled at once, or run at once, than is said; a slower clock changes no order."""
    server = Server(model, served_by("uniform"), 4, LONGEST, admit=2)
    seen = []
    own = server.iterate

    def watched(waiting: Any, clock: Any) -> list[Running]:
        before = len(server.running)
        finished = own(waiting, clock)
        seen.append((len(server.running) + len(finished) - before, len(server.running)))
        return finished

    server.iterate = watched  # type: ignore[method-assign]
    done = closed_loop(server, requests.__getitem__, 6, 10, lambda: 0.0)
    assert max(entered for entered, _ in seen) == 2 and max(running for _, running in seen) <= 4
    ticks = count(step=1000)
    again = Server(model, served_by("uniform"), 4, LONGEST, admit=2)
    slow = closed_loop(again, requests.__getitem__, 6, 10, lambda: float(next(ticks)))
    assert [one.request.number for one in slow] == [one.request.number for one in done]
    assert all(one.sent < one.first < one.done for one in slow)


def test_requests_follow_from_seed_and_number(model: GlammModel, requests: list[Request]) -> None:
    again, other, seed = request(model, 7, 3), request(model, 7, 4), request(model, 8, 3)
    assert again.pixels.equal(requests[3].pixels) and again.after.equal(requests[3].after)
    assert again.before.equal(other.before) and not again.pixels.equal(other.pixels)
    assert not again.pixels.equal(seed.pixels) and not again.before.equal(seed.before)


# -- rows and words


def row(pruner: str, clients: int, rate: float, choice: float = 0.0) -> dict[str, Any]:
    spent = {"vision": 2.0, "prefill": 5.0, "decode": 3.0 - choice, "pruner": choice}
    return {
        "pruner": pruner,
        "budget": 64,
        "clients": clients,
        "answers": 4,
        "seconds": 4 / rate,
        "requests_per_s": rate,
        "first_ms": [1.0, 2.0, 3.0],
        "spent_ms": spent,
        "macs": 6 * 10**9 if pruner == "none" else 2 * 10**9 if pruner == "fastv" else 10**9,
    }


def test_what_is_said_is_what_the_rows_say() -> None:
    rows = [
        *(row("none", clients, 2.0) for clients in (1, 8)),
        *(row("uniform", clients, rate) for clients, rate in ((1, 5.0), (8, 6.0))),
        *(row("fastv", clients, rate) for clients, rate in ((1, 4.0), (8, 3.0))),
        *(row("nuwa", clients, rate, 2.0) for clients, rate in ((1, 2.2), (8, 1.5))),
    ]
    assert serving.ratios(rows)[8] == {"uniform 64": 3.0, "fastv 64": 1.5, "nuwa 64": 0.75}
    said = serving.sentence(rows)
    free = "uniform 64, whose choice costs nothing"
    assert f"with one client 1.10 (nuwa 64) to 2.00 (fastv 64; {free}, 2.50)" in said
    assert f"with 8 clients 0.75 (nuwa 64) to 1.50 (fastv 64; {free}, 3.00)" in said
    assert f"multiply-adds it would be 3.00 (fastv 64) to 6.00 (nuwa 64; {free}, 6.00)" in said
    assert "Nuwa 64 loses against it at some load" in said and "20 % of the time of nuwa 64" in said
    better = serving.sentence([one for one in rows if one["pruner"] != "nuwa"])
    assert "No method loses against it;" in better
    first, second = serving.tables(rows).split("\n\n")
    assert re.search(r"\| nuwa 64 +\| 2\.20 \| 1\.50 \| +2\.0 \|", first)
    assert re.search(r"\| nuwa 64 +\| 2 / 3 \| 2 / 3 \|", second)
    (axes,) = serving.figure(rows).axes
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert {(2.5, 3.0), (2.0, 1.5), (1.1, 0.75)} <= drawn


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_the_bench_runs_goes_on_and_renews_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    words = ["--backbone", "tiny", "--pruners", "uniform,feather", "--budgets", "20", "100", "--answers", "2"]
    words += ["--out", str(out)]
    assert serving.main([*words, "--clients", "1"]) == 0
    told = capsys.readouterr().out
    assert "| none " in told and "| uniform 20 " in told and "| feather 100 " in told
    kept = out.read_bytes()
    assert serving.main([*words, "--clients", "1", "2"]) == 0
    assert out.read_bytes().startswith(kept) and len(out.read_bytes().splitlines()) == 7
    monkeypatch.setattr(serving, "measured", None)  # nothing is measured a second time
    (tmp_path / "images").mkdir()
    page.write_text("before\n<!-- serving: rows.jsonl -->\nold\n<!-- end of serving -->\nbehind\n")
    assert serving.main([*words, "--clients", "1", "2", "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nbehind\n") and "old" not in text
    assert "| uniform 20 " in text and (tmp_path / "images" / "rows.svg").stat().st_size > 5000
    capsys.readouterr()
    assert serving.main([*words, "--clients", "1", "--seed", "1"]) == 2
    assert "was measured with another seed; delete it" in capsys.readouterr().out
    assert serving.main(["--table", "--out", str(out)]) == 0
    assert "| uniform 20 " in capsys.readouterr().out
    assert serving.main(["--table", "--out", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl yet; measure first" in capsys.readouterr().out
    page.write_text("nothing")
    assert serving.main([*words, "--clients", "1", "--page", str(page)]) == 2
    assert "shows nothing of rows.jsonl" in capsys.readouterr().out


def test_a_bench_without_its_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert serving.main(["--device", "cuda:1", "--out", str(tmp_path / "rows.jsonl")]) == 2
    assert "--device cuda:1 needs a CUDA GPU" in capsys.readouterr().out


def test_the_page_shows_what_the_files_hold() -> None:
    text = PAGE.read_text()
    shown = re.findall(r"<!-- serving: (\S+) -->", text)
    assert shown
    for name in shown:
        header, rows, _ = serving.read_rows(PAGE.parent.parent / "results" / name)
        assert serving.block(rows, header) in text, (
            "python -m tests.bench.serving --table --page docs/serving.md"
        )


def test_rows_go_on_behind_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, {"a": 1}, "cpu", ("name",))
    rows.add({"name": "x", "value": 1})
    rows.add({"name": "y", "value": 2})
    path.write_bytes(path.read_bytes()[:-9])
    again = Rows(path, {"a": 1}, "cpu", ("name",))
    assert list(again.rows) == [("x",)]
    again.add({"name": "z", "value": 3})
    assert list(Rows(path, {"a": 1}, "cpu", ("name",)).rows) == [("x",), ("z",)]
    path.write_bytes(path.read_bytes()[:20])  # not even its header is whole
    Rows(path, {"a": 2}, "cpu", ("name",)).add({"name": "w", "value": 4})
    assert list(Rows(path, {"a": 2}, "cpu", ("name",)).rows) == [("w",)]
