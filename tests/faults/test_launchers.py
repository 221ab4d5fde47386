"""Real processes: signals in the middle of a run, and the launchers that the harness leaves multi-processing
to."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness import __main__ as entry
from harness import cli
from harness.engine.ranks import Place, here
from harness.store import records
from pruners import UserError
from tests.faults.crew import FORK, Record, check

COMMAND = [
    "--pruners",
    "none,visionzip,random",
    "--budgets",
    "64",
    "--datasets",
    "refshapes:val",
    "--limit",
    "16",
    "--seeds",
    "1",
    "--costs",
    "off",
]


def environment(**more: str) -> dict[str, str]:
    known = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RANK", "WORLD", "LOCAL_", "SLURM"))
    }
    return known | {"OMP_NUM_THREADS": "1"} | more


def harness(*words: str, launcher: tuple[str, ...], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*launcher, *COMMAND, *words], env=environment(**more), capture_output=True, text=True, timeout=300
    )


def free_port() -> str:
    """For the ranks of one test: others may run at the same time."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def inside(*words: str, **more: str) -> int:
    """The same command in this process, where nothing hangs on another one's start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        for name, value in more.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["python -m harness", *COMMAND, *words])
        patch.setattr("reports.figures.draw_figures", lambda *_: [])
        return cli.main()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert inside("--out", str(folder)) == 0
    return folder


def begin(told: Path, *words: str, anew: bool) -> int:
    """The process of a command: one that runs from its first import, or one that finds everything
    imported."""
    if child := os.fork():
        return child
    try:
        with told.open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        if anew:
            command = [sys.executable, "-m", "harness", *COMMAND, *words]
            os.execve(sys.executable, command, environment())
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = [entry.__file__, *COMMAND, *words]
        os._exit(entry.main())
    finally:
        os._exit(1)


@pytest.mark.parametrize(
    ("number", "code", "anew"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_is_one_sentence_and_loses_nothing(
    alone: Path,
    tmp_path: Path,
    number: int,
    code: int,
    anew: bool,
    record_property: Record,
) -> None:
    folder, told = tmp_path / "run", tmp_path / "told"
    process = begin(told, "--out", str(folder), anew=anew)
    patience = time.time() + 120
    while not list((folder / records.FOLDER).glob("*/*.jsonl")) and time.time() < patience:
        time.sleep(0.02)
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    said = told.read_text()
    assert os.waitstatus_to_exitcode(status) == code, said
    assert said.splitlines()[-1] == "stopped, nothing recorded is lost; to go on: " + shlex.join(
        ["python", "-m", "harness", *COMMAND, "--out", str(folder)]
    )
    assert not (folder / records.DONE).exists()
    record_property("faults", Counter({"signals sent": 1}))
    assert inside("--out", str(folder)) == 0
    check(folder, alone, record_property)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_of_a_launcher_give_the_same_rows(
    alone: Path, tmp_path: Path, launcher: str, record_property: Record
) -> None:
    words = {
        "torchrun": ("torchrun", "--nproc_per_node", "2", "--master_port", free_port(), "-m", "harness"),
        "deepspeed": (
            "deepspeed",
            "--num_accelerators",
            "2",
            "--master_port",
            free_port(),
            "--module",
            "harness",
        ),
    }[launcher]
    program = Path(sys.executable).parent / words[0]
    if not program.exists() or (launcher == "deepspeed" and find_spec("deepspeed") is None):
        pytest.skip(f"{launcher} is not installed; docs/scale.md says how")
    folder = tmp_path / "run"
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = harness("--out", str(folder), launcher=(str(program), *words[1:]), DS_ACCELERATOR="cpu", PATH=path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Upper bound, all 576 tokens") == 1, "one rank prints the table"
    (place,) = (folder / records.FOLDER).iterdir()
    assert len(list(place.glob("*.jsonl"))) == 2, "one of the ranks had nothing to do"
    check(folder, alone, record_property)


def test_two_ranks_share_one_language_model(tmp_path: Path) -> None:
    """Sums over two processes round differently, so a few pixels may differ; what is kept may not, but for
    FastV's last ones."""
    words = ("--pruners", "none,visionzip,fastv", "--limit", "2")
    port, told = free_port(), [tmp_path / f"told{rank}" for rank in range(2)]
    importlib.import_module("backbones.parts.tensor_parallel")  # once for both

    def work(rank: int) -> None:
        """What a launcher starts, without the time that its imports take."""
        with told[rank].open("w") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        places = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        where = places | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code = inside(*words, "--out", str(tmp_path / "team"), "--tensor-parallel", "2", **where)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

    team = [FORK.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in team:
        process.start()
    for process in team:
        process.join(300)
        assert process.exitcode == 0, [file.read_text()[-3000:] for file in told]
    assert sum(file.read_text().count("Upper bound, all 576 tokens") for file in told) == 1
    assert inside(*words, "--out", str(tmp_path / "alone")) == 0
    together, alone = records.load_records(tmp_path / "team"), records.load_records(tmp_path / "alone")
    tower = alone["pruner"] == "visionzip"
    assert (together["kept"] == alone["kept"])[tower].all()
    assert (together["kept"] == alone["kept"]).mean() > 0.9
    assert (together["iou"] - alone["iou"]).abs().median() < 1e-3
    assert (together["iou"] - alone["iou"]).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("size", "said"), [("0", "too small"), ("2", "needs a multiple of 2 processes and there are 1")]
)
def test_teams_that_cannot_be(
    tmp_path: Path, size: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inside("--out", str(tmp_path / "run"), "--tensor-parallel", size) == 2
    assert said in capsys.readouterr().err


def test_a_finished_run_is_found_again_and_force_starts_beside_it(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    before = sorted(path.stat().st_mtime_ns for path in (folder / records.FOLDER).glob("*/*"))
    assert inside("--out", str(folder)) == 0
    assert str(folder) in capsys.readouterr().out
    assert before == sorted(path.stat().st_mtime_ns for path in (folder / records.FOLDER).glob("*/*"))


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Place(3, 4, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, Place(5, 8, 1)),
    ],
)
def test_every_launcher_is_understood(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: Place
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert here() == place


@pytest.mark.parametrize("rank", ["2", "-1", "first"])
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=f"RANK={rank}"):
        here()


def test_shares_are_disjoint_and_together_everything() -> None:
    orders = [Place(rank, 3).order(10) for rank in range(3)]
    assert [order[: len(range(rank, 10, 3))] for rank, order in enumerate(orders)] == [
        [0, 3, 6, 9],
        [1, 4, 7],
        [2, 5, 8],
    ]
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_the_device_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbones.device.resolve", lambda asked, card: asked)  # no card is here
    assert Place(5, 8, 1).device("cuda") == "cuda:1"
    assert Place().device("cuda") == "cuda" and Place(5, 8, 1).device("cpu") == "cpu"
