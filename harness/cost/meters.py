"""Meters: something that runs on while a forward pass runs, read whenever a stage begins or ends.

`forward` of a backbone enters `stage(name)` around each part. What an inner stage takes is its own and not
the outer's.
"""

from __future__ import annotations

import re
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

from pruners.base import UserError

aten = torch.ops.aten


# -- multiply-adds


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """Both products of attention over (B, H, L, head width) shapes, the whole map also where it is causal."""
    return int(sdpa_flop_count(query, key, value))


def _flash(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """flash-attn's own operator has heads in the third place: (B, L, H, head width)."""
    return int(sdpa_flop_count(*((b, h, length, width) for b, length, h, width in (query, key, value))))


def _matrix_vector(matrix: Any, vector: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * int(matrix[0]) * int(matrix[1])


def _added_matrix_vector(
    bias: Any, matrix: Any, vector: Any, *rest: Any, out_shape: Any = None, **named: Any
) -> int:
    return 2 * int(matrix[0]) * int(matrix[1])


def _dot(one: Any, other: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return 2 * int(one[0])


def _distances(one: Any, other: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    """All pairs of rows (..., n, d) and (..., m, d)."""
    return 2 * prod(one[:-1]) * int(other[-2]) * int(one[-1])


# operators that torch's counter takes for free
FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten.mv: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten.dot: _dot,
    aten.vdot: _dot,
    aten._cdist_forward: _distances,
}


def _formulas() -> dict[Any, Callable[..., int]]:
    found = dict(FORMULAS)
    if hasattr(torch.ops.flash_attn, "_flash_attn_forward"):
        found[torch.ops.flash_attn._flash_attn_forward] = _flash
    return found


# what multiplies matrices, by name; an operator that only chooses a kernel or prepares a mask for one does
# not
MULTIPLIES = re.compile(
    r"attention|(^|_)attn|(^|_|add|b)mm(_|$)|matmul|linear(?!1d)|conv(?!ert)|einsum|dot(_|$)|(^|_|add)mv(_|$)|gemm|addr_?$"
    r"|^ger$|outer|(^|_)(gru|lstm|rnn)(_|$)|c?dist(_|$)|linalg_|(^|_)(svd|qr|cholesky|solve)(_|$)|(^|_)fft_|transformer|multi_head"
)
FREE = (
    "_upsample_",
    "upsample_",
    "linalg_vector_norm",
    "linalg_norm",
    "linalg__powsum",
    "linalg_cross",
    "linalg_diagonal",
)
OWN = (
    "aten",
    "prim",
    "prims",
    "_c10d_functional",
    "c10d",
    "profiler",
    "debugprims",
    "rngprims",
    "inductor_prims",
)


def multiplies(namespace: str, name: str) -> bool:
    """Whether an operator may multiply matrices: by its name, or because another package brought it."""
    return namespace not in OWN or bool(MULTIPLIES.search(name.lower()) and not name.startswith(FREE))


def _refuse(names: Iterable[str]) -> None:
    """Raise UserError about operators that would be counted as nothing."""
    if found := sorted(set(names)):
        raise UserError(
            f"The operator {', '.join(found)} has no formula for its multiply-adds, and would be counted "
            f"as none; "
            "give --attn sdpa or eager, or --costs off."
        )


class Counter(TorchDispatchMode):
    """Operations by torch's formulas and the missing ones, two per multiply-add; as torch's own counter does,
    without its books on every module, which take longer than the pass. Never time what runs under it.

    Raises:
        UserError: an operator that multiplies matrices has no formula.
    """

    def __init__(self) -> None:
        super().__init__()
        added = {operator: shape_wrapper(formula) for operator, formula in _formulas().items()}
        self._formulas: dict[Any, Callable[..., int]] = {**flop_registry, **added}
        # operators that nothing takes apart; of this one, which fake tensors ask, torch knows no kernels
        self._whole: set[Any] = {torch.ops.prim.device.default}
        self._total = 0

    def get_total_flops(self) -> int:
        """Operations until now."""
        return self._total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator: counted by its formula, or taken apart, or as it is if it multiplies nothing."""
        kwargs = kwargs or {}
        formula = self._formulas.get(func._overloadpacket)
        if func not in self._whole:
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
            if formula is None and multiplies(func.namespace, func._opname):
                _refuse([str(func._overloadpacket)])
            self._whole.add(func)
        made = func(*args, **kwargs)
        if formula is not None:
            self._total += formula(*args, **kwargs, out_val=made)
        return made


def counter() -> Counter:
    """A new counter."""
    return Counter()


class Fused(TorchFunctionMode):
    """Attention of tensors that have no values through the fused CPU kernel, as tensors with values get it;
    torch would take it apart there and make whole maps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, attention by the fused kernel where that kernel can."""
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention or not _fits(args, named):
            return func(*args, **named)
        mask, scale, causal = (named.get(name) for name in ("attn_mask", "scale", "is_causal"))
        return aten._scaled_dot_product_flash_attention_for_cpu(
            *args, 0.0, bool(causal), attn_mask=mask, scale=scale
        )[0]


def _fits(args: Any, named: dict[str, Any]) -> bool:
    """Whether attention as it is called is what the fused CPU kernel does, and has no values."""
    known = named.keys() <= {"attn_mask", "scale", "is_causal", "dropout_p", "enable_gqa"}
    plain = known and len(args) == 3 and not named.get("dropout_p") and not named.get("enable_gqa")
    return plain and args[0].is_meta and len({(one.ndim, one.shape[-1]) for one in args}) == 1


# -- what is read at the edges of stages


class _Stages(ABC):
    """Something that is marked where named stages begin and end; they nest."""

    def __init__(self) -> None:
        self._open: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Everything inside belongs to `name`, unless it is inside another stage in there."""
        self._mark()
        self._open.append(name)
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    @abstractmethod
    def _mark(self) -> None: ...


class Ledger(_Stages):
    """How much of a running quantity each stage took.

    Args:
        read: the quantity now.
        minus: difference of two readings, later first.
    """

    def __init__(self, read: Callable[[], Any], minus: Callable[[Any, Any], float]) -> None:
        self._read, self._minus = read, minus
        super().__init__()
        self._marks: list[tuple[str | None, Any]] = []

    def _mark(self) -> None:
        self._marks.append(("/".join(self._open) or None, self._read()))

    def spent(self) -> dict[str, float]:
        """Share of every stage; an inner stage is `outer/inner`."""
        found: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                found[name] = found.get(name, 0) + self._minus(after, before)
        return found

    def whole(self) -> float:
        """From the first stage's beginning to the last one's end."""
        return self._minus(self._marks[-1][1], self._marks[0][1])


def mac_ledger(counting: Counter) -> Ledger:
    """Multiply-adds by stage."""
    return Ledger(counting.get_total_flops, lambda after, before: (after - before) // 2)


class Clock(Ledger):
    """Milliseconds by stage: of events on a GPU, with one synchronisation when they are read; elsewhere of
    processor time, all threads of the process together, to which neighbours on the machine add nothing.

    Args:
        device: whose current stream gets the events, whichever device is current.
    """

    def __init__(self, device: str) -> None:
        self._device, self._cuda = device, device.startswith("cuda")
        if self._cuda:
            super().__init__(partial(_event, device), lambda after, before: before.elapsed_time(after))
        else:
            super().__init__(time.process_time, lambda after, before: 1000 * (after - before))

    def finish(self) -> None:
        """Wait until the device is done."""
        if self._cuda:
            torch.cuda.synchronize(self._device)


def _event(device: str) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    # without a stream it would be that of the current device, which does not wait for another one's kernels
    event.record(torch.cuda.current_stream(device))
    return event


# -- bytes alive


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in what an operator takes or makes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))


class LiveStorages(TorchDispatchMode):
    """Bytes of storages that operators made under this mode and that are still alive, and their peak.

    Weights, inputs and what a kernel allocates below the dispatcher are not in it. Works on the CPU, the meta
    device and fake tensors alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and note what it made; what it was given and does not know is somebody else's."""
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._known:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def read(self) -> tuple[int, int]:
        """Bytes alive now, and the peak since the last reading."""
        peak, self.peak = self.peak, self.live
        return self.live, peak


class DeviceMemory:
    """The same two readings of CUDA's allocator, without what was resident when it was made (the weights)."""

    def __init__(self, device: str) -> None:
        self._device = device
        torch.cuda.synchronize(device)
        self._resident = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> tuple[int, int]:
        """Bytes allocated now, and the peak since the last reading."""
        live, peak = torch.cuda.memory_allocated(self._device), torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return live - self._resident, peak - self._resident


class Peaks(_Stages):
    """Highest level of live bytes in each outermost stage, above the level at which that stage began, and of
    the whole run."""

    def __init__(self, memory: LiveStorages | DeviceMemory) -> None:
        self._memory = memory
        super().__init__()
        self._base = 0
        self.rise: dict[str, int] = {}
        self.top = 0

    def _mark(self) -> None:
        live, peak = self._memory.read()
        self.top = max(self.top, peak)
        if self._open:
            outer = self._open[0]
            self.rise[outer] = max(self.rise.get(outer, 0), peak - self._base)
        else:
            self._base = live


# -- the second opinion


class _Whole(nn.Module):
    """A function as a module, which is what fvcore traces."""

    def __init__(self, weights: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weights, self._run = weights, run

    def forward(self, inputs: Tensor) -> Tensor:
        return self._run(inputs)


def _attention_handle(inputs: list[Any], outputs: list[Any]) -> int:
    shapes = [value.type().sizes() for value in inputs[:3]]
    return int(sdpa_flop_count(*shapes)) // 2


def _flash_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return _flash(*(value.type().sizes() for value in inputs[:3])) // 2


def _norm_free(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def fvcore_macs(weights: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor) -> int:
    """fvcore's count of `run(inputs)`, by tracing: independent of the dispatcher that the first count listens
    to.

    Args:
        weights: module whose parameters `run` uses.
    """
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(_Whole(weights, run), inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_handle)
    analysis.set_op_handle("flash_attn::_flash_attn_forward", _flash_handle)
    analysis.set_op_handle("aten::layer_norm", _norm_free)  # elementwise work is in neither count
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    total = int(analysis.total())
    _refuse(name for name in analysis.unsupported_ops() if multiplies(*name.split("::", 1)))
    return total
