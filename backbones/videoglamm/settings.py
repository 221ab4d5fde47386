"""VideoGLaMM as one writes it: which files, where budgets act, how masks are made, and what holds for every
model of the family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from backbones.registry import KINDS, POSITIONS, Family, Finding, Runtime, Settings, register
from backbones.videoglamm.budgets import CELLS, PLACEMENTS, check_placement, square_side
from pruners.base import Pruner
from pruners.errors import UserError, nearest

if TYPE_CHECKING:
    from backbones.base import Backbone
    from backbones.costs import Shapes

PATCHES = 576  # of a view
FRAMES = 16  # where neither the settings nor config.json say
MOST_FRAMES = 1024  # that may be seen; 4096 positions hold some 19, and more take hours
MASKED = 64  # frames of a clip that get masks, where none is at hand: of a window of Ref-DAVIS
BRANCHES = ("video", "framewise")
NO_WEIGHTS = (
    "The backbone videoglamm needs weights: give --checkpoint DIR or 'owner/name@revision', or use "
    "--backbones videoglamm-mini."
)


class VideoGlammFamily(Family):
    """CLIP and InternVideo2 see some frames of a clip, Phi-3 answers in its own words, SAM2 segments all
    frames.

    Budgets count tokens of one frame, one view. Methods that act inside the language model prune each
    frame by itself, too; the video encoder's tokens are never pruned.

    Attributes:
        placement: where a budget acts, one of `budgets.PLACEMENTS`.
        branch: how masks are made: "video" follows the first frame's through the clip, "framewise" segments
            every frame by itself; None for "video" of SAM2, and "framewise" of SAM, which follows nothing.
        frames: that the language model sees of a clip; None for what config.json says, else 16.
        placements: all that there are.
    """

    placement: str = "grid"
    branch: str | None = None
    frames: int | None = None

    signals = KINDS
    cuts_inside = True
    geometry = "centre-crop"
    medium: ClassVar[Literal["image", "video"]] = "video"
    protocols: ClassVar[Mapping[str, str]] = {
        "videoglamm": "every expression alone in one fixed wording, as officially",
        "each": "every expression alone, which is the same",
    }
    drawn: ClassVar[tuple[str, ...]] = ()
    positions = POSITIONS
    answers: ClassVar[tuple[str, ...]] = ("generated", "forced")
    costs_by_default = "projected"
    placements: ClassVar[tuple[str, ...]] = PLACEMENTS

    @property
    def facts(self) -> Mapping[str, str]:
        """Placement, frames and branch."""
        frames = "as config.json says" if self.frames is None else str(self.frames)
        branch = "as its segmenter can" if self.branch is None else self.branch
        return {"placement": self.placement, "frames": frames, "branch": branch}

    def sent(self, budget: int) -> int:
        """Tokens of a view that the language model gets of so many chosen ones.

        Raises:
            ImpossibleBudget: they make no square where one is asked.
        """
        if self.placement != "grid":
            return budget
        square_side(budget)
        return CELLS

    @property
    def pooled(self) -> int:  # type: ignore[override]
        """Patches of a cell, where a token of the language model is one."""
        return PATCHES // CELLS if self.placement == "grid" else 1

    def stated(self, pruner: Pruner, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
        """What the language model's layers see of a view, behind the pool of the placement grid.

        Raises:
            UserError: as `pruners.checks.stated`, or a budget that the placement cannot take.
        """
        from pruners import checks

        if pruner.stage != "tower":
            return checks.stated(pruner, budget, self.sent(patches), num_layers)
        return tuple(map(self.sent, checks.stated(pruner, budget, patches, num_layers)))

    def lacks(self, pruner: Pruner) -> str:
        """As in `Family`; in the placement grid a method cannot prune in front of the pool and behind it."""
        if self.placement == "grid" and pruner.stage == "both":
            return (
                f"{pruner.spec()} prunes in front of the language model and inside it, and in the placement "
                f"grid {self.name} pools between the two; give placement='direct' or 'postpool'."
            )
        return super().lacks(pruner)

    def check_budget(self, pruner: Pruner, budget: int, num_layers: int, patches: int = PATCHES) -> None:
        """Raise ImpossibleBudget unless a method can run at a budget in this placement.

        Args:
            patches: of a view, as pruners see it.
        """
        if pruner.stage == "tower":
            self.sent(budget)
        else:  # what the language model has of a view is what is pruned there
            pruner.check(budget, self.sent(patches), num_layers)


def called(name: str, placement: str) -> str:
    """What results are filed under: another placement is another backbone."""
    return name if placement == PLACEMENTS[0] else f"{name}-{placement}"


def check_choices(settings: Settings) -> None:
    """Raise UserError unless placement, branch and frames of some settings exist."""
    check_placement(settings.placement)  # type: ignore[attr-defined]
    branch, frames = settings.branch, settings.frames  # type: ignore[attr-defined]
    if branch not in (None, *BRANCHES):
        raise UserError(
            f"{settings.name} has no branch {branch!r}, there are {', '.join(BRANCHES)}."
            f"{nearest(branch, BRANCHES)}"
        )
    if frames is not None and not 1 <= frames <= MOST_FRAMES:
        raise UserError(
            f"{settings.name} cannot see {frames} frames of a clip; give frames=1 to {MOST_FRAMES}."
        )


def branch_of(settings: Settings, tracks: bool) -> str:
    """The branch of a model: the one that is asked for, else what its segmenter can.

    Args:
        tracks: whether the segmenter is SAM2.

    Raises:
        UserError: SAM is asked to follow an object.
    """
    asked: str | None = settings.branch  # type: ignore[attr-defined]
    if asked == "video" and not tracks:
        raise UserError(
            f"The segmenter of {settings.name} is SAM here, which follows nothing through a clip, so it has "
            f"no branch 'video'; give branch='framewise', or a checkpoint with SAM2."
        )
    return asked or BRANCHES[0 if tracks else 1]


@register
@dataclass(frozen=True)
class VideoGlamm(VideoGlammFamily, Settings):
    """VideoGLaMM from an official checkpoint.

    Attributes:
        checkpoint: its folder, or a hub name `owner/name@revision`.
        clip: CLIP's folder or hub name; by default the one that VideoGLaMM was trained with.
        video: InternVideo2's file, `InternVideo2-stage2_1b-224p-f4.pt`; by default the tensors are taken
            from the checkpoint.
        placement, branch, frames: as in `VideoGlammFamily`.
    """

    checkpoint: str | None = None
    clip: str | None = None
    video: str | None = None
    placement: str = "grid"
    branch: str | None = None
    frames: int | None = None
    name = "videoglamm"
    reference = "VideoGLaMM (Munasinghe et al., CVPR 2025), https://arxiv.org/abs/2411.04923"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)

    def load(self, how: Runtime) -> Backbone:
        """The checkpoint with its towers."""
        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        from backbones.videoglamm.loading import read_model

        return read_model(self, self.checkpoint, self.clip, self.video, how)

    def examine(self) -> Iterator[Finding]:
        """Key lists, shapes, configs and tokenizers; nothing is fetched."""
        from backbones.videoglamm.examine import examine_files

        return examine_files(self)

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """The checkpoint's model on the meta device; of its files only configurations are read."""
        if self.checkpoint is None:
            raise UserError(NO_WEIGHTS)
        from backbones.videoglamm.full_size import of_folder

        return of_folder(self, self.checkpoint, self.clip, attn)


@register
@dataclass(frozen=True)
class VideoGlamm3B8(VideoGlammFamily, Settings):
    """The numbers of the released VideoGLaMM without its weights, to project costs.

    Attributes:
        placement, branch, frames: as in `VideoGlammFamily`.
        masked: frames of the clip, all of which get masks.
    """

    placement: str = "grid"
    branch: str = "video"
    frames: int | None = FRAMES
    masked: int = MASKED
    name = "videoglamm-3.8b"
    reference = VideoGlamm.reference

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if self.masked < 1:
            raise UserError(f"{self.name} masks {self.masked} frames of a clip; give masked=1 or more.")

    def shapes(self, attn: str = "sdpa") -> Shapes:
        """Phi-3-mini, CLIP ViT-L/14-336, InternVideo2 1B and SAM2 Hiera-L on the meta device."""
        from backbones.videoglamm.full_size import on_meta
        from backbones.videoglamm.shapes import VideoGlammShapes
        from backbones.videoglamm.sizes import frame_count

        model = on_meta(attn)
        frames = frame_count({}, self.frames, model.video_tower.numbers)
        return VideoGlammShapes(model, self.placement, self.branch, frames, self.masked)

    def load(self, how: Runtime) -> Backbone:
        """Refuse: there are no weights."""
        raise UserError(
            "videoglamm-3.8b is numbers alone, for python -m harness cost; to run it, give "
            "--backbones \"videoglamm(checkpoint='DIR')\" with the released weights."
        )
