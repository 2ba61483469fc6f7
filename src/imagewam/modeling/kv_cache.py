"""Keys and values of any diffusers transformer: captured in one call, put in front of another.

Two small mechanisms meet here. The attention processor of every tapped layer becomes a subclass of itself that says
*which layer* is running; the `dispatch_attention_fn` (or SDPA) that the processor calls is wrapped so that the layer's
slot sees *which* queries, keys and values go in. Both are pass-throughs while no slot is installed.
"""

import copy
import functools
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class LayerKV(NamedTuple):
    """Keys (after RoPE and QK norm) and values of one attention layer, each `[B, S, kv_heads, head_dim]`."""

    key: Tensor
    value: Tensor

    def followed_by(self, key: Tensor, value: Tensor) -> "LayerKV":
        """These keys and values in front of others `[B, N, kv_heads, head_dim]`, in the dtype of the others."""
        return LayerKV(
            torch.cat([self.key.to(key.dtype), key], dim=1), torch.cat([self.value.to(value.dtype), value], dim=1)
        )


class LayerKVWithRoom(LayerKV):
    """A layer's keys and values in buffers that have room behind them: what follows is written there, not joined.

    What `followed_by` returns is overwritten by the next call. No gradients.
    """

    # None in a copy that was made of the two members alone, as accelerate's hooks do: there is no room then.
    buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: LayerKV, room: int, dtype: torch.dtype) -> "LayerKVWithRoom":
        """A copy in `dtype` with room for so many tokens."""
        buffers = [x.new_empty(x.shape[0], x.shape[1] + room, *x.shape[2:], dtype=dtype) for x in layer]
        views = [buffer[:, : x.shape[1]].copy_(x) for buffer, x in zip(buffers, layer, strict=True)]
        copied = cls(*views)
        copied.buffers = tuple(buffers)
        return copied

    def followed_by(self, key: Tensor, value: Tensor) -> LayerKV:
        if self.buffers is None:
            return super().followed_by(key, value)
        for buffer, own, tokens in zip(self.buffers, self, (key, value), strict=True):
            buffer[:, own.shape[1] :].copy_(tokens)
        return LayerKV(*self.buffers)


@dataclass(eq=False)
class Lease:
    """What a cache knows of memory that belongs to `owner`: whether it still holds what it did."""

    owner: object
    ended: bool = False


@dataclass
class KVCache:
    """What an editing transformer leaves behind for the action expert (paper, Eq. 5).

    Attributes:
        layers: one `LayerKV` per tapped attention layer, in execution order. A layer that attends to fewer tokens than
            others (Ovis-U1's image-only attention) holds the last of the S keys: text stands first.
        key_mask: `[B, S]` bool, True where a key may be attended to; None when every key may.
        spans: which keys are which, e.g. `{"text": slice(0, 33), "image": slice(33, 425)}`.
        image_grid: (rows, columns) of the image tokens.
        pooled: `[B, D]`, what a family's later calls need of the text besides its keys; None for most.
        conditions: what later calls need of the observation besides its keys: all of it in a network without a
            target-free context, instruction and state (`prompt_embeds`) where they are reached by cross-attention.
        layer_masks: per layer, `[B, S_layer]` bool in the place of `key_mask`, where the layers' padding differs; else
            empty. Such a cache is only read: it cannot be joined, cut or put in front of a call.
        lease: for a cache in memory that will be written over by a later observation; None: the memory is its own.
    """

    layers: tuple[LayerKV, ...] = ()
    key_mask: Tensor | None = None
    spans: dict[str, slice] = field(default_factory=dict)
    image_grid: tuple[int, int] | None = None
    pooled: Tensor | None = None
    conditions: dict[str, Tensor | None] = field(default_factory=dict)
    layer_masks: tuple[Tensor, ...] = ()
    lease: Lease | None = None

    @property
    def num_tokens(self) -> int:
        """S, the keys of the layer that has most."""
        return max(layer.key.shape[1] for layer in self.layers)

    @property
    def batch_size(self) -> int:
        return self.layers[0].key.shape[0]

    @property
    def masks(self) -> tuple[Tensor | None, ...]:
        """Which keys of each layer may be attended to, `[B, S_layer]` bool; None when every key may."""
        if self.layer_masks:
            return self.layer_masks
        return tuple(last_keys(self.key_mask, layer.key.shape[1]) for layer in self.layers)

    def select(self, *names: str) -> "KVCache":
        """The keys of these spans alone, in this order."""
        self._check_shared_mask()
        parts = [self.spans[name] for name in names]

        def selected(tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, part] for part in parts], dim=1)

        return replace(
            self,
            layers=tuple(LayerKV(selected(key), selected(value)) for key, value in self.layers),
            key_mask=None if self.key_mask is None else selected(self.key_mask),
            lease=None,
            spans=token_spans(**{n: part.stop - part.start for n, part in zip(names, parts, strict=True)}),
        )

    def with_room(self, num_tokens: int, dtype: torch.dtype) -> "KVCache":
        """A copy in `dtype` to which so many tokens can be joined again and again without copying it."""
        layers = tuple(LayerKVWithRoom.of(layer, num_tokens, dtype) for layer in self.layers)
        return replace(self, layers=layers, lease=None)

    def map(self, function: Callable[[Tensor], Tensor]) -> "KVCache":
        """A cache of what `function` makes of every tensor."""

        def mapped(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else function(tensor)

        return replace(
            self,
            layers=tuple(LayerKV(function(key), function(value)) for key, value in self.layers),
            key_mask=mapped(self.key_mask),
            pooled=mapped(self.pooled),
            conditions={name: mapped(tensor) for name, tensor in self.conditions.items()},
            layer_masks=tuple(map(function, self.layer_masks)),
            lease=None,
        )

    def clone(self) -> "KVCache":
        """A copy that no later observation writes over."""
        self.check_current()
        return self.map(Tensor.clone)

    def check_current(self) -> None:
        """Raise RuntimeError if a later observation has written over these keys."""
        if self.lease is not None and self.lease.ended:
            raise RuntimeError(
                "this context was written over by a later observation of the same shape, as the policy's captured "
                "graphs do: use it before the next one is encoded, or keep `context.clone()`"
            )

    def cat(self, other: "KVCache") -> "KVCache":
        """The keys of `self` followed by those of `other`, layer by layer."""
        self._check_shared_mask()
        other._check_shared_mask()
        if len(self.layers) != len(other.layers):
            raise ValueError(f"cannot join caches of {len(self.layers)} and {len(other.layers)} layers")
        offset = self.num_tokens
        return KVCache(
            layers=tuple(
                LayerKV(torch.cat([a.key, b.key], dim=1), torch.cat([a.value, b.value], dim=1))
                for a, b in zip(self.layers, other.layers, strict=True)
            ),
            key_mask=_join_key_masks(self.key_mask, other.key_mask, self.num_tokens, other.num_tokens),
            spans=self.spans | {k: slice(s.start + offset, s.stop + offset) for k, s in other.spans.items()},
            image_grid=self.image_grid,
            pooled=self.pooled,
            conditions=self.conditions,
        )

    def _check_shared_mask(self) -> None:
        if self.layer_masks:
            raise ValueError("the layers of this cache are padded each in its own way: it can only be read")


class AttentionCall(NamedTuple):
    """What one layer attended to: shapes `[B, S, heads, head_dim]` of queries, keys and values."""

    layer: str
    query: torch.Size
    key: torch.Size
    value: torch.Size


def token_spans(**lengths: int) -> dict[str, slice]:
    """`token_spans(text=3, image=4)` -> `{"text": slice(0, 3), "image": slice(3, 7)}`."""
    spans, start = {}, 0
    for name, length in lengths.items():
        spans[name] = slice(start, start + length)
        start += length
    return spans


class KVTap:
    """Reads and extends the keys and values of the attention layers of one diffusers transformer.

    Args:
        transformer: any module whose attention layers carry a `processor` that ends in diffusers'
            `dispatch_attention_fn` or in `F.scaled_dot_product_attention`.
        select: `(name, attention module) -> bool`; which layers to tap. All by default.
        names: the layers to tap, in this order, in the place of `select` and the order of registration.

    ```python
    tap = KVTap(transformer)
    with tap.capture() as context:                  # context.layers is filled when the block ends
        transformer(reference, text, ...)
    with tap.prefix(context):                       # the same keys and values in front of each layer's own
        transformer(noisy_target, ...)
    ```

    Gradients flow through captured and prefixed tensors. With gradient checkpointing use
    `tap.enable_gradient_checkpointing()`, whose recomputation sees the same prefixes as the forward pass did.
    One tap serves one call at a time; calls from several threads wait for each other.
    """

    def __init__(
        self,
        transformer: nn.Module,
        select: Callable[[str, nn.Module], bool] | None = None,
        names: Sequence[str] | None = None,
    ):
        self.transformer = transformer
        # Whether calls of which only the keys are wanted end with the last of them.
        self.leaves_early = True
        self._lock = threading.RLock()
        layers = {n: m for n, m in transformer.named_modules() if callable(getattr(m, "processor", None))}
        if names is not None:
            self._layers = {name: layers[name] for name in names}
        else:
            self._layers = {name: m for name, m in layers.items() if select is None or select(name, m)}
        if not self._layers:
            raise ValueError(f"{type(transformer).__name__} has no attention layer with a processor to tap")
        self._processors = _tap_processors(self._layers)

    def __getstate__(self) -> dict:
        """For `copy.deepcopy`: the copy taps the copied transformer, under a lock of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(self._layers)

    @contextmanager
    def capture(
        self, key_mask: Tensor | None = None, *, own_masks: bool = False, keys_only: bool = False
    ) -> Iterator[KVCache]:
        """Store every layer's keys and values of the call made inside the block.

        Args:
            key_mask: `[B, S]` bool over the call's own keys; False keys are hidden from every query and stay hidden
                in the cache.
            own_masks: also fill `layer_masks`: False for keys that the network itself hides from every query.
            keys_only: nobody needs the call's output: the block is left as soon as the last layer's keys and values
                are there. Not for calls that a backward pass recomputes, nor inside a compiled block.

        Raises:
            RuntimeError: a tapped layer was not reached, or was reached twice: its keys would be wrong.
        """
        with self._attend(
            store=True, prefix=None, key_mask=key_mask, own_masks=own_masks, keys_only=keys_only
        ) as cache:
            yield cache

    @contextmanager
    def prefix(
        self, cache: KVCache, *, key_mask: Tensor | None = None, capture: bool = False, keys_only: bool = False
    ) -> Iterator[KVCache]:
        """Put `cache` in front of every layer's own keys and values in the call made inside the block.

        Args:
            cache: one entry per tapped layer.
            key_mask: `[B, S]` bool over the call's own keys.
            capture: also store the call's own keys and values (without the prefix) in the cache that is yielded.
            keys_only: store them and nothing else, as in `capture`.
        """
        cache._check_shared_mask()
        if len(cache.layers) != len(self._layers):
            raise ValueError(f"the cache has {len(cache.layers)} layers, {len(self._layers)} layers are tapped")
        with self._attend(store=capture or keys_only, prefix=cache, key_mask=key_mask, keys_only=keys_only) as own:
            yield own

    @contextmanager
    def watch(self) -> Iterator[list[AttentionCall]]:
        """The attention calls of the tapped layers inside the block, as they come; nothing is stored or changed."""
        calls: list[AttentionCall] = []
        with self._lock:
            self._check_processors()
            with _installed(self._processors, [_Watcher(name, calls) for name in self._layers]):
                yield calls

    @contextmanager
    def _attend(
        self,
        store: bool,
        prefix: KVCache | None,
        key_mask: Tensor | None,
        own_masks: bool = False,
        keys_only: bool = False,
    ) -> Iterator[KVCache]:
        slots = [
            _Slot(store, prefix.layers[i] if prefix else None, prefix.key_mask if prefix else None, key_mask)
            for i in range(len(self._layers))
        ]
        slots[-1].is_last = keys_only and self.leaves_early
        own = KVCache(key_mask=key_mask)
        with self._lock:
            self._check_processors()
            with _installed(self._processors, slots), suppress(_AllKeysStored):
                yield own
        missed = [name for name, slot in zip(self._layers, slots, strict=True) if not slot.used]
        if missed:
            raise RuntimeError(
                f"{len(missed)} of {len(slots)} tapped attention layers of {type(self.transformer).__name__} made no "
                f"attention call that the tap could see: {', '.join(missed[:4])}{', ...' if missed[4:] else ''}"
            )
        if store:
            own.layers = tuple(slot.stored for slot in slots)
        if own_masks:
            own.layer_masks = tuple(_visible_keys(slot.model_mask, slot.stored) for slot in slots)

    def _check_processors(self) -> None:
        for (name, module), processor in zip(self._layers.items(), self._processors, strict=True):
            if module.processor is not processor:
                raise RuntimeError(
                    f"the attention processor of {name} was replaced by {type(module.processor).__name__} after the "
                    "tap was set; set processors first, then make the tap"
                )
            if processor._tap_slot is not None:
                raise RuntimeError(f"{name} is already being captured or prefixed by an enclosing block")

    def enable_gradient_checkpointing(self) -> None:
        """Checkpoint the transformer's blocks so that recomputation replays the captures and prefixes exactly."""
        self.transformer.enable_gradient_checkpointing(self.checkpoint)

    def checkpoint(self, block: nn.Module, *args):
        """`torch.utils.checkpoint` of one block, with the slots that are installed now."""
        processors = [m.processor for m in block.modules() if hasattr(getattr(m, "processor", None), "_tap_slot")]
        slots = [processor._tap_slot for processor in processors]
        forward_done = False

        def run(*args):
            nonlocal forward_done
            if not forward_done:
                forward_done = True
                return block(*args)
            # Throw-away slots with the same flags: the recomputed graph is the same, results are not written twice.
            with _installed(processors, [slot and slot.fresh() for slot in slots]):
                return block(*args)

        return checkpoint(run, *args, use_reentrant=False)


class _AllKeysStored(Exception):
    """Leaves a transformer whose remaining output nobody needs."""


class _Slot:
    """What one attention layer has to do during one call, and what it has seen."""

    def __init__(
        self, store: bool, prefix: LayerKV | None, prefix_mask: Tensor | None = None, own_mask: Tensor | None = None
    ):
        self.store = store
        self.prefix = prefix
        self.prefix_mask = prefix_mask
        self.own_mask = own_mask
        self.used = False
        self.is_last = False
        self.stored: LayerKV | None = None
        self.model_mask: Tensor | None = None

    def fresh(self) -> "_Slot":
        return _Slot(self.store, self.prefix, self.prefix_mask, self.own_mask)

    def attend(self, attention: Callable, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Store, put the prefix in front, widen the mask, attend. Tensors are `[B, S, heads, head_dim]`."""
        if self.used:
            raise RuntimeError("a tapped attention layer attends more than once per forward pass")
        self.used = True
        if self.store:
            # V may be a view of a fused projection many times its size; K after RoPE is a tensor of its own.
            self.stored, self.model_mask = LayerKV(key, value.clone()), mask
        if self.is_last:
            raise _AllKeysStored
        own_mask = last_keys(self.own_mask, key.shape[1])
        if self.prefix is None:
            return attention(query, key, value, _and_key_mask(mask, own_mask, 0))
        prefix_key, prefix_value = self.prefix
        prefix_mask = last_keys(self.prefix_mask, prefix_key.shape[1])
        key_mask = _join_key_masks(prefix_mask, own_mask, prefix_key.shape[1], key.shape[1])
        mask = _and_key_mask(mask, key_mask, prefix_key.shape[1])
        key = torch.cat([prefix_key.to(key.dtype), key], dim=1)
        value = torch.cat([prefix_value.to(value.dtype), value], dim=1)
        return attention(query, key, value, mask)


class _Watcher:
    """In the place of a slot: notes what a layer attends to, and lets it."""

    prefix = None

    def __init__(self, layer: str, calls: list[AttentionCall]):
        self.layer, self.calls = layer, calls

    def attend(self, attention: Callable, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.calls.append(AttentionCall(self.layer, query.shape, key.shape, value.shape))
        return attention(query, key, value, mask)


class _Published(threading.local):
    """The slot of the attention layer that is running in this thread."""

    slot: _Slot | _Watcher | None = None


_published = _Published()


@contextmanager
def _installed(processors: list, slots: list[_Slot | None]) -> Iterator[None]:
    before = [processor._tap_slot for processor in processors]
    for processor, slot in zip(processors, slots, strict=True):
        processor._tap_slot = slot
    try:
        yield
    finally:
        for processor, slot in zip(processors, before, strict=True):
            processor._tap_slot = slot


def _tap_processors(layers: dict[str, nn.Module]) -> list:
    """Give every layer a tapped processor of its own."""
    processors = []
    for module in layers.values():
        if any(module.processor is other for other in processors):
            module.processor = copy.copy(module.processor)
        if not hasattr(module.processor, "_tap_slot"):
            _hook_attention(sys.modules[type(module.processor).__module__])
            module.processor.__class__ = _tapped_class(type(module.processor))
        processors.append(module.processor)
    return processors


@functools.cache
def _tapped_class(processor_class: type) -> type:
    """`processor_class`, publishing its instance's slot while it runs. One class for all layers: one graph."""
    original = processor_class.__call__

    @functools.wraps(original)  # attention modules filter keyword arguments by this signature
    def __call__(self, *args, **kwargs):
        slot = self._tap_slot
        if slot is None:
            return original(self, *args, **kwargs)
        before = _published.slot
        _published.slot = slot
        try:
            return original(self, *args, **kwargs)
        finally:
            _published.slot = before

    body = {"__call__": __call__, "_tap_slot": None, "__module__": processor_class.__module__}
    return type(processor_class.__name__, (processor_class,), body)


def _hook_attention(module: types.ModuleType) -> None:
    """Wrap the name through which the processors of this file reach attention. Idempotent."""
    if hasattr(module, "dispatch_attention_fn"):
        if not hasattr(module.dispatch_attention_fn, "_tap"):
            module.dispatch_attention_fn = _tapped_dispatch(module.dispatch_attention_fn)
    elif hasattr(module, "F"):
        if not isinstance(module.F, _TappedFunctional):
            module.F = _TappedFunctional(module.F)
    else:
        raise TypeError(f"{module.__name__} calls neither dispatch_attention_fn nor F.scaled_dot_product_attention")


def _tapped_dispatch(dispatch: Callable) -> Callable:
    @functools.wraps(dispatch)
    def tapped(query, key, value, attn_mask=None, *args, **kwargs):
        slot = _published.slot
        if slot is None:
            return dispatch(query, key, value, attn_mask, *args, **kwargs)
        if kwargs.get("parallel_config") is not None:
            raise ValueError("context parallelism splits the sequence below the tap; it cannot be combined with it")
        if kwargs.get("is_causal") and slot.prefix is not None:
            raise ValueError("a prefix cannot stand in front of causal attention: its mask would shift")
        return slot.attend(lambda q, k, v, m: dispatch(q, k, v, m, *args, **kwargs), query, key, value, attn_mask)

    tapped._tap = True
    return tapped


class _TappedFunctional:
    """`torch.nn.functional` for files that call SDPA themselves, on `[B, heads, S, head_dim]`."""

    def __init__(self, functional: types.ModuleType):
        self._functional = functional

    def __getattr__(self, name: str):
        return getattr(self._functional, name)

    def scaled_dot_product_attention(self, query, key, value, attn_mask=None, *args, **kwargs):
        sdpa = self._functional.scaled_dot_product_attention
        slot = _published.slot
        if slot is None:
            return sdpa(query, key, value, attn_mask, *args, **kwargs)
        if kwargs.get("is_causal") and slot.prefix is not None:
            raise ValueError("a prefix cannot stand in front of causal attention: its mask would shift")
        if attn_mask is not None and attn_mask.ndim == 2:
            attn_mask = attn_mask[None, None]  # [queries, keys] here, where diffusers' dispatch means [batch, keys]

        def attention(q, k, v, mask):
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            return sdpa(q, k, v, mask, *args, **kwargs).transpose(1, 2)

        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return slot.attend(attention, q, k, v, attn_mask).transpose(1, 2)


def last_keys(key_mask: Tensor | None, num_keys: int) -> Tensor | None:
    """The part of a `[B, S]` key mask that a layer with `num_keys` keys needs: it holds the last ones."""
    return None if key_mask is None else key_mask[:, key_mask.shape[1] - num_keys :]


def _visible_keys(mask: Tensor | None, layer: LayerKV) -> Tensor:
    """`[B, S]`: the keys that at least one query of one head sees through the model's own mask."""
    batch_size, num_keys = layer.key.shape[:2]
    if mask is None:
        return torch.ones(batch_size, num_keys, dtype=torch.bool, device=layer.key.device)
    if mask.dtype != torch.bool:
        mask = mask > torch.finfo(mask.dtype).min / 2
    mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
    return mask.any(dim=2).any(dim=1).expand(batch_size, num_keys)


def _join_key_masks(first: Tensor | None, second: Tensor | None, num_first: int, num_second: int) -> Tensor | None:
    """`[B, S1 + S2]` mask of two groups of keys, where None means that all of a group may be seen."""
    if first is None and second is None:
        return None
    if first is None:
        return nn.functional.pad(second, (num_first, 0), value=True)
    if second is None:
        return nn.functional.pad(first, (0, num_second), value=True)
    return torch.cat([first, second], dim=1)


def _and_key_mask(mask: Tensor | None, key_mask: Tensor | None, num_prefix: int) -> Tensor | None:
    """The model's own attention mask, open for `num_prefix` keys in front, and the `[B, S]` key mask, combined."""
    if key_mask is not None:
        key_mask = key_mask[:, None, None, :]
    if mask is None:
        return key_mask
    if mask.ndim == 2:
        mask = mask[:, None, None, :]
    open_value = True if mask.dtype == torch.bool else 0.0
    mask = nn.functional.pad(mask, (num_prefix, 0), value=open_value)
    if key_mask is None:
        return mask
    if mask.dtype == torch.bool:
        return mask & key_mask
    return mask.masked_fill(~key_mask, float("-inf"))
