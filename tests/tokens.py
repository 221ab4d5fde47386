"""Random visual tokens for tests: those that a submission's conformance is tested on."""

from harness.bundle.tokens import ANSWER, BEFORE, BEHIND, WIDTH, make_layer_view, make_tokens, smooth

__all__ = ["ANSWER", "BEFORE", "BEHIND", "WIDTH", "make_layer_view", "make_tokens", "smooth"]
