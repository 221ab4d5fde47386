"""The doctor for a spec: machine and weights as the doctor sees them, and the splits against what the spec
expects."""

from __future__ import annotations

from collections.abc import Iterator

import backbones
from backbones import Finding
from harness import data
from harness.data.sample import Sample
from harness.doctor import examine_machine
from harness.plan import Plan
from harness.reproduce.hub import sha256
from harness.reproduce.needs import Needs
from harness.reproduce.spec import Spec, Split
from pruners.errors import UserError

MEND = "the numbers are of other data; take the release that the spec names"


def examine(spec: Spec, plan: Plan, needs: Needs, same: dict[str, bool]) -> Iterator[Finding]:
    """Findings of the machine, of the weights, and one per split; images are not decoded.

    Args:
        plan: of the spec, with the user's folders.
        needs: what of it is here; digests are compared where the spec knows them.
        same: filled by split: whether it is known to be the printed one, image by image or by all counts.
    """
    settings = backbones.one(plan.backbones[0])
    yield from examine_machine()
    yield from settings.examine()
    yield from _digests(needs)
    for dataset, split in spec.columns:
        name = f"{dataset}:{split}"
        try:
            samples = data.load_samples(dataset, split, plan.data, settings.medium)
        except UserError as error:
            yield Finding("wrong", str(error))
            continue
        yield from _split(name, samples, spec.plan.limit or None, spec.split(name), same)


def _digests(needs: Needs) -> Iterator[Finding]:
    """Another revision of a model has the same names and shapes, and other content."""
    for one in needs.weights:
        if one.place is None or one.sha256 is None:
            continue
        if (digest := sha256(one.place)) != one.sha256:
            told = f"'{one.place}' has the SHA256 {digest}, and the spec says {one.sha256}"
            yield Finding("wrong", f"{told}; it is another file than the numbers were made with")
        else:
            yield Finding("ok", f"{one.what}: the SHA256 that the spec says")


def _split(
    name: str, samples: list[Sample], limit: int | None, known: Split | None, same: dict[str, bool]
) -> Iterator[Finding]:
    samples = samples[:limit]
    spoken = [expression for sample in samples for expression in sample.expressions]
    refs = len({(sample.id, expression.ref_id) for sample, expression in _pairs(samples)})
    counts = {"images": len(samples), "refs": refs, "sentences": len(spoken)}
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    same[name] = False
    if known is None:
        yield Finding("note", f"{name}: {told}; the spec does not say what it expects")
        return
    wanted = {"images": known.images, "refs": known.refs, "sentences": known.sentences}
    others = {what: count for what, count in wanted.items() if count not in (None, counts[what])}
    if others:
        expected = ", ".join(f"{count} {what}" for what, count in others.items())
        yield Finding("wrong", f"{name} has {told}, and the spec expects {expected}; {MEND}")
        return
    if known.fingerprint is not None and (mark := data.fingerprint(samples)) != known.fingerprint:
        yield Finding(
            "wrong",
            f"{name} has the fingerprint {mark}, and the spec expects {known.fingerprint}; {MEND}",
        )
        return
    same[name] = True
    sure = "and fingerprint as the spec expects" if known.fingerprint else "as the spec expects"
    yield Finding("ok", f"{name}: {told} {sure}")


def _pairs(samples: list[Sample]) -> Iterator[tuple[Sample, data.Expression]]:
    return ((sample, expression) for sample in samples for expression in sample.expressions)
