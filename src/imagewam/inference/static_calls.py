"""Calls of the networks on memory that stays where it is: captured as a CUDA graph once per shape, then replayed."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..modeling.kv_cache import KVCache, Lease

logger = logging.getLogger(__name__)

# A call without arguments -> the function that makes it again, and what it returned: both write to the same memory.
Capture = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]

WARM_UP_CALLS = 3


def capture_cuda_graph(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """`Capture` by a CUDA graph. Lazy initialisation, compilation and autotuning happen in calls before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_CALLS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on with CUDA
        outputs = run()
    return graph.replay, outputs


class StaticCalls:
    """`calls(function, *inputs)` is `function(*inputs)`, on memory of its own for every shape of the inputs.

    Inputs are copied in, unless they are a `KVCache` that an earlier call left in static memory: that is read where it
    is. A `KVCache` that comes out stays there too, with a lease that ends at the next call of this shape; tensors come
    out as copies. A call that cannot be captured is made as it is, with a warning and its reason in `refused`.

    Threads take turns; who makes several calls that belong together sees to it that no other thread comes between.

    Args:
        version: changes whenever the networks' memory, dtype or kernels do: all captures are thrown away then.
        capture: how a call is captured.
        max_shapes: the shape that was not asked for the longest is let go beyond so many.

    Attributes:
        captures: how many calls were captured.
        refused: call -> why it could not be.
    """

    def __init__(self, version: Callable[[], Hashable], capture: Capture = capture_cuda_graph, max_shapes: int = 48):
        self.captures = 0
        self.refused: dict[str, str] = {}
        self._lock = threading.RLock()
        self._version, self._capture, self._max_shapes = version, capture, max_shapes
        self._captured_version = version()
        self._calls: OrderedDict[tuple, _StaticCall | None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calls)

    def __deepcopy__(self, memo: dict) -> None:
        """A copied policy has networks of its own, whose calls nobody has captured."""
        return None

    def __call__(self, function: Callable, *inputs: Any) -> Any:
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._drop_old_version()
            key = function.__qualname__, _autocast_dtype(), *(_signature(value) for value in inputs)
            if key not in self._calls:
                self._calls[key] = self._captured(function, inputs)
                if len(self._calls) > self._max_shapes:
                    _, oldest = self._calls.popitem(last=False)
                    if oldest is not None:
                        oldest.end_lease()
            self._calls.move_to_end(key)
            call = self._calls[key]
            return function(*inputs) if call is None else call(inputs)

    def _captured(self, function: Callable, inputs: tuple) -> "_StaticCall | None":
        try:
            call = _StaticCall(function, inputs, self._capture)
        except Exception as error:  # whatever a capture stumbles over
            function(*inputs)  # an error of the call itself is the caller's
            name = f"{function.__qualname__} of {', '.join(map(str, _shapes(inputs)))}"
            self.refused[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            logger.warning("%s is not captured and runs as before: %s", name, self.refused[name])
            return None
        self.captures += 1
        return call

    def _drop_old_version(self) -> None:
        if (version := self._version()) != self._captured_version:
            for call in self._calls.values():
                if call is not None:
                    call.end_lease()
            self._calls.clear()
            self._captured_version = version


class _StaticCall:
    """One function on one set of buffers."""

    def __init__(self, function: Callable, inputs: tuple, capture: Capture):
        static = tuple(_map(value, Tensor.clone) for value in inputs)
        self._buffers = _tensors(static)
        # Memory that an earlier call writes to is what this one reads, whatever lease it was first handed over with.
        self._inputs = tuple(replace(value, lease=None) if isinstance(value, KVCache) else value for value in static)
        self._replay, self._outputs = capture(lambda: function(*self._inputs))
        self._lease: Lease | None = None

    def __call__(self, inputs: tuple) -> Any:
        for static, given in zip(self._buffers, _tensors(inputs), strict=True):
            static.copy_(given)
        self.end_lease()
        self._replay()
        self._lease = Lease(self)
        return self._handed_out(self._outputs)

    def _handed_out(self, value: Any) -> Any:
        if isinstance(value, KVCache):
            return replace(value, lease=self._lease)
        if isinstance(value, tuple):
            return tuple(map(self._handed_out, value))
        return _map(value, Tensor.clone)

    def end_lease(self) -> None:
        if self._lease is not None:
            self._lease.ended = True


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with what `function` makes of its tensors; a leased cache stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, KVCache):
        return value if value.lease is not None else value.map(function)
    if isinstance(value, dict):
        return {name: _map(part, function) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(part, function) for part in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _map(value, note)
    return found


def _signature(value: Any) -> Hashable:
    """What has to be the same for a captured call to serve another value."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, KVCache):
        value.check_current()
        if value.lease is not None:
            return value.lease.owner
        masked = value.key_mask is not None, value.pooled is not None, len(value.layer_masks)
        conditions = tuple((name, _signature(part)) for name, part in value.conditions.items())
        return *map(_signature, _tensors(value)), masked, conditions, str(value.spans), value.image_grid
    if isinstance(value, dict):
        return tuple((name, _signature(part)) for name, part in value.items())
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    return value


def _shapes(inputs: tuple) -> list[list[int]]:
    return [list(tensor.shape) for value in inputs if isinstance(value, (Tensor, dict)) for tensor in _tensors(value)]


def _autocast_dtype() -> torch.dtype | None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
