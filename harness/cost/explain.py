"""One line per cost column: what it is, and by whose convention."""

from __future__ import annotations

EXPLAIN: dict[str, str] = {
    "tokens_final": "visual tokens in the language model's last layer, read from the run",
    "tokens_mean": "visual tokens averaged over the language model's layers, read from the run",
    "macs_measured": "multiply-adds of matmuls, convolutions and attention (whole map, no causal half) "
    "that one image and one "
    "conversation really execute, all modules together; counted by torch's formulas and one for the "
    "fused CPU kernel",
    "macs_projected": "the same without running: the modules' operators on tensors that have shapes and no "
    "values",
    "macs_fvcore": "fvcore's independent count of the language model's layers, with what a pruner reads "
    "inside them",
    "flops_paper": "LiteLVLM's counter: 4nd^2 + 2n^2d + 3ndm summed over decoder layers, one per "
    "multiply-add, without lm_head, "
    "CLIP and SAM; n is each layer's measured length",
    "activation_paper": "LiteLVLM's storing activation in bytes (MiB or GiB in tables): n(2d + m) elements "
    "of 2 bytes, summed over decoder layers; a sum, not a peak",
    "activation_peak": "most bytes (MiB or GiB in tables) alive at once while the language model runs from "
    "embeddings to its last norm, beyond what was "
    "alive before and without weights; live storages on CPU and in a projection, the allocator on CUDA",
    "activation_peak_run": "the same over the whole pass, both encoders and the mask decoder included",
    "prefill_ms": "decoder layers over the whole sequence, with what a pruner computes between them; "
    "processor time of one thread on a CPU (wall time in ledgers of before schema 3), CUDA events on a GPU; "
    "median, p5 and p95",
    "compute_ms": "processor time of the whole pass in one thread (no CUDA here), to which neighbours on the "
    "machine add little; stages that no pruner changes are timed once for all rows of a round; image "
    "preparation left out; median, p5 and p95",
    "cuda_ms": "CUDA events around the whole pass, image preparation left out; median, p5 and p95",
    "speedup_prefill": "prefill of `none` over this row's, median of the ratios within rounds that ran both",
    "speedup_total": "the same for the whole pass (compute_ms or cuda_ms), the pruner's own time included",
    "note": "no speed-up: whole passes were not faster than those of `none` (one-sided Mann-Whitney test "
    "on samples, p >= 0.05)",
    "stage": "milliseconds of vision tower, text tower (if the pruner reads text), pruner (its signals and "
    "its choice), "
    "projector, prefill without the pruner, lm_head, [SEG] head, grounding encoder, mask decoder, and in "
    "all; processor time on a CPU",
}
