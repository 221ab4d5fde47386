"""Names, parameters, plugins, and the arithmetic that a method's paper fixes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_type_hints

import pytest
import torch

import pruners
from pruners import fields as written
from pruners import plugins
from pruners.base import (
    CLS,
    Cut,
    ImpossibleBudget,
    LayerView,
    Need,
    Pruner,
    ScorePruner,
    Selection,
    UserError,
    VisualTokens,
)
from pruners.errors import nearest, reason
from pruners.fastv import FastV
from pruners.oracle import Oracle
from pruners.prumerge import PruMerge, cls_scores, plus_budget
from pruners.random import Random
from pruners.registry import PRUNERS
from pruners.trim import Trim
from pruners.uniform import grid_cells
from pruners.visionzip import VisionZip
from tests.tokens import make_layer_view, make_tokens

HERE = Path(__file__).parent
METHODS = {
    *("litelvlm", "fastv", "visionzip", "prumerge", "vispruner", "trim"),
    *("divprune", "cdpruner", "hiprune", "holov", "fastervlm", "scope"),
}
CONTROLS = {"none", "random", "uniform", "downsample", "oracle"}


def test_board_is_complete() -> None:
    assert set(pruners.names()) >= METHODS | CONTROLS
    assert {name for name in METHODS | CONTROLS if pruners.get(name).kind == "control"} == CONTROLS
    assert pruners.names()[0] == "none"


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        (
            "litelvlm,litelvlm(context_share=0.25),fastv(layer=3)",
            ["litelvlm", "litelvlm(context_share=0.25)", "fastv(layer=3)"],
        ),
        ("vis*", ["visionzip", "vispruner"]),
        (" trim , trim ", ["trim"]),
        ("trim(similarity='cosine', keep='highest')", ["trim(keep='highest', similarity='cosine')"]),
        ("fastv(layer=2)", ["fastv"]),
        ("fastv(layer=3\n)", ["fastv(layer=3)"]),
        ("random,random(seed=0),random(seed=7)", ["random", "random(seed=0)", "random(seed=7)"]),
        ("all,litelvlm(combine='intersection')", [*pruners.names(), "litelvlm(combine='intersection')"]),
    ],
)
def test_parse(text: str, specs: list[str]) -> None:
    assert [pruner.spec() for pruner in pruners.parse(text)] == specs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("litelvm", "Did you mean 'litelvlm'"),
        ("fastv(layr=3)", "Did you mean 'layer'"),
        ("none(layer=3)", "it has no parameters"),
        ("fastv(3)", "give parameters by name"),
        ("fastv(layer=__import__('os'))", "Cannot read the pruner"),
        ("fastv(layer=3", "unclosed bracket"),
        ("fastv(layer=0)", "from 1 on"),
        ("fastv(budget='average')", "'final' or 'mean'"),
        ("litelvlm(combine='xor')", "'union' or 'intersection'"),
        ("litelvlm(context_share=2)", "between 0 and 1"),
        ("vispruner(ratio=-1)", "between 0 and 1"),
        ("litelvlm(combine='onion')", "Did you mean 'union'"),
        ("vispruner(ratio='half')", "ratio is a number, not 'half'"),
        ("prumerge(plus=1)", "plus is True or False, not 1"),
        ("fastv(layer=2.5)", "layer is a whole number, not 2.5"),
        ("visionzip(contextual='ten')", "a whole number or None"),
        ("fastv(layer=3).__class__()", "behind the bracket"),
        ("fastv(layer=3)#", "behind the bracket"),
        ("fastv(layer=2)(", "unclosed bracket"),
        ("fastv(layer=2, layer=3)", "layer is given twice"),
        ("fastv(**{'layer': 3})", "give parameters by name"),
        ("fastv(**{'layer': 3}, budget='mean')", "give parameters by name"),
        ("fastv(layer=" + "-" * 900 + "1)", "Cannot read the pruner"),
        ("fastv(layer=" + "-" * 20000 + "1)", "20014 letters long; 1000 is the most"),
        ("fastv(layer=" + "(" * 400 + "1" + ")" * 400 + ")", "Cannot read the pruner"),
        ("f" * 100_000, "100000 letters long"),
        ("litelvlm(context_share=" + "9" * 500 + ")", "context_share is a number"),
        ("litelvlm(context_share=1e999)", "context_share is a number, not inf"),
        ("litelvlm(combine='\\ud800')", "'union' or 'intersection'"),
        ("litelvlm(combine='),(')", "'union' or 'intersection'"),
        ("litelvlm(combine=')", "unclosed quote"),
        ("\ud800", "There is no pruner '\\ud800'"),
        ("litelvlm(\x00)", "Cannot read the pruner"),
        ("random(seed=-1)", "seed is a whole number from 0 to 4294967295, not -1"),
        ("random(seed=4294967296)", "seed is a whole number from 0 to 4294967295"),
        ("xyz*", "matches no pruner"),
        (" , ", "No pruner was given"),
    ],
)
def test_mistakes_are_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        pruners.parse(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_one_method_has_one_text() -> None:
    assert pruners.parse("vispruner(ratio=1)") == pruners.parse("vispruner(ratio=1.0)")
    assert [pruner.spec() for pruner in pruners.parse("vispruner(ratio=1),vispruner(ratio=1.0)")] == [
        "vispruner(ratio=1.0)"
    ]


def test_register_wants_a_named_pruner() -> None:
    with pytest.raises(UserError, match="subclass"):
        pruners.register(int)  # type: ignore[type-var]
    with pytest.raises(UserError, match="has no name"):

        @pruners.register
        class Nameless(ScorePruner):
            reference = "nowhere"

            def score(self, tokens: VisualTokens) -> torch.Tensor:
                return tokens.patches.sum(1)


def make(
    bases: tuple[type, ...] = (ScorePruner,),
    *,
    dataclass_: bool = True,
    types: object = None,
    **facts: object,
) -> type:
    """A pruner class that is right but for `facts`."""
    right = {
        "name": "mine",
        "reference": "here",
        "score": lambda self, tokens: tokens.patches[:, 0],
        "__module__": __name__,
    }
    made = type("Mine", bases, right | {"__annotations__": types or {}} | facts)
    return dataclass(frozen=True)(made) if dataclass_ else made


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(PRUNERS, "known", dict(PRUNERS.known))


@pytest.mark.parametrize(
    "name",
    ["", " mine", "a,b", "a(b)", "a[0]", "a*", "a?", "a@64", "a\nb", "a\tb", "\ud800", "all", "x" * 501],
)
def test_names_that_lists_and_tables_cannot_hold(name: str, registry: None) -> None:
    with pytest.raises(UserError, match="name") as caught:
        pruners.register(make(name=name))
    assert "test_pruners.py" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["mine", "my pruner", "é", "剪枝", "v1.0+b/2", "<b>"])
def test_names_that_can_be_written(name: str, registry: None) -> None:
    pruners.register(make(name=name))
    assert [pruner.spec() for pruner in pruners.parse(name)] == [name]


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"kind": "magic"}, "'method' or 'control'"),
        ({"stage": "layer"}, "leave it out, the functions tell"),
        ({"cuts": lambda *_: ()}, r"defines cuts and not cut\(tokens, count\)"),
        ({"cut": lambda *_: None}, r"defines cut and not cuts\(budget, patches, num_layers\)"),
        (
            {"bases": (Pruner,), "cut": lambda *_: None, "cuts": lambda *_: ()},
            "make it a subclass of LayerPruner",
        ),
        ({"needs": frozenset({Need("llm_hidden")})}, "which is there at a cut alone"),
        ({"bases": (FastV,), "needs": frozenset({Need("keys", -1)})}, "which a view has, and sees none"),
        ({"needs": frozenset({Need("llm_attention", 2)})}, "takes no layer"),
        ({"needs": frozenset({Need("cls_atention", -1)})}, "Did you mean 'cls_attention'"),
        ({"stochastic": 1}, "True or False"),
        ({"stochastic": True}, "give it a field seed: int = 0"),
        ({"stochastic": True, "types": {"seed": float}, "seed": 0.0}, "give it a field seed: int = 0"),
        ({"needs": {Need("keys", -1)}}, "declares its needs as set"),
        ({"needs": frozenset({"keys"})}, "which is no pruners.Need"),
        ({"needs": frozenset({Need("looks", -1)})}, "there are cls_attention"),
        ({"needs": frozenset({Need("keys")})}, "takes a layer: -1 is the last"),
        ({"needs": frozenset({Need("text_embeds", -1)})}, "takes no layer"),
        ({"types": {"power": float}}, "cannot be made with its defaults|gives power no default"),
        ({"types": {"power": float}, "power": "much"}, "cannot be made with its defaults"),
        ({"types": {"name": str}}, "makes name a parameter"),
        ({"__init__": lambda self, power=1.0: None}, "does not take exactly its fields"),
        ({"dataclass_": False}, "no frozen dataclass"),
        ({"dataclass_": False, "types": {"power": float}, "power": 1.0}, "no frozen dataclass"),
        ({"bases": (FastV,), "dataclass_": False, "types": {"more": int}, "more": 1}, "no frozen dataclass"),
        (
            {"bases": (pruners.LayerPruner,), "cut": lambda *_: None},
            "give it a field layer: int",
        ),
        ({"bases": (Pruner,), "select": Pruner.select}, "cannot be made with its defaults"),
    ],
)
def test_registration_looks_at_what_the_harness_reads(
    facts: dict[str, Any], says: str, registry: None
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        pruners.register(make(**facts))
    assert "'mine'" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert "mine" not in pruners.names()


def test_a_name_is_taken_once() -> None:
    with pytest.raises(UserError) as caught:

        @pruners.register
        @dataclass(frozen=True)
        class Other(ScorePruner):
            name = "trim"
            reference = "nowhere"

            def score(self, tokens: VisualTokens) -> torch.Tensor:
                return tokens.patches.sum(1)

    assert "trim.py:" in str(caught.value) and "test_pruners.py:" in str(caught.value)


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=HERE.parent,
        env={"PYTHONPATH": str(path)},
        check=False,
    )


def test_installed_plugin(sample_site: Path) -> None:
    """The sample package, really installed, is found through its entry point and conforms."""
    tests = (
        "import pruners, pytest, sys\n"
        "print(pruners.parse('bright*')[0].spec(), 'brightest' in pruners.names())\n"
        "sys.exit(pytest.main(['-q', 'tests/test_conformance.py', '--pruners', 'bright*']))"
    )
    conforms = run(tests, sample_site)
    assert conforms.stdout.splitlines()[:1] == ["brightest True"], conforms.stderr
    assert conforms.returncode == 0 and " passed" in conforms.stdout, conforms.stdout + conforms.stderr


def test_broken_installed_plugin(tmp_path: Path) -> None:
    """An entry point that cannot be imported is named, not skipped."""
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[groundprune.pruners]\nbad = no_such_module:Thing\n")
    done = run("import pruners\ntry: pruners.names()\nexcept pruners.UserError as e: print(e)", tmp_path)
    assert "'bad'" in done.stdout and "no_such_module" in done.stdout


def test_plugin_file(tmp_path: Path) -> None:
    good = tmp_path / "mine.py"
    good.write_text((HERE / "sample_plugin" / "sample_pruner.py").read_text().replace("brightest", "mine"))
    assert pruners.load_plugin(good) == ["mine"]
    assert pruners.parse("mine(power=1.0)")[0].select(make_tokens(), 5).tokens == 5
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "mine.py"
    twin.write_text(good.read_text())
    with pytest.raises(UserError, match="Two pruners are named 'mine'"):
        pruners.load_plugin(twin)
    del PRUNERS.known["mine"]
    half = good.read_text().replace("brightest", "half") + "\n1 / 0\n"
    for name, text, says in (
        ("none.py", None, "no plugin file"),
        ("one.py,two.py", None, "--plugin again for each further one"),
        ("empty.py", "x = 1", "registers no pruner"),
        ("broken.py", "1 +", "cannot be imported"),
        ("half.py", half, "ZeroDivisionError"),
        ("leaves.py", "raise SystemExit(0)", "ends the program with 0"),
        ("null.py", "x = '\0'", "cannot be imported"),
    ):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(UserError, match=says):
            pruners.load_plugin(path)
    assert "half" not in pruners.names() and "mine" not in pruners.names()


def test_a_plugins_source_is_what_ran(tmp_path: Path, registry: None) -> None:
    """Also after an edit, and whatever encoding it declares."""
    path = tmp_path / "mine.py"
    ran = "# coding: latin-1\n" + (HERE / "sample_plugin" / "sample_pruner.py").read_text().replace(
        "brightest", "h\xe9"
    )
    path.write_bytes(ran.encode("latin-1"))
    assert pruners.load_plugin(path) == ["h\xe9"]
    path.write_text("\n\n\nx = 1\n")
    cls = pruners.get("h\xe9")
    assert pruners.registry.plugin_source(cls.__module__) == ran
    assert pruners.registry.plugin_source(Pruner.__module__) is None
    assert pruners.registry.source_of(cls) == f"{path}:{ran.splitlines().index('@register') + 1}"


def test_published_splits() -> None:
    """The authors' dominant and contextual counts."""
    for budget, parts in ((64, (54, 10)), (128, (108, 20)), (192, (162, 30))):
        assert VisionZip().split(budget) == parts


def test_fastv_mean_budget() -> None:
    """Figures of the literature: a mean of 192 over 32 layers keeps 166, of 64 keeps 30; at K = 4 64 cannot
    be had."""
    method = FastV(budget="mean")
    assert method.cuts(192, 576, 32) == (Cut(2, 166),) and method.cuts(64, 576, 32) == (Cut(2, 30),)
    with pytest.raises(ImpossibleBudget, match="least mean is 73"):
        FastV(layer=4, budget="mean").check(64, 576, 32)
    with pytest.raises(ImpossibleBudget, match="outside the language model"):
        FastV(layer=5).check(64, 576, 5)


def test_no_method_cuts_outside_the_language_model() -> None:
    @dataclass(frozen=True)
    class First(FastV):
        name = "first"
        layer: int = 0

        def __post_init__(self) -> None:
            """Not refused here."""

    with pytest.raises(ImpossibleBudget, match="give layer 1 to 31"):
        First().check(64, 576, 32)


def test_fastv_keeps_the_most_attended() -> None:
    view = make_layer_view(576)
    kept = FastV().cut(view, 64).indices
    scores = view.attention("last")[:, 0, view.visual].mean(0)
    others = torch.ones(576, dtype=torch.bool).index_fill(0, kept, False)
    assert float(scores[kept].min()) >= float(scores[others].max())


def test_score_pruners_keep_the_top_scores() -> None:
    """Ties go to the lowest index, and the kept ones are the best."""

    @dataclass(frozen=True)
    class Steps(ScorePruner):
        name = "steps"
        reference = "here"

        def score(self, tokens: VisualTokens) -> torch.Tensor:
            return (torch.arange(len(tokens)) // 4 % 3).float()

    kept = Steps().select(make_tokens((8, 8)), 30).indices.tolist()
    best = [k for k in range(64) if k // 4 % 3 == 2]
    assert kept == sorted(best + [k for k in range(64) if k // 4 % 3 == 1][: 30 - len(best)])


def test_oracle_takes_the_referent_first() -> None:
    tokens = make_tokens()
    inside = (tokens.referent > 0).nonzero()[:, 0]
    kept = Oracle().select(tokens, len(inside) + 40).indices
    assert set(inside.tolist()) <= set(kept.tolist())
    few = Oracle().select(tokens, 5).indices
    assert float(tokens.referent[few].min()) >= float(tokens.referent[inside].sort(descending=True).values[4])


def test_random_depends_on_seed_and_sample() -> None:
    def draw(seed: int, sample: str) -> list[int]:
        return pruners.get("random")().with_seed(seed).select(make_tokens(sample=sample), 64).indices.tolist()

    assert draw(0, "a") == draw(0, "a") != draw(1, "a")
    assert draw(0, "a") != draw(0, "b")
    counts = torch.zeros(576)
    for k in range(300):
        counts[draw(0, str(k))] += 1
    assert float(counts.min()) > 8 and float(counts.max()) < 70  # mean 33, five standard deviations each way


@pytest.mark.parametrize("grid", [(24, 24), (8, 8), (7, 13), (1, 9)])
def test_cells_tile_the_grid(grid: tuple[int, int]) -> None:
    for budget in range(1, grid[0] * grid[1] + 1):
        cover = torch.zeros(grid, dtype=torch.int)
        found = grid_cells(grid, budget)
        for cell in found:
            cover[cell] += 1
        assert len(found) == budget and bool((cover == 1).all())


def test_downsample_pools_means() -> None:
    tokens = make_tokens((8, 8))
    pooled = pruners.get("downsample")().select(tokens, 16).gather(tokens)
    plane = tokens.patches.unflatten(0, (8, 8))
    assert pooled[5].allclose(plane[2:4, 2:4].flatten(0, 1).mean(0))


def test_prumerge_plus_budget_rule() -> None:
    """Outliers first, then the grid without them, cut at its end."""
    scores = torch.linspace(0, 0.1, 576)
    scores[[100, 7, 300]] = torch.tensor([3.0, 2.0, 1.0])
    kept = plus_budget(scores, 64).tolist()
    assert kept[:3] == [100, 7, 300] and kept[3:] == [k for k in range(0, 576, 9) if k not in kept[:3]][:61]


def test_gather_of_kept_patches() -> None:
    tokens = make_tokens()
    chosen = Selection(torch.tensor([CLS, 5, 3]))
    assert tokens.cls is not None
    assert chosen.gather(tokens).equal(torch.stack([tokens.cls, tokens.patches[5], tokens.patches[3]]))


def test_pruners_import_nothing_of_the_project() -> None:
    loaded = run(
        "import sys, pruners; print(*{name.split('.')[0] for name in sys.modules})", HERE.parent
    ).stdout.split()
    assert "torch" in loaded and not {"harness", "backbones", "transformers", "reports"} & set(loaded)


def test_pruner_files_stay_short() -> None:
    """A method can be read in one sitting."""
    for name in METHODS | CONTROLS:
        lines = (HERE.parent / "pruners" / f"{name}.py").read_text().splitlines()
        code = [line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]
        assert len(code) <= 100, name


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError):
        Pruner()  # type: ignore[abstract]


# --- bounds and ties: where one more or one less is another answer


def covered(share: torch.Tensor) -> VisualTokens:
    """Tokens whose referent covers these shares of them."""
    grid = (share.shape[0], share.shape[1])
    tokens = make_tokens(grid)
    return VisualTokens(tokens.patches, None, grid, tokens.num_heads, lambda need: share.flatten())


@pytest.mark.parametrize(("grid", "first"), [((3, 5), [7]), ((4, 4), [5, 6, 9, 10]), ((1, 4), [1, 2])])
def test_the_oracle_without_a_target_stays_near_the_middle(grid: tuple[int, int], first: list[int]) -> None:
    """From there on by distance, both directions counting the same."""
    nothing = covered(torch.zeros(grid))
    assert Oracle().select(nothing, len(first)).indices.tolist() == first
    rows, columns = grid
    middle = (rows - 1) / 2, (columns - 1) / 2
    far = [-((k // columns - middle[0]) ** 2) - (k % columns - middle[1]) ** 2 for k in range(rows * columns)]
    assert Oracle().score(nothing).tolist() == pytest.approx(far)


def test_the_oracle_ranks_by_coverage_and_then_by_distance() -> None:
    """In patches, to the nearest one that is touched."""
    share = torch.zeros(3, 4)
    share[0, 0], share[2, 3] = 0.25, 1.0
    assert Oracle().score(covered(share)).tolist() == [1.25, -1, -4, -4, -1, -2, -2, -1, -4, -4, -1, 2]


def test_a_budget_is_one_token_to_all_of_them() -> None:
    for pruner in pruners.parse("random,uniform,trim"):
        for good in (1, 16):
            pruner.check(good, 16, 4)
        for bad in (0, 17):
            with pytest.raises(ImpossibleBudget, match=f"cannot keep {bad} tokens.*give --budgets 1 to 16"):
                pruner.check(bad, 16, 4)


def test_visionzip_leaves_room_for_the_class_token_alone() -> None:
    for contextual in (0, 9):
        VisionZip(contextual=contextual).check(10, 16, 4)
    tokens = make_tokens((8, 8))
    alone = VisionZip(contextual=9).select(tokens, 10)
    assert alone.indices[0] == CLS and alone.tokens == 10 and bool((alone.indices[1:] >= 0).all())
    for contextual in (-1, 10):
        with pytest.raises(ImpossibleBudget, match="contextual=0 to 9"):
            VisionZip(contextual=contextual).check(10, 16, 4)
    for budget in (0, 17):
        with pytest.raises(ImpossibleBudget, match="cannot keep"):
            VisionZip().check(budget, 16, 4)


def test_visionzip_merges_into_targets_at_an_even_step() -> None:
    """A target stands for itself and the mean of the others that are most like it."""
    tokens = make_tokens((4, 4))
    rest = torch.tensor([0, 2, 3, 5, 8, 9, 12, 13])
    features, targets, assign = VisionZip().merge(tokens, rest, 3)
    assert targets.tolist() == [0, 2, 4]  # eight by three
    keys = tokens.keys(-2)[1:].unflatten(1, (tokens.num_heads, -1)).mean(1)[rest]
    members = [k for k in range(8) if k not in (0, 2, 4)]
    like = torch.nn.functional.cosine_similarity(keys[members][:, None], keys[targets][None], dim=2)
    assert assign.tolist() == like.argmax(1).tolist()
    for number, target in enumerate(targets.tolist()):
        mine = [int(rest[k]) for k, to in zip(members, assign.tolist(), strict=True) if to == number]
        mean = tokens.patches[mine].mean(0) if mine else 0
        assert features[number].allclose(tokens.patches[rest[target]] + mean)
    few = VisionZip().merge(tokens, rest[:2], 2)  # fewer than a step: every one is a target
    assert few[1].tolist() == [0, 1] and few[0].equal(tokens.patches[rest[:2]])


def test_fastvs_cut_stands_inside_the_language_model() -> None:
    for layer in (1, 4):
        FastV(layer=layer).check(64, 576, 5)
    with pytest.raises(
        ImpossibleBudget, match="outside the language model, which has 5 layers; give layer 1 to 4"
    ):
        FastV(layer=5).check(64, 576, 5)
    with pytest.raises(ImpossibleBudget, match="cannot keep 0 tokens"):
        FastV().check(0, 576, 5)


def test_fastvs_least_mean_is_one_token_behind_the_cut() -> None:
    """One layer of four sees all 16: 1 + 16/4 tokens cannot be had by keeping none."""
    mean = FastV(layer=1, budget="mean")
    assert mean.cuts(5, 16, 4) == (Cut(1, 1),) and mean.cuts(16, 16, 4) == (Cut(1, 16),)
    mean.check(5, 16, 4)
    mean.check(16, 16, 4)
    with pytest.raises(ImpossibleBudget, match="1 of 4 layers see all 16, so the least mean is 5"):
        mean.check(4, 16, 4)
    assert FastV(layer=3).schedule(2, 16, 4) == (16, 16, 16, 2)


def test_fastv_reads_the_last_row_averaged_over_heads() -> None:
    rows = torch.tensor([[[0.5, 0.1, 0.0, 0.3, 0.9]], [[0.5, 0.2, 0.4, 0.0, 0.9]]])
    plain = make_layer_view(3)
    places = torch.arange(5)
    seen = LayerView(2, 0, plain.indices, places, 1, plain.width, rows.dtype, lambda query: rows, "", asked=5)
    assert FastV().cut(seen, 1).indices.tolist() == [1]
    assert FastV().cut(seen, 2).indices.tolist() == [0, 1]  # 0.15 and 0.2 and 0.15: the first among equals


@pytest.mark.parametrize(
    "name", sorted(METHODS | CONTROLS | {"dart", "feather", "nuwa", "pyramiddrop", "sparsevlm"})
)
def test_parameters_of_another_type_are_refused(name: str) -> None:
    """Of every method, also where it looks at ranges itself."""
    cls = pruners.get(name)
    hints = get_type_hints(cls)
    for field in fields(cls):
        if "tuple" not in str(hints[field.name]):  # the methods that have some look at them
            with pytest.raises(UserError, match=rf"^{name}: {field.name} "):
                cls(**{field.name: object()})
        if hints[field.name] is int:
            with pytest.raises(UserError, match=rf"^{name}: {field.name} is a whole number, not 2\.5"):
                cls(**{field.name: 2.5})


def test_positions_are_asked_for_where_a_method_has_none_of_its_own() -> None:
    plain, own = pruners.get("trim")(), FastV()
    assert (plain.own_positions, plain.positions_for("compact"), plain.positions_for("kept")) == (
        False,
        "compact",
        "kept",
    )
    assert (own.own_positions, own.positions_for("compact")) == (True, "kept")


def test_a_sentence_ends_once() -> None:
    """Whatever the words that it quotes last end with."""
    said = {
        "": "",
        "It is gone": "It is gone.",
        "It is gone.": "It is gone.",
        "It is gone..": "It is gone.",
        "It is gone...": "It is gone...",
        "Is it?": "Is it?",
        "So!": "So!",
        " two\n  lines ": "two lines.",
    }
    assert {text: str(UserError(text)) for text in said} == said


def test_reasons_fit_into_a_sentence() -> None:
    assert reason(OSError(2, "No such file")) == "No such file"
    assert reason(OSError("odd")) == "OSError: odd" and reason(KeyError()) == "KeyError"
    assert reason(SystemExit()) == "it ends the program" and reason(SystemExit(0)).endswith("with 0")
    assert reason(SyntaxError("bad")) == "bad"
    assert reason(UserError("One.")) == "One"
    assert reason(ValueError(f"{object()} is none")) == "ValueError: <object> is none"
    longest = "x" * (300 - len("ValueError: "))
    assert reason(ValueError(longest)).endswith("x") and len(reason(ValueError(longest + "x"))) == 303


def test_the_nearest_word_is_near() -> None:
    """Half of its letters in order, and more of a suffix, whose dot says nothing."""
    assert nearest("colour", ["color", "blue"]) == " Did you mean 'color'?"
    assert nearest("abcd", ["abxy"]) == " Did you mean 'abxy'?" and nearest("abcd", ["axyz"]) == ""
    assert nearest(".jpge", [".png", ".jpeg"]) == " Did you mean '.jpeg'?"
    assert nearest(".xls", [".tex", ".csv"]) == ""
    assert nearest(".abcd", [".abxy"]) == "" and nearest(".abc", [".abd"]) == " Did you mean '.abd'?"


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (sys.float_info.max, float, True),
        (-sys.float_info.max, float, True),
        (10**308, float, True),
        (10**309, float, False),
        (float("inf"), float, False),
        (float("nan"), float, False),
        (True, float, False),
        (1, int, True),
        (True, int, False),
        (1, bool, False),
        (None, int | None, True),
        (1.0, int | None, False),
        ("a", Literal["a", 1], True),
        (True, Literal["a", 1], False),
        ("b", Literal["a", 1], False),
        ((1, 2), tuple[int, ...], True),
    ],
    ids=str,
)
def test_what_fits_an_annotation(value: object, hint: object, does: bool) -> None:
    assert written.fits(value, hint) is does


def test_what_is_wanted_in_words() -> None:
    assert written.wanted(float | None) == "a number or None"
    assert written.wanted(Literal["a", 1]) == "'a' or 1"
    assert written.wanted(tuple[int, ...]) == "tuple[int, ...]"


def test_an_installed_package_may_bring_a_module_that_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry point loads what is no pruner class, and is passed by."""
    mine = make()
    points = [SimpleNamespace(load=lambda thing=thing: thing) for thing in (pruners, int, print, mine)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "mine" else [])
    assert list(plugins.installed("mine", Pruner)) == [mine]
    assert list(plugins.installed("other", Pruner)) == []


def test_nothing_is_left_of_a_plugin_that_fails(
    tmp_path: Path, registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what a module that it imports registered, nor what it registered of a kind that is new."""
    monkeypatch.setattr(plugins, "_kinds", list(plugins._kinds))
    monkeypatch.syspath_prepend(tmp_path)
    holder = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "holder_of_a_kind", holder)
    sample = (HERE / "sample_plugin" / "sample_pruner.py").read_text()
    (tmp_path / "helper_of_a_plugin.py").write_text(sample.replace("brightest", "helped"))
    (tmp_path / "fails.py").write_text(
        "import helper_of_a_plugin, holder_of_a_kind\n"
        "from pruners.plugins import Names\n"
        "class Kind(Names):\n"
        "    def register(self, cls): ...\n"
        "class Thing: ...\n"
        "holder_of_a_kind.kind = Kind()\n"
        "holder_of_a_kind.kind.known['thing'] = Thing\n"
        "1 / 0\n"
    )
    before = pruners.names()
    with pytest.raises(UserError, match="ZeroDivisionError"):
        pruners.load_plugin(tmp_path / "fails.py")
    assert "helper_of_a_plugin" in sys.modules and "helped" not in pruners.names() == before
    assert holder.kind.known == {}
    monkeypatch.delitem(sys.modules, "helper_of_a_plugin")


def test_draws_follow_the_digest_of_seed_and_sample() -> None:
    """The same in every process and version: half of the first eight bytes seed the generator."""
    seed = int(hashlib.sha256(b"5:some image").hexdigest()[:16], 16) // 2
    drawn = torch.rand(64, generator=torch.Generator().manual_seed(seed))
    found = Random(seed=5).score(make_tokens((8, 8), sample="some image"))
    assert found.equal(drawn)


@pytest.mark.parametrize("keep", ["lowest", "highest"])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_trim_ranks_by_the_similarity_that_is_named(keep: Any, similarity: Any) -> None:
    tokens = make_tokens((4, 4), texts=3)
    patches, text = tokens.projected_patches, tokens.text_embeds
    like = text @ patches.T
    if similarity == "cosine":
        like = torch.nn.functional.cosine_similarity(text[:, None], patches[None], dim=2)
    expected = (like if keep == "highest" else -like).softmax(1).mean(0)
    assert Trim(keep=keep, similarity=similarity).shares(tokens).allclose(expected)


def test_prumerge_folds_all_others_in_where_they_are_few() -> None:
    """Fewer than 32: every other one, and never the token itself again."""
    tokens = make_tokens((3, 3))
    chosen, scores = PruMerge().select(tokens, 4), cls_scores(tokens)
    features = chosen.gather(tokens)
    weighted = scores[:, None] * tokens.patches
    for feature, patch in zip(features, chosen.indices.tolist()[:3], strict=False):
        assert feature.allclose(tokens.patches[patch] + weighted.sum(0) - weighted[patch])
    left = [k for k in range(9) if k not in chosen.indices.tolist()]
    assert features[3].allclose(weighted[left].sum(0))
