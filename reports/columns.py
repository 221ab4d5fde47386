"""What each column means, in the words that the report prints below its tables and `docs/columns.md`
repeats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness import metrics
from harness.metrics import Metric

# what a table of images ranks by and prints beside, where nothing else is asked for
SCORE, BESIDE = ("ciou", ("giou",))
# and of clips
RANKED = {"image": SCORE, "video": "j&f"}
THINGS = {"image": ("image", "images"), "video": ("clip", "clips")}
SAID, LOGPROB = "[SEG] said %", "log p([SEG])"
LLM, SILENT = "LLM tokens", "without [SEG]"


def meanings(metric: Metric, beside: Sequence[Metric]) -> dict[str, str]:
    """What each column of a table says, by its name.

    Args:
        metric: what the table ranks by.
        beside: the other metrics that it prints.
    """
    thing, things = THINGS[metric.medium]
    return {
        "method": "pruner as given on the command line; parameters that are not named have their default. "
        "Methods stand before "
        "controls, each by " + ("falling" if metric.higher_is_better else "rising") + " Avg.",
        "data set and split": f"{metric.title} in {metric.unit_word}: {metric.meaning}, so "
        f"{metric.weighs}. Of a pruner that draws, the mean over its seeds.",
        "Avg.": "mean of the columns to its left, each with the same weight; '-' if the row lacks one. "
        "Behind '±', where a pruner "
        "draws: half the distance between its best and its worst seed (not an interval).",
        "Rel. %": "Avg. as a share of the upper bound's Avg.",
        "95 %": f"interval of Avg. from a bootstrap that draws {things} again, the same ones for all rows "
        f"and for splits that share {things}, corrected for few {things}; '-' where a split has fewer than "
        f"five {things}.",
        "not apart from": "the row cannot be told apart from `random` of its budget, or from the best row "
        "of its budget that does "
        "not see the truth: the difference of the two Avg., drawn in pairs, is not significant at a "
        "false-discovery rate of 5 % over "
        f"the table; '?' where {things} are too few to say. The best row is chosen on the same {things}, "
        "which favours it a little.",
        "vs baseline": "Avg. minus the Avg. of the pruner named with --against at the same budget, with "
        "the 95 % interval of the "
        "difference; '*' marks what is significant at a false-discovery rate of 5 % over the table.",
        **{
            one.title: f"{one.meaning} in {one.unit_word}, mean of the columns{_of(one)}: {one.weighs}."
            for one in beside
        },
        SAID: "percent of the expressions whose answer, written by the model, holds a [SEG]; the mask of the "
        "others is empty and counted. In runs with generated answers alone.",
        LOGPROB: "natural logarithm of the probability that the model gives [SEG] at its place, behind all "
        "that stands before it in the answer, forced or its own; mean over the expressions that have one. It "
        "tells of forced answers what pruning does to a model that need not say [SEG].",
        "tokens": "visual tokens in the last layer of the language model, measured; of a clip per frame that "
        "the model sees, as budgets are.",
        LLM: "tokens that the first layer of the language model sees, text and all windows of a clip "
        "included, measured, mean over expressions. Where a pooling stands behind the pruner it is the same "
        "at every budget.",
        SILENT: "answers, of all seeds, in which the model did not write [SEG]; their masks are empty in "
        "every frame, and counted.",
        "mean over layers": "visual tokens that the layers of the language model process on average, "
        "measured; it exceeds tokens for "
        "methods that prune inside the model.",
        "per layer": "visual tokens that each layer of the language model processes, `576 x 2, 64 x 30`, of "
        "methods that prune inside it: stated beforehand, and compared with what ran.",
        "on rounding": "what hangs on the last bits: percent of the kept tokens that would be others, and "
        "points by which an "
        "expression's IoU moves then (mean of the absolute change), if another attention kernel or device "
        "rounded the vision "
        f"tower's states; from one {thing} in eight, at most eight of a split."
        + (" The intervals and the tests count it as noise." if metric.of_iou else ""),
    }


def _of(one: Metric) -> str:
    """Which columns a metric of some data sets alone is the mean of."""
    return f" of {', '.join(one.datasets)}" if one.datasets else ""


OF_CLIPS = (LLM, SILENT)  # columns that stand in tables of clips alone
COLUMNS = {
    name: text
    for name, text in meanings(metrics.get(SCORE), [metrics.get(name) for name in BESIDE]).items()
    if name not in OF_CLIPS
}


def explain(names: Iterable[str], known: dict[str, str]) -> list[str]:
    """One line per column of a table."""
    return [f"{name}: {known[name]}" for name in names]


def page() -> str:
    """The text of `docs/columns.md`."""
    lines = [f"- **{name}**: {text}" for name, text in COLUMNS.items()]
    score = metrics.get(SCORE)
    bound = [one for one in metrics.of_medium(score.medium) if one.datasets and one.shown]
    known = meanings(score, bound)
    clip = metrics.get(RANKED["video"])
    others = [one for one in metrics.of_medium("video") if one.name != clip.name]
    of_clips = meanings(clip, others)
    return "\n".join(
        [
            "# What each column means",
            "",
            *lines,
            "",
            "In tables with a data set that has metrics of its own:",
            "",
            *(f"- **{one.title}**: {known[one.title]}" for one in bound),
            "",
            "In tables of clips, where what is drawn again is the clip:",
            "",
            *(
                f"- **{name}**: {of_clips[name]}"
                for name in ("data set and split", *(one.title for one in others), *OF_CLIPS)
            ),
            "",
            "Costs have a page of their own: [costs](costs.md).",
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
