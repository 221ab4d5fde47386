"""What a published table needs, and when a number is the printed one: specs, files of the hub, bands."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import constants

from harness import metrics
from harness.plan import Plan
from harness.reproduce import bands, check, costs, hub, needs, proof
from harness.reproduce.bands import Ours, judge
from harness.reproduce.numbers import Number, read_rows
from harness.reproduce.spec import File, Spec, Weights, read_spec
from pruners.errors import UserError
from reports import publication, reproduced

REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights of nobody"
SPEC = """
title = "A table"
numbers = "mine.csv"
backbone = "glamm"
protocol = "glamm"

[source]
title = "Somebody, 2026"
where = "Table 1"
seen = true

[metrics.ciou]
unit = "%"

[plan]
pruners = ["none", "litelvlm"]
budgets = [64]
datasets = "refcoco:val"

[[weights]]
parameter = "checkpoint"
repository = "nobody/model"
revision = "0123456789abcdef0123456789abcdef01234567"
files = [
    { name = "config.json", bytes = 17, sha256 = "DIGEST" },
    { name = "large.bin", gb = 9.98, unknown = "only listed" },
]

[[data]]
name = "images"
source = "a server"
into = "Refer_Segm"
serves = ["refcoco"]
bytes = 1000
unknown = "nobody told a digest"

[[splits]]
name = "refcoco:val"
images = 1500
refs = 3811
sentences = 10834
unknown = "no data to take a fingerprint of"
""".replace("DIGEST", hashlib.sha256(CONTENT).hexdigest())
NUMBERS = "pruner,budget,refcoco val,source\nnone,,79.5,Somebody\nlitelvlm,64,66,Somebody\n"


def write(folder: Path, text: str = SPEC, numbers: str = NUMBERS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "mine.csv").write_text(numbers)
    (folder / "mine.toml").write_text(text)
    return folder / "mine.toml"


# -- specs


def test_a_spec_is_read_whole(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path))
    assert spec.plan == Plan(
        pruners=("none", "litelvlm"),
        budgets=("64",),
        backbones=("glamm",),
        datasets="refcoco:val",
        protocol="glamm",
        answers=("forced",),
        limit=0,
    )
    assert [(row.pruner, row.budget, printed.text) for row, _, printed in spec.cells("ciou")] == [
        ("none", None, "79.5"),
        ("litelvlm", 64, "66"),
    ]
    assert spec.weights[0].files[1].size == 9_980_000_000


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('unit = "%"', 'unti = "%"', r"\[metrics\.ciou\] has no 'unti'.*unit"),
        ("seen = true", 'seen = "yes"', r"\[source\.seen\] is 'yes', and has to be true or false"),
        ("seen = true\n", "", r"\[source\] lacks 'seen'"),
        ('title = "A table"\n', "", r"its top lacks 'title'"),
        ('title = "A table"', "title = 3", r"\[title\] is 3, and has to be a text"),
        ("images = 1500", 'images = "many"', r"\[splits\[0\]\.images\] is 'many', and has to be a whole"),
        ("images = 1500", "images = 0", r"\[splits\[0\]\.images\] is 0"),
        ('unknown = "no data to take a fingerprint of"\n', "", r"\[splits\[0\]\] does not know all"),
        (', unknown = "only listed"', "", r"files\[1\]\] does not know its bytes"),
        ("4567", "main", r"revision\] is '.*', and has to be a commit's 40 hex digits"),
        ('name = "refcoco:val"', 'name = "refcoco:test"', r"'refcoco:test', which the plan does not run"),
        ('"litelvlm"]', '"litelvlm"]\nbudget = 3', r"\[plan\] is no plan: A plan has no 'budget'"),
        ('"litelvlm"]', '"litelvlm"]\nprotocol = "each"', r"\[plan\.protocol\] is said once"),
        ('parameter = "checkpoint"', 'parameter = "model"', r"'model', and has to be 'checkpoint' or 'clip'"),
        ('revision = "', 'source = "a drive"\nrevision = "', r"\[weights\[0\]\] needs a hub repository"),
        ("[plan]", "[band]\ntolerance = 1\n[plan]", r"\[band\.tolerance\] is 1; .*'why'"),
        ("[plan]", "[proof]\ndraws = 0\n[plan]", r"\[proof\] asks for"),
        ('[metrics.ciou]\nunit = "%"', 'metrics = "ciou"', "its top lacks 'metrics'"),
        ("[metrics.ciou]", "[metrics.giou]\ncolumn = 'x'\nunit='%'\n[metrics.ciou]", r"giou\] has no number"),
        ('numbers = "mine.csv"', 'numbers = "other.csv"', r"other\.csv' of the spec .* cannot be read"),
        ("[plan]", "[plan", r"is no TOML"),
        ("[plan]", f"x = {'[' * 9999}\n[plan]", r"is no TOML \(it is nested too deeply\)"),
        ("[plan]", f"# {'-' * 2**20}\n[plan]", r"is no TOML \(it has more than 1 MiB\)"),
        ('refcoco:val"\n\n[[w', 'refcoco"\n\n[[w', r"\[plan\.datasets\] has 'refcoco' without a split"),
    ],
)
def test_what_is_wrong_in_a_spec_is_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in SPEC
    path = write(tmp_path, SPEC.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as caught:
        read_spec(path)
    assert "\n" not in str(caught.value) or "TOML" in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (NUMBERS.replace("79.5", "79.5 %"), r"line 2 has '79\.5 %' for refcoco val, which is no number"),
        (NUMBERS.replace("litelvlm,64", "litelvlm,few"), r"line 3 has the budget 'few'"),
        (NUMBERS.replace("litelvlm,64", "litelvlm,²"), r"line 3 has the budget '²'"),
        (NUMBERS.replace("79.5", "٣"), r"line 2 has '٣' for refcoco val, which is no number"),
        (NUMBERS.replace(",source", "").replace(",Somebody", ""), "lacks the column source"),
        (NUMBERS.replace("66,Somebody", "66"), "line 3 has not as many cells"),
        (NUMBERS.splitlines()[0], "has no row"),
    ],
)
def test_what_is_wrong_in_the_numbers_is_one_sentence(tmp_path: Path, numbers: str, said: str) -> None:
    path = write(tmp_path, numbers=numbers)
    with pytest.raises(UserError, match=said):
        read_rows(path.parent / "mine.csv", str(path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metrics.ciou", "metrics.cIoU", r"prints 'cIoU', which is no metric and no cost; .*'ciou'"),
        ('unit = "%"', 'unit = "share"', r"prints 'ciou' in 'share', and ours is in '%'"),
        (
            "protocol =",
            'pending = "the masks are not out"\nprotocol =',
            "cannot be run yet: the masks are not",
        ),
    ],
)
def test_what_cannot_be_computed_here_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        costs.check_metrics(read_spec(write(tmp_path, SPEC.replace(old, new, 1))))


def test_the_spec_of_the_guide_is_one(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "adding-a-published-table.md").read_text()
    (block,) = re.findall(r"^```toml\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    numbers = "pruner,budget,refcoco val,refcoco testA,source\nnone,,79.5,83.2,a\nvisionzip,64,59.0,63.8,a\n"
    spec = read_spec(write(tmp_path, block, numbers))
    costs.check_metrics(spec)
    assert spec.band.tolerance == 0.5 and len(spec.cells("ciou")) == 4


def test_a_name_that_is_none_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'litelvlm-refcoc'; there are .*\bembedded\b.*'litelvlm-refcoco'"):
        publication.spec("litelvlm-refcoc")
    with pytest.raises(UserError, match=r"mine\.toml' cannot be read"):
        publication.spec("mine.toml")


def test_the_specs_of_the_package_pin_what_they_need() -> None:
    """And say of everything that they do not know, why."""
    for spec in publication.specs():
        own = spec.backbone.endswith("-mini")
        assert own or (spec.weights and spec.splits and spec.causes)
        assert {f"{name}:{split}" for name, split in spec.columns} == {one.name for one in spec.splits}
        for one in spec.weights:
            assert re.fullmatch("[0-9a-f]{40}", one.revision) or one.source


def test_the_pinned_clip_is_the_one_that_the_backbone_loads() -> None:
    from backbones.glamm.release import GLAMM
    from backbones.lisa.release import LISA

    pinned = {
        spec.backbone: (one.repository, one.revision)
        for spec in publication.specs()
        for one in spec.weights
        if one.parameter == "clip"
    }
    assert pinned["glamm"] == (GLAMM.clip, GLAMM.revision) == pinned["videoglamm"]
    assert pinned["lisa"] == (LISA.clip, LISA.revision)


# -- needs


def cache_with(folder: Path, **files: bytes) -> Path:
    """A cache in the layout of the hub's, with files of nobody/model."""
    snapshot = folder / "models--nobody--model" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name.replace("_", ".")).write_bytes(content)
    return folder


def test_what_the_cache_holds_is_here_and_the_rest_is_named(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path / "spec"))
    cache = cache_with(tmp_path / "hub", config_json=CONTENT)
    found = needs.look(spec, {}, None, cache)
    assert [(one.what, one.missing) for one in found.weights] == [
        ("checkpoint config.json", False),
        ("checkpoint large.bin", True),
    ]
    (images,) = found.data
    assert images.missing and images.bytes == 1000 and "a server" in images.source
    with pytest.raises(UserError, match=r"large\.bin \(9\.98 GB\) from nobody/model@0123.*--download"):
        needs.refuse(found, False)
    shown = "\n".join(reproduced.needs_lines(spec, found, None))
    assert "to fetch: 9.98 GB in 2 files" in shown and "only listed" in shown


def test_a_file_of_another_size_is_not_taken(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path / "spec"))
    cache = cache_with(tmp_path / "hub", config_json=b"short")
    with pytest.raises(UserError, match=r"config\.json' has 5 bytes, and the spec says 17"):
        needs.refuse(needs.look(spec, {}, None, cache), False)


def test_a_folder_that_is_given_counts_and_nothing_else(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path / "spec"))
    cache = cache_with(tmp_path / "hub", config_json=CONTENT)
    given = tmp_path / "given"
    given.mkdir()
    found = needs.look(spec, {"checkpoint": given}, None, cache)
    assert all(one.missing and "--checkpoint names" in one.source for one in found.weights)
    (given / "config.json").write_bytes(CONTENT)
    assert not needs.look(spec, {"checkpoint": given}, None, cache).weights[0].missing


def test_the_doctor_compares_digests(tmp_path: Path) -> None:
    """Another revision has the same shapes."""
    spec = read_spec(write(tmp_path / "spec"))
    for content, level in ((CONTENT, "ok"), (CONTENT[::-1], "wrong")):
        cache = cache_with(tmp_path / level, config_json=content)
        (found,) = check._digests(needs.look(spec, {}, None, cache))
        assert found.level == level and ("another file" in found.what) == (level == "wrong")


def test_the_plan_gets_the_folders_of_the_cache(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path / "spec"))
    cache = cache_with(tmp_path / "hub", config_json=CONTENT)
    snapshot = cache / "models--nobody--model" / "snapshots" / REVISION
    assert needs.ready(spec, spec.plan, {}, cache).backbones == (f"glamm(checkpoint='{snapshot}')",)
    assert needs.ready(spec, spec.plan, {"checkpoint": "X"}, cache).backbones == ("glamm(checkpoint='X')",)


class Hub(BaseHTTPRequestHandler):
    """What the hub answers for a repository, and for a file of a commit: two headers and a body."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        told = json.dumps({"id": "nobody/model", "sha": REVISION, "siblings": []}).encode()
        known = {
            f"/nobody/model/resolve/{REVISION}/config.json": CONTENT,
            f"/api/models/nobody/model/revision/{REVISION}": told,
        }
        found = known.get(self.path.partition("?")[0])
        self.send_response(404 if found is None else 200)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        return found or b""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_by_its_revision_and_verified(tmp_path: Path, endpoint: str) -> None:
    file = File("config.json", bytes=17, sha256=hashlib.sha256(CONTENT).hexdigest())
    model = Weights("checkpoint", (file,), "nobody/model", REVISION)
    path = hub.download(model, file, tmp_path, endpoint)
    assert path.read_bytes() == CONTENT
    assert path == hub.cached(model, file, tmp_path)
    assert path.parent == tmp_path / "models--nobody--model" / "snapshots" / REVISION


def test_all_that_is_not_here_is_fetched_and_nothing_else(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SPEC.replace('    { name = "large.bin", gb = 9.98, unknown = "only listed" },\n', "")
    spec = read_spec(write(tmp_path / "spec", text))
    (path,) = needs.fetch(spec, {}, tmp_path / "hub", endpoint)
    assert path.read_bytes() == CONTENT
    assert needs.fetch(spec, {}, tmp_path / "hub", "http://127.0.0.1:9") == []
    assert needs.fetch(spec, {"checkpoint": tmp_path}, tmp_path / "other", "http://127.0.0.1:9") == []
    with pytest.raises(UserError, match=r"nobody/model@0123.* cannot be fetched .* with --checkp"):
        needs.fetch(spec, {}, tmp_path / "other", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (File("config.json", bytes=17, sha256="0" * 64), "has the SHA256 .* where the spec says 000"),
        (File("config.json", bytes=18), "has 17 bytes where the spec says 18; delete '"),
        (
            File("other.json", bytes=17),
            r"other\.json of nobody/model@0123.* cannot be fetched .* --checkpoint",
        ),
    ],
)
def test_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, endpoint: str, file: File, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        hub.download(Weights("checkpoint", (file,), "nobody/model", REVISION), file, tmp_path, endpoint)


def test_offline_nothing_is_asked_and_the_way_by_hand_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = read_spec(write(tmp_path / "spec"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(needs, "_free", lambda cache: 10**12)
    with pytest.raises(
        UserError, match=r"HF_HUB_OFFLINE is set: unset it, or fetch .*models--nobody--model'"
    ):
        needs.fetch(spec, {}, tmp_path)
    monkeypatch.setattr(needs, "_free", lambda cache: 10**9)
    with pytest.raises(UserError, match=r"1\.00 GB left, and 9\.98 GB have to be fetched"):
        needs.fetch(spec, {}, tmp_path)


# -- bands


def test_all_images_leave_no_interval_and_the_draw_decides() -> None:
    ours = Ours(74.6, 73.6, 75.6, 1500)
    exact = judge(ours, 74.1, 0.05, 1500)
    assert exact.low == exact.high == exact.difference and exact.verdict == "differs"
    drawn = judge(ours, 74.1, 0.05, 1500, draw=0.25)
    assert drawn.band == pytest.approx(0.05 + math.sqrt(2 * 0.25)) and drawn.verdict == "holds"
    assert judge(ours, 74.1, 0.05, 1500, tolerance=0.5).verdict == "holds"


def test_the_draw_is_worth_what_two_draws_of_all_images_differ() -> None:
    """Simulated: scores of two runs of the same images, each with draws of its own, lie in the band in 95 of
    100 cases."""
    random = np.random.default_rng(0)
    share, images, inside = 0.4, 400, 0
    for _ in range(400):
        own = random.normal(50, 10 * math.sqrt(1 - share), images)
        one, other = (own + random.normal(0, 10 * math.sqrt(share), images) for _ in range(2))
        half = bands.Z * one.std() / math.sqrt(images)
        ours = Ours(one.mean(), one.mean() - half, one.mean() + half, images)
        inside += judge(ours, other.mean(), 0.0, images, draw=share).verdict == "holds"
    assert 0.92 <= inside / 400 <= 0.98


def test_a_sample_tells_as_much_as_its_share() -> None:
    few = judge(Ours(74.6, 72.6, 76.6, 100), 74.1, 0.05, 1500)
    assert few.verdict == "cannot tell" and few.why
    assert few.high - few.low == pytest.approx(4 * math.sqrt(1 - 100 / 1500))
    others = judge(Ours(74.6, 72.6, 76.6, 100), 74.1, 0.05, None)
    assert others.high - others.low == pytest.approx(4)
    assert judge(Ours(67.0, 65.0, 69.0, 100), 74.1, 0.05, 1500).verdict == "differs"


def test_too_few_images_tell_nothing_unless_they_are_all() -> None:
    nan = float("nan")
    assert judge(Ours(74.1, nan, nan, 2), 74.1, 0.05, 1500).verdict == "cannot tell"
    assert judge(Ours(74.1, nan, nan, 2), 74.1, 0.05, 2).verdict == "holds"
    assert judge(Ours(74.1, nan, nan, 2), 74.1, 0.05, 2, draw=0.1).verdict == "cannot tell"


def test_half_a_unit_is_that_of_the_printed_digits() -> None:
    assert [Number(text).half_unit for text in ("67", "74.1", "67.24")] == pytest.approx([0.5, 0.05, 0.005])
    assert judge(Ours(67.4, 67.4, 67.4, 9), 67.0, 0.5, 9).verdict == "holds"
    assert judge(Ours(66.25, 66.25, 66.25, 9), 66.2, 0.05, 9).verdict == "holds"  # in binary, above


def test_the_share_of_the_draw_is_measured() -> None:
    """None where seeds agree, all where images do not matter, and half where both are alike."""
    random = np.random.default_rng(1)
    images = np.repeat(np.arange(300), 2)

    def frames(own: float, drawn: float) -> list[pd.DataFrame]:
        base = random.normal(0.5, own, 300)
        found = []
        for _ in range(3):
            share = (base + random.normal(0, drawn, 300))[images // 1]
            above = np.rint(1e6 * share).astype(int)
            found.append(
                pd.DataFrame(
                    {
                        "dataset": "refcoco",
                        "split": "val",
                        "cluster": images.astype(str),
                        "sample": [f"refcoco:val:{one}" for one in images],
                        "intersection": above,
                        "union": 10**6,
                    }
                )
            )
        return found

    metric = metrics.get("ciou")
    assert proof._share_of_draw(frames(0.1, 0.0), metric) == pytest.approx(0, abs=1e-6)
    assert proof._share_of_draw(frames(0.0, 0.1), metric) == pytest.approx(1, abs=0.05)
    assert proof._share_of_draw(frames(0.1, 0.1), metric) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["holds", "holds"], "The table holds here: 2 of 2"),
        (["holds", "differs"], "does not hold here: 1 of 2 numbers hold, 1 differ"),
        (["holds", "cannot tell"], "Nothing contradicts the table here"),
        (["cannot tell"], "Nothing can be told"),
    ],
)
def test_one_sentence_says_what_came_out(verdicts: list[bands.Verdict], said: str) -> None:
    assert said in bands.counted(verdicts)


# -- costs


def test_times_of_an_unnamed_gpu_cannot_be_told_whatever_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec: Spec = publication.spec("litelvlm-efficiency")
    flops = {"flops_paper": (4.66e12, 4.60e12, 4.70e12), "activation_paper": (2.0**30, 2.0**30, 2.0**30)}
    keys = {(row.pruner, row.budget) for row in spec.rows}
    monkeypatch.setattr(costs, "_projected", lambda spec: {key: flops for key in keys})
    monkeypatch.setattr(costs, "_measured", lambda folder: {("none", 576): {"prefill_ms": 20.0}})
    found = {(one.row.pruner, one.row.budget, one.metric): one for one in costs.judge_costs(spec, None)}
    flop = found["none", 576, "flops_paper"]
    assert flop.judged.verdict == "holds" and flop.judged.band == pytest.approx(0.005 + 0.06)
    time = found["none", 576, "prefill_ms"]
    assert time.ours == 20.0 and time.judged.verdict == "cannot tell" and "no GPU" in time.judged.why
