"""A plan: what a sweep is asked for, as texts. The command line, a settings file, the gate's subset,
`run.json` and Python say it with this one object, which goes to JSON and back.

Importing this module imports nothing heavy; making a plan does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.ranges import RANGES, check_numbers

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.registry import Family, Medium
    from harness.engine.ranks import Place
    from pruners.base import Pruner

LISTS = ("pruners", "budgets", "backbones", "plugins", "positions", "answers")
WORDS = ("positions", "answers")  # lists of words that a backbone's family knows
MEDIA = {"image": "images", "video": "clips"}
NULLABLE = ("limit", "data", "costs", "protocol")


@dataclass(frozen=True)
class Plan:
    """What to run. Every field reads as its option does; of the lists, one text with commas is taken as well.

    Attributes:
        pruners: names, globs, parameters, `all`: `litelvlm`, `fastv(layer=3)`, `vis*`.
        budgets: counts and shares of the visual tokens: `64`, `33%`, `0.33`.
        datasets: splits with commas between, or `all`.
        protocol: which expressions form a conversation, None for the backbone's official one.
        limit: images per split, 0 for all, None for the backbone's default.
        seed: source of all draws: of pruners that draw, and of the protocol.
        data: folder with the data, None for RefShapes alone.
        seeds: how many seeds a pruner that draws runs with.
        backbones: names with their settings: `glamm(checkpoint='DIR')`.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the GPU where one works, else the CPU.
        costs: "off", "projected" or "measured", None for the backbone's default.
        plugins: Python files that register what is named above.
        positions: position ids of what a pruner keeps: "compact" and "kept".
        answers: whether answers are "forced" or "generated"; empty for the backbone's default.

    Raises:
        UserError: a field is of another type or out of range.

    >>> Plan(pruners="none,litelvlm", budgets=(64, "33%")).budgets
    ('64', '33%')
    """

    pruners: tuple[str, ...] = ("all",)
    budgets: tuple[str, ...] = ("64", "128", "192")
    datasets: str = "all"
    protocol: str | None = None
    limit: int | None = None
    seed: int = 0
    data: str | None = None
    seeds: int = 3
    backbones: tuple[str, ...] = ("glamm-mini",)
    device: str = "auto"
    dtype: str = "float32"
    attn: str = "sdpa"
    image_backend: str = "pil"
    batch_size: int = 16
    costs: str | None = None
    plugins: tuple[str, ...] = ()
    positions: tuple[str, ...] = ("compact",)
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from backbones.device import check_device
        from backbones.registry import check_how
        from harness.engine.budgets import EXAMPLES, check_budget

        for name in (field.name for field in fields(self)):
            object.__setattr__(self, name, _normal(name, getattr(self, name)))
        if not self.budgets:
            raise _wrong(f"--budgets is empty; {EXAMPLES}")
        for text in self.budgets:
            check_budget(text)
        if not self.positions:
            raise _wrong("--positions is empty; give compact, kept or both")
        check_device(self.device)
        check_how(self.dtype, self.attn, self.image_backend)
        check_costs(self.costs, 1)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON has it: lists, texts, numbers."""
        return {name: list(value) if name in LISTS else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` gave; what is not there has its default.

        Raises:
            UserError: a name that is none of a plan's, or a value that cannot be.
        """
        from pruners.base import nearest

        names = [field.name for field in fields(cls)]
        for name in content:
            if name not in names:
                raise _wrong(f"A plan has no {name!r}; it has {', '.join(names)}.{nearest(name, names)}", "")
        return cls(**content)

    def chosen(self) -> tuple[Pruner, ...]:
        """The pruners that the plan's texts name.

        Raises:
            UserError: one is not known, or its parameters make no sense.
        """
        from pruners import parse

        return tuple(parse(",".join(self.pruners)))

    def pairs(self, medium: Medium = "image") -> list[tuple[str, str]]:
        """(data set, split) of every split.

        Args:
            medium: what `all` is all of.

        Raises:
            UserError: the data are not here, or lack one of them.
        """
        from harness import data

        return data.parse_datasets(self.datasets, self.data, medium)

    def pairs_of(self, family: Family) -> list[tuple[str, str]]:
        """The splits that one of the plan's backbones can look at.

        Raises:
            UserError: as `pairs`, or it can look at none of them.
        """
        from harness import data

        found = self.pairs(family.medium)
        fit = [pair for pair in found if data.medium_of(pair[0], self.data) == family.medium]
        if not fit:
            raise _wrong(
                f"{family.name} looks at {MEDIA[family.medium]}, and --datasets {self.datasets} holds none; "
                f"give --datasets all, or another backbone"
            )
        return fit

    def check_looked_at(self, families: Sequence[Family]) -> None:
        """Raise UserError if a split is named that none of the plan's backbones can look at."""
        left = [set(self.pairs(one.medium)) - set(self.pairs_of(one)) for one in families]
        if left and (nobodys := sorted(set.intersection(*left))):
            raise _wrong(
                f"None of {', '.join(one.name for one in families)} can look at "
                f"{', '.join(map(':'.join, nobodys))}; leave that out of --datasets, or add a backbone"
            )

    def on(self, backbone: str | Backbone) -> Plan:
        """The plan for one of its backbones, whose own defaults are filled in: images per split, protocol and
        answers.

        Args:
            backbone: one of the plan's texts, or a loaded one.
        """
        import backbones

        family: Family = backbones.one(backbone) if isinstance(backbone, str) else backbone
        name = backbone if isinstance(backbone, str) else backbone.name
        texts = [text for text in self.backbones if name in (text, text.partition("(")[0].strip())]
        return replace(
            self,
            backbones=tuple(texts[:1]) or (name,),
            limit=family.images_by_default if self.limit is None else self.limit,
            protocol=self.protocol or family.protocol,
            answers=self.answers or family.answers[:1],
        )

    def resolved(self) -> Plan:
        """The same for anyone, whatever folder he is in and whatever pruners and data sets come to be:
        without patterns, with whole paths, and on the device that "auto" stands for here."""
        from backbones.device import resolve

        return replace(
            self,
            device=resolve(self.device) if self.device == "auto" else self.device,
            pruners=tuple(pruner.spec() for pruner in self.chosen()),
            datasets=",".join(map(":".join, self.pairs())),
            data=self.data and str(Path(self.data).resolve()),
            backbones=tuple(_with_whole_paths(text) for text in self.backbones),
            plugins=tuple(str(Path(path).resolve()) for path in self.plugins),
        )

    def load(self, place: Place, tensor_parallel: int = 1) -> Backbone:
        """Load the plan's first backbone.

        Raises:
            UserError: it is not known, or what it needs is not here.
        """
        import backbones

        return backbones.load(
            self.backbones[0],
            device=place.device(self.device),
            dtype=self.dtype,
            attn=self.attn,
            batch_size=self.batch_size,
            image_backend=self.image_backend,
            tensor_parallel=tensor_parallel,
        )


def check_costs(asked: str | None, tensor_parallel: int) -> None:
    """See that such costs can be had at all.

    Raises:
        UserError: they cannot.
    """
    from backbones.registry import COSTS
    from pruners.errors import UserError, nearest

    if asked is not None and asked not in COSTS:
        raise UserError(f"There are no costs {asked!r}; there are {', '.join(COSTS)}.{nearest(asked, COSTS)}")
    if asked not in (None, "off") and tensor_parallel > 1:
        raise UserError("Costs are those of one process; give --costs off, or --tensor-parallel 1.")


def load_plugins(plans: Iterable[Plan]) -> None:
    """Import the plans' plugin files, each once.

    Raises:
        UserError: one is not here, or cannot be imported.
    """
    from pruners import load_plugin

    for path in dict.fromkeys(path for plan in plans for path in plan.plugins):
        load_plugin(path)


def _wrong(sentence: str, end: str = ".") -> Exception:
    from pruners.base import UserError

    return UserError(sentence + end)


def _normal(name: str, value: Any) -> Any:
    """A field's value in its own type.

    Raises:
        UserError: it is of another type or out of range.
    """
    if value is None and name in NULLABLE:
        return None
    if name in RANGES:
        check_numbers(**{name: value})
        return value
    if name in LISTS:
        parts = [value] if isinstance(value, str | Path) else _sequence(name, value)
        texts = [one for part in parts for one in _split(name, _text(name, part))]
        return tuple(dict.fromkeys(texts))
    if name == "datasets" and not isinstance(value, str):  # texts, or pairs of a data set and a split
        parts = [":".join(map(str, one)) if isinstance(one, tuple) else one for one in _sequence(name, value)]
        value = ",".join(_text(name, part) for part in parts)
    if name == "datasets":
        _parts(name, value)
    return _text(name, value)


def _split(name: str, text: str) -> list[str]:
    """The parts of a text between its commas."""
    if name == "plugins":
        return [text]
    if name in ("budgets", *WORDS):
        parts = _parts(name, text)
        return _known(name, parts) if name in WORDS else parts
    from pruners.registration import split_list

    return split_list(text, name.removesuffix("s"))


def _parts(name: str, text: str) -> list[str]:
    """The parts of a text between its commas; none of a text that holds nothing else.

    Raises:
        UserError: one is empty and another is not.
    """
    parts = [part.strip() for part in text.split(",")]
    if any(parts) and not all(parts):
        meant = ",".join(filter(None, parts))
        raise _wrong(
            f"{_option(name)} {text[:100]!r} has a comma too many; did you mean {meant[:100]!r}", "?"
        )
    return [part for part in parts if part]


def _known(name: str, parts: list[str]) -> list[str]:
    """The parts, if they are words for positions, or for answers."""
    from backbones.registry import ANSWERS, POSITIONS
    from pruners.errors import nearest

    words = POSITIONS if name == "positions" else ANSWERS
    for part in parts:
        if part not in words:
            sentence = f"{_option(name)} takes {' or '.join(words)}, not {part!r}"
            raise _wrong(sentence, f".{nearest(part, words)}")
    return parts


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(f"{_option(name)} takes texts, not {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    """A text; a pruner's is the one that names it, a whole number stands for itself in budgets."""
    from pruners.base import Pruner

    if isinstance(value, Pruner):
        return value.spec()
    if isinstance(value, str | Path) or (name == "budgets" and type(value) in (int, float)):
        return str(value)
    raise _wrong(f"{_option(name)} takes a text, not {value!r}")


def _option(name: str) -> str:
    """A field's name as the command line has it."""
    return "--plugin" if name == "plugins" else f"--{name.replace('_', '-')}"


def with_settings(texts: Iterable[str], **settings: Any) -> tuple[str, ...]:
    """Backbones' texts with what the options --checkpoint, --clip and --sam-dims say of those that have such
    parameters.

    Args:
        settings: a value for each, None where the option was not given.

    Raises:
        UserError: an option was given and no text names a backbone that has it.
    """
    import backbones

    given = {name: str(value) for name, value in settings.items() if value is not None}
    if not given:
        return tuple(texts)
    takers = [
        name
        for name in backbones.names()
        if given.keys() <= {one.name for one in fields(backbones.get(name))}
    ]
    found, used = [], False
    for text in texts:
        asked = backbones.one(text)
        if asked.name in takers:
            used = True
            text = replace(asked, **given).spec()
        found.append(text)
    if not used:
        named, which = ", ".join(_option(name) for name in given), " or ".join(takers)
        raise _wrong(
            f"{named} belongs to the backbone {which}, and --backbones names {', '.join(found)}; add {which}"
        )
    return tuple(found)


def _with_whole_paths(backbone: str) -> str:
    """A backbone's text in which files and folders that are here have their whole paths."""
    if "(" not in backbone:  # also of one that Python made and nobody registered
        return backbone
    import backbones

    asked = backbones.one(backbone)
    values = {field.name: getattr(asked, field.name) for field in fields(asked)}
    here = {name: value for name, value in values.items() if isinstance(value, str) and Path(value).exists()}
    return replace(asked, **{name: str(Path(value).resolve()) for name, value in here.items()}).spec()


def read_plans(path: Path) -> list[Plan]:
    """The plans of a recorded run, or a plan that somebody wrote down.

    Args:
        path: `run.json`, the run's folder, or a JSON file that is a plan.

    Raises:
        UserError: there is none, it is damaged, or an earlier version wrote it.
    """
    from harness.store.journal import read_whole
    from harness.store.run_folder import LOOSE, RUN
    from harness.store.sweeps import plans_of

    file = path / RUN if path.is_dir() else path
    content = read_whole(file, "restore it from a copy", LOOSE)
    if not content:
        raise _wrong(
            f"There is no {str(file)!r}; give --from the {RUN} of a run, e.g. results/runs/<id>/{RUN}"
        )
    if "cells" not in content:
        return [Plan.from_json(content)]
    if "sweeps" not in content:
        raise _wrong(
            f"{str(file)!r} was made by an earlier version, which wrote no plan down; give its options again"
        )
    return [Plan.from_json(plan) for plan in plans_of(content)]
