"""The bench of a whole GPU, run small without one: its rows, its plan, its rooflines, and the decoder at
fixed lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from backbones.costs import Prompt, Shape
from backbones.glamm.shapes import USUAL
from backbones.parts.faithful import run_layers
from harness.cost import meters, roofline
from tests.bench import gpu
from tests.bench.drawn import make_current, random_weights, without_weights
from tests.bench.static_loop import StaticLoop

H100 = roofline.gpu("h100")


def test_rows_of_the_bench_on_a_cpu() -> None:
    prompt = Prompt(80, 37, turns=2, words=8)
    model = random_weights(without_weights("tiny"), "cpu", torch.float32)
    asked = {("none", 1), ("litelvlm", 1), ("none", 2), ("fastv", 2)}
    tasks = [
        task
        for task in gpu.tasks(model, "litelvlm,fastv", ("sdpa",), (1, 2), (8,))
        if task.loop == "plain" and (task.line.name, task.batch) in asked
    ]
    found = [gpu.measured(model, task, prompt, "cpu", 1, H100) for task in tasks]
    by = {(row["pruner"], row["batch"]): row for row in found}
    assert set(by) == asked and len(found) == len(asked)
    assert all(row["prefill_ms"] > 0 and row["kernel_ms"] > 0 and row["times_roofline"] > 1 for row in found)
    assert by["litelvlm", 1]["peak_prefill"] < by["none", 1]["peak_prefill"] / 2
    assert by["none", 2]["peak_prefill"] > 1.8 * by["none", 1]["peak_prefill"]
    assert by["litelvlm", 1]["choice_ms"] > 0 and by["fastv", 2]["choice_ms"] > 0
    assert json.loads(json.dumps(found)) == found


def test_the_roofline_of_the_full_size_is_what_documents_say() -> None:
    """9.5, 4.3 and 3.9 ms on an H100 for 576, 192 and 64 tokens: the first two by arithmetic, the last by the
    weights, which a batch of eight reads once."""
    shapes = without_weights("glamm-7b")
    shape = Shape.of(shapes.language_model.config)
    tasks = {
        task.line.budget: task
        for task in gpu.tasks(shapes, "uniform", ("sdpa",), (1,), (192, 64))
        if task.loop == "plain"
    }
    lengths = {budget: gpu.lengths_of(task, shapes, USUAL.text) for budget, task in tasks.items()}
    assert lengths == {n: (n + 129,) * 32 for n in (576, 192, 64)}
    found = {budget: gpu.bound(each, 1, shape, H100, 2) for budget, each in lengths.items()}
    assert {budget: (round(ms, 1), by) for budget, (ms, by) in found.items()} == {
        576: (9.5, "arithmetic"),
        192: (4.3, "arithmetic"),
        64: (3.9, "weights"),
    }
    eight, binds = gpu.bound(lengths[64], 8, shape, H100, 2)
    assert binds == "arithmetic" and eight < 8 * found[64][0]


def test_the_plan_holds_every_method_at_every_budget(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert gpu.main(["--plan", "--out", str(tmp_path / "gpu.jsonl")]) == 0
    told = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if "|" in line][
        2:
    ]
    assert len(lines) == int(told.rstrip().splitlines()[-1].split()[0])
    asked = {tuple(line[:5]) for line in lines}
    assert len(asked) == len(lines)
    for attn in ("eager", "sdpa", "flash_attention_2"):
        for batch in ("1", "8"):
            assert (attn, "plain", batch, "none", "576") in asked
            for budget in ("576", "192", "128", "64"):
                assert {(attn, "plain", batch, one, budget) for one in ("fastv", "dart", "nuwa")} <= asked
    assert ("sdpa", "compiled", "1", "uniform", "64") in asked


def test_the_script_goes_on_where_its_minutes_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "without_weights", lambda name, attn="sdpa": without_weights("tiny", attn))
    out = tmp_path / "gpu.jsonl"
    words = ["--device", "cpu", "--tiny", "--repeat", "1", "--pruners", "uniform", "--budgets", "64"]
    words += ["--attn", "eager", "--batches", "1", "2", "--out", str(out)]
    assert gpu.main([*words, "--minutes", "-1"]) == 0
    assert "4 rows are left; the same command goes on." in capsys.readouterr().out
    assert gpu.main(words) == 0
    assert "all 4 rows are in" in capsys.readouterr().out
    kept = out.read_bytes()
    assert gpu.main(words) == 0 and out.read_bytes() == kept
    capsys.readouterr()
    assert gpu.main([*words, "--plan"]) == 0
    assert "4 rows, 0 to run" in capsys.readouterr().out
    assert gpu.main(["--table", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("| eager ") == 4
    assert gpu.main([*words, "--repeat", "2"]) == 2
    assert "was measured with another repeat" in capsys.readouterr().out
    assert gpu.main(["--table", "--out", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl yet; measure first" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_it_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("This bench needs a CUDA GPU")


def test_compiled_rows_may_have_any_number_of_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses a function more than eight of them."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda one, **how: real(one, backend="eager", fullgraph=True, dynamic=False)
    )
    model = random_weights(without_weights("tiny"), "cpu", torch.float32)
    asked = gpu.tasks(model, "uniform", ("sdpa",), (1, 2, 3), (8, 70, 130))
    shapes = [task for task in asked if task.loop == "compiled"]
    assert len(shapes) == 12
    for task in shapes:
        seen = gpu.pass_of(model, task, USUAL, "default")(meters.Clock("cpu"))
        assert seen == gpu.lengths_of(task, model, USUAL.text)


def test_the_device_that_is_asked_for_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch takes it: a number, never "cuda" alone."""
    made: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    for device in ("cpu", "cuda", "cuda:1"):
        make_current(device)
    assert made == [0, 1]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_layers_at_a_fixed_length_say_the_same(attn: str) -> None:
    """Fill changes no token before it, and one compilation serves all layers and leaves every digit."""
    llm = random_weights(without_weights("tiny", attn), "cpu", torch.float64).language_model
    hidden = torch.randn(2, 75, llm.config.hidden_size, dtype=torch.float64)
    plain, filled = run_layers(llm, hidden).hidden, StaticLoop(llm)(hidden)
    assert filled.shape == plain.shape
    torch.testing.assert_close(filled, plain, rtol=1e-12, atol=1e-12)
    assert StaticLoop(llm, multiple=1)(hidden).equal(plain)
    torch.compiler.reset()
    counted = CompileCounter()
    loop = StaticLoop(llm, compiled=lambda one: torch.compile(one, backend=counted, fullgraph=True))
    assert loop(hidden).equal(filled) and loop(hidden[:, :70]).equal(StaticLoop(llm)(hidden[:, :70]))
    assert counted.frame_count == 1, "one length, one program"
