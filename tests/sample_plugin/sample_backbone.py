"""The smallest backbone: colours and edges in a grid without class token, masks of the named colour.

It has no language model. Instead of one, the tokens that look most like the named colour are averaged, and
the mask is every pixel that looks like the average: what a pruner keeps decides what is found.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from backbones import Family, Settings, register
from backbones.base import Backbone, Encoding, Grounded, Pixels
from pruners import UserError, View, checks

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
COLOURS |= {"purple": (1, 0, 1), "orange": (1, 0.5, 0)}


class SampleFamily(Family):
    """Answers what has to do with colour; there are no layers to look into or to cut between."""

    signals = frozenset({"projected_patches", "text_embeds", "referent"})


class SampleBackbone(SampleFamily, Backbone):
    """Six rows and ten columns of patches over the whole image."""

    name, attn, grid, num_layers = "sample", "none", (6, 10), 1

    def __init__(self, sharpness, how):
        self.sharpness, self.device, self.dtype = sharpness, how.device, how.dtype
        self.fingerprint = hashlib.sha256(Path(__file__).read_bytes() + str(sharpness).encode()).hexdigest()[
            :16
        ]

    def preprocess(self, image):
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        edges = F.pad(pixels.diff(dim=1).abs().mean(0, keepdim=True), (0, 0, 0, 1))
        colours = pixels - pixels.mean(0)  # grey is nothing
        vision = F.adaptive_avg_pool2d(torch.cat([colours, edges]), self.grid)
        return Pixels(vision, colours, image.shape[:2], image.shape[:2])

    def encode_pixels(self, pixels):
        kind = getattr(torch, self.dtype)
        given = [(one, *(part.to(self.device, kind) for part in one[:2])) for one in pixels]
        return [Encoding((low.flatten(1).T.contiguous(),), high, *one[2:]) for one, low, high in given]

    def views(self, encoding, turns, sample, masks=None):
        (patches,) = encoding.hidden_states

        def answer(need):
            if need.kind == "text_embeds":
                return torch.stack([self.colour(turn.question).to(patches) for turn in turns])
            if need.kind == "referent" and masks is None:
                raise UserError(
                    "This pruner sees the truth, and no truth masks were given; leave it out here."
                )
            return self.patch_shares(masks) if need.kind == "referent" else patches[:, :3]

        return [View(patches, None, self.grid, 1, answer, sample)]

    def colour(self, question):
        named = [COLOURS[word] for word in question.lower().split() if word in COLOURS] or [(0, 0, 0)]
        colour = torch.tensor(named[0], dtype=torch.float32)
        return F.normalize(colour - colour.mean(), dim=0)

    def ground_rows(self, rows, share=True):
        for row in rows:
            (view,) = self.views(row.encoding, row.turns, "")
            tokens = row.selection.gather(view)[:, :3]
            checks.lengths(row.pruner, row.budget, len(view), (len(tokens),))
            logits = [self.mask(tokens, row.encoding.embedding, turn.question) for turn in row.turns]
            yield Grounded(torch.stack(logits), (len(tokens),), row.selection.indices)

    def mask(self, tokens, pixels, question):
        weights = (self.sharpness * tokens @ self.colour(question).to(tokens)).softmax(0)
        found = F.normalize(weights @ tokens, dim=0)
        return torch.einsum("c,chw->hw", found, pixels).float() - 0.2


@register
@dataclass(frozen=True)
class Sample(SampleFamily, Settings):
    """Masks by colour, without any weights."""

    sharpness: float = 50.0
    name = "sample"
    reference = "tests/sample_plugin"

    def load(self, how):
        return SampleBackbone(self.sharpness, how)
