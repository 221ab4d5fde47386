"""`python -m tests.bench.serving [--page docs/serving.md]`: requests per second and time to the first token,
with and without each pruner, when 1 to 32 clients ask at once.

Every client sends its next request when the last one is answered; `tests.bench.serving_loop` batches them
continuously. Without a GPU the clock is the processor time of this process, which runs on one thread: what
other processes do moves it little, and since a closed loop is never idle it is the wall time of an idle core.
On a GPU it is wall time. Weights and requests are drawn, answers end at drawn lengths. Measured rows are kept
in --out, and a run goes on there.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.costs import Shape
from backbones.device import resolve
from backbones.glamm.model import GlammModel
from harness.cost import meters
from harness.cost.lines import lines_of
from harness.engine.cells import Line
from harness.store.journal import write_text
from pruners import parse
from pruners.base import UserError
from reports.figures import line_of, spread_out
from reports.looks import looks
from reports.style import STYLE, save
from reports.table_text import pipe_table
from tests.bench.drawn import (
    AFTER,
    BEFORE,
    MODELS,
    NEW,
    Request,
    Rows,
    make_current,
    random_weights,
    read_rows,
    request,
    without_weights,
)
from tests.bench.serving_loop import Served, Server, closed_loop, prefilled

CLIENTS = (1, 2, 4, 8, 16, 32)
BUDGETS = (64, 128)  # every method runs at the first that it can end at
BOUND, FREE = "none", "uniform"  # what all are compared with, and a choice that costs nothing
CHOICE = ("text", "pruner", "prefill/pruner")  # stages that a method alone has
BLOCK = r"(<!-- serving: {} -->\n).*?(<!-- end of serving -->)"  # of a page, by the file that it shows


def lines(model: GlammModel, pruners: str | None, budgets: Sequence[int]) -> list[Line]:
    """`none` and every method, each at the first budget that it can end at."""
    methods = ",".join(one.name for one in parse("all") if one.kind == "method")
    vision = model.clip.config.vision_config
    side, layers = vision.image_size // vision.patch_size, model.language_model.config.num_hidden_layers
    found: dict[str, Line] = {}
    for line in lines_of(parse(pruners or f"{FREE},{methods}"), budgets, 0, (side, side), layers):
        found.setdefault(line.name, line)
    return list(found.values())


def clock_of(device: str) -> Callable[[], float]:
    """Seconds: of this process's processor time, or of the wall when a GPU is done."""
    if not device.startswith("cuda"):
        return time.process_time

    def read() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def measured(
    model: GlammModel,
    line: Line,
    draw: Callable[[int], Request],
    clients: int,
    answers: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """One row: the rate at which `answers` requests were answered behind the first one of every client, and
    the time to the first token of all that were sent meanwhile and have theirs."""
    vision = model.clip.config.vision_config
    served = Served(line.pruner, line.budget, (vision.image_size // vision.patch_size) ** 2)
    watch = meters.Ledger(clock, lambda after, before: after - before)
    server = Server(model, served, clients, (BEFORE + AFTER[1], NEW[1]), stage=watch)
    done = closed_loop(server, draw, clients, clients + answers, clock)
    begin, end = done[clients - 1].done, done[-1].done
    count = sum(begin < one.done <= end for one in done)
    first = [1000 * (one.first - one.sent) for one in (*done, *server.running) if one.sent >= begin]
    entered = len(done) + len(server.running)
    shape = Shape.of(model.language_model.config)
    return {
        "pruner": line.name,
        "budget": line.budget,
        "clients": clients,
        "answers": count,
        "seconds": end - begin,
        "requests_per_s": count / (end - begin),
        "first_ms": [round(one, 3) for one in first],
        "spent_ms": {name: 1000 * spent / entered for name, spent in watch.spent().items()},
        "macs": int(np.mean([served.macs(one.request, shape) for one in done])),
    }


def choice(row: Mapping[str, Any]) -> float:
    """Milliseconds a request that a row's method takes for itself."""
    return float(sum(row["spent_ms"].get(name, 0.0) for name in CHOICE))


# -- what is printed


def label(row: Mapping[str, Any]) -> str:
    """A method with its budget."""
    return row["pruner"] if row["pruner"] == BOUND else f"{row['pruner']} {row['budget']}"


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """By clients and method: requests per second over those of `none`."""
    bound = {row["clients"]: row["requests_per_s"] for row in rows if row["pruner"] == BOUND}
    found: dict[int, dict[str, float]] = {clients: {} for clients in sorted(bound)}
    for row in rows:
        if row["clients"] in bound and row["pruner"] != BOUND:
            found[row["clients"]][label(row)] = row["requests_per_s"] / bound[row["clients"]]
    return found


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What pruning gains or loses under load."""
    found = ratios(rows)
    few, many = min(found), max(found)
    macs = {label(row): row["macs"] for row in rows}
    said = []
    for clients in (few, many):
        who = "one client" if clients == 1 else f"{clients} clients"
        said.append(f"with {who} {_span(found[clients])}")
    saved = _span({name: macs[BOUND] / own for name, own in macs.items() if name != BOUND})
    losing = sorted({name for one in found.values() for name, ratio in one.items() if ratio < 1})
    verb = "loses" if len(losing) == 1 else "lose"
    lost = f"{', '.join(losing)} {verb} against it at some load" if losing else "No method loses against it"
    most = max((row for row in rows if row["clients"] == many), key=choice)
    share = 100 * choice(most) / sum(most["spent_ms"].values())
    return (
        f"Requests per second over those of `none`: {', '.join(said)}; by the decoder's multiply-adds it "
        f"would be {saved}. {lost[0].upper()}{lost[1:]}; what a method computes to choose is computed "
        f"request by request, however many wait, and takes {share:.0f} % of the time of {label(most)}, the "
        f"most, at {many} clients."
    )


def _span(ratio: Mapping[str, float]) -> str:
    """The least and the most of methods, and of the choice that costs nothing."""
    own = {name: one for name, one in ratio.items() if name.split()[0] != FREE}
    low, high = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    free = [f"; {name}, whose choice costs nothing, {ratio[name]:.2f}" for name in ratio if name not in own]
    return f"{own[low]:.2f} ({low}) to {own[high]:.2f} ({high}{''.join(free)})"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The two tables, every row a method, every column a number of clients."""
    names = list(dict.fromkeys(label(row) for row in rows))
    at = {(label(row), row["clients"]): row for row in rows}
    clients = sorted({row["clients"] for row in rows})
    rates, waits = [], []
    for name in names:
        here = [at[name, count] for count in clients if (name, count) in at]
        last = here[-1]
        rates.append(
            {"requests per s, clients:": name}
            | {str(row["clients"]): f"{row['requests_per_s']:.2f}" for row in here}
            | {"choice ms": f"{choice(last):.1f}", "vision ms": f"{last['spent_ms']['vision']:.1f}"}
            | {
                "prefill ms": f"{last['spent_ms']['prefill']:.1f}",
                "decode ms": f"{last['spent_ms']['decode']:.1f}",
            }
            | {"GMAC": f"{last['macs'] / 1e9:.2f}"}
        )
        waits.append(
            {"first token ms, p50 / p95, clients:": name}
            | {
                str(row["clients"]): " / ".join(
                    f"{one:.0f}" for one in np.percentile(row["first_ms"], (50, 95))
                )
                for row in here
            }
        )
    return f"{pipe_table(rates)}\n\n{pipe_table(waits)}\n"


def figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Requests per second over those of `none`, against the number of clients."""
    from matplotlib.figure import Figure

    found = ratios(rows)
    clients = sorted(found)
    drawn = looks({row["pruner"] for row in rows}, [FREE])
    page = Figure(figsize=(7.2, 4.6))
    axes = page.add_axes((0.08, 0.12, 0.68, 0.82))
    names = list(found[clients[-1]])
    heights = {name: found[clients[-1]][name] for name in names}
    axes.axhline(1, color="#767676", linewidth=1, linestyle=":")
    for name in names:
        here = [count for count in clients if name in found[count]]
        axes.plot(here, [found[count][name] for count in here], **line_of(drawn[name.split()[0]]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.set_xlabel("clients, each with one request on its way")
    axes.set_ylabel("requests per second, over those of none")
    axes.set_ylim(bottom=0)
    low, high = axes.get_ylim()
    gap = 0.042 * (high - low)
    for name, height in zip(names, spread_out(list(heights.values()), gap, low, high), strict=True):
        look, up = drawn[name.split()[0]], (height - low) / (high - low)
        beside: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "markevery": [1]}
        axes.plot((1.02, 1.055, 1.09), (up,) * 3, **beside, **line_of(look, 3.5, 1.0))
        axes.text(1.105, up, name, transform=axes.transAxes, fontsize=7.5, va="center")
    return page


def write_page(page: Path, file: Path) -> None:
    """Renew what a page shows of a file: its block, and its figure beside the page."""
    import matplotlib

    header, rows, _ = read_rows(file)
    shown = re.compile(BLOCK.format(re.escape(file.name)), re.DOTALL)
    text = page.read_text()
    if not shown.search(text):
        raise UserError(f"{page} shows nothing of {file.name}; write {BLOCK.format(file.name)} into it.")
    write_text(page, shown.sub(lambda found: found[1] + block(rows, header) + found[2], text))
    with matplotlib.rc_context(STYLE), tempfile.TemporaryDirectory() as folder:
        made = next(one for one in save(figure(rows), Path(folder) / file.stem) if one.suffix == ".svg")
        write_text(page.parent / "images" / made.name, made.read_text())


def block(rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> str:
    """What a page shows of a file."""
    asked, where = header["settings"], header["provenance"]
    device = where["device_name"] if asked["device"].startswith("cuda") else where["processor"]
    told = (
        f"Numbers of `{asked['backbone']}`, {asked['dtype']}, {asked['device']} ({device}), torch "
        f"{where['packages']['torch']}, seed {asked['seed']}."
    )
    return f"\n{sentence(rows)}\n\n{tables(rows)}\n{told}\n\n"


# -- the command


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet, and print or write what is."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", choices=MODELS, default="small", help="whose numbers the model has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--pruners", help="default: uniform and all methods; `none` always runs")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=BUDGETS, help="of each method, the first possible"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument(
        "--answers", type=int, default=12, help="measured, or twice the clients if that is more"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/serving.jsonl"))
    parser.add_argument("--anew", action="store_true", help="forget what --out holds")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what --out holds")
    parser.add_argument("--page", type=Path, help="renew what this page shows of --out, and its figure")
    asked = parser.parse_args(words)
    try:
        asked.device = resolve(asked.device)
        if not asked.table:
            run(asked)
        if asked.page:
            write_page(asked.page, asked.out)
        else:
            header, rows, _ = read_rows(asked.out)
            print(block(rows, header))
    except UserError as error:
        print(error)
        return 2
    return 0


def run(asked: argparse.Namespace) -> None:
    """Measure every row that the file lacks."""
    torch.set_num_threads(1)
    make_current(asked.device)
    if asked.anew:
        asked.out.unlink(missing_ok=True)
    settings = {name: getattr(asked, name) for name in ("backbone", "device", "dtype", "answers", "seed")}
    kept = Rows(asked.out, settings, asked.device, ("pruner", "budget", "clients"))
    shapes = without_weights(asked.backbone)
    todo = [
        (line, clients)
        for clients in asked.clients
        for line in lines(shapes, asked.pruners, asked.budgets)
        if (line.name, line.budget, clients) not in kept.rows
    ]
    if not todo:
        return
    model = random_weights(shapes, asked.device, getattr(torch, asked.dtype), asked.seed)
    clock = clock_of(asked.device)
    known: dict[int, Request] = {}

    def draw(number: int) -> Request:
        if number not in known:
            known[number] = request(model, asked.seed, number)
        return known[number]

    for number in range(max(3 * clients + asked.answers for _, clients in todo) + 8):
        draw(number)  # outside the clock
    warm: set[str] = set()
    for place, (line, clients) in enumerate(todo, 1):
        if line.name not in warm:  # and looked at, as clocks take choices as they are
            vision = model.clip.config.vision_config
            served = Served(line.pruner, line.budget, (vision.image_size // vision.patch_size) ** 2)
            prefilled(model, [draw(0), draw(1)], served, checked=True)
            warm.add(line.name)
        row = measured(model, line, draw, clients, max(asked.answers, 2 * clients), clock)
        kept.add(row)
        told = f"{label(row)}, clients {clients}: {row['requests_per_s']:.2f} requests/s"
        print(f"{place} of {len(todo)}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
