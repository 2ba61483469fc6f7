"""Decisions of the shapes that a robot really has: blocks through `torch.compile`, calls as CUDA graphs."""

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from .static_calls import Capture, StaticCalls, capture_cuda_graph

logger = logging.getLogger(__name__)

PARTS = ("actions", "prefill")
# Modes in which torch.compile captures CUDA graphs of every block.
_MODES_THAT_CAPTURE = ("reduce-overhead", "max-autotune")

# A block has up to four graphs per shape (before and in front of the target's keys, with and without derivatives), and
# every length of instruction is a shape; PyTorch's own limit is 8.
MAX_GRAPHS = 256


@dataclass
class CompiledPolicy:
    """What `policy.compile_for_inference()` did, and what happened since.

    Attributes:
        compiled: "prefill" (editing blocks) and "actions" (the action expert's), those that are compiled.
        calls: the captured calls; None where nothing is captured.
    """

    compiled: list[str] = field(default_factory=list)
    calls: StaticCalls | None = None
    _refused: dict[str, str] = field(default_factory=dict)
    _when_warm: tuple[int, int] = (0, 0)

    @property
    def refused(self) -> dict[str, str]:
        """Part or call -> why it runs as it did before."""
        return self._refused | (self.calls.refused if self.calls is not None else {})

    @property
    def captured(self) -> int:
        """CUDA graphs, one per call and shape."""
        return self.calls.captures if self.calls is not None else 0

    @property
    def recompiles(self) -> int:
        """Blocks' graphs that were compiled in this process since the warm-up: 0 while shapes stay as they were."""
        return _graphs() - self._when_warm[0]

    @property
    def recaptures(self) -> int:
        """Calls that were captured since the warm-up: 0 while shapes and weights' memory stay as they were."""
        return self.captured - self._when_warm[1]

    def warm(self) -> None:
        """What has been compiled and captured up to now was expected."""
        self._when_warm = _graphs(), self.captured

    def refuse(self, part: str, reason: str) -> None:
        if part not in self._refused:
            logger.warning("%s is not compiled and runs as before: %s", part, reason)
        self._refused[part] = reason


def compile_policy(
    policy: ImageWAMForActionPrediction,
    examples: list[Mapping[str, Any]],
    *,
    backend: str | Callable | None = "inductor",
    mode: str | None = None,
    cuda_graphs: bool = False,
) -> CompiledPolicy:
    """See `ImageWAMForActionPrediction.compile_for_inference`."""
    if cuda_graphs and mode in _MODES_THAT_CAPTURE:
        raise ValueError(
            f"mode={mode!r} captures CUDA graphs of every block, which cannot stand inside those of cuda_graphs=True; "
            "use mode='max-autotune-no-cudagraphs' or none"
        )
    report = CompiledPolicy()
    if backend is not None:
        for part in PARTS:
            compile_blocks(policy, examples, report, part, backend, mode)
    if cuda_graphs and policy.device.type != "cuda":
        report.refuse("CUDA graphs", f"the policy is on {policy.device}")
    elif cuda_graphs:
        capture_calls(policy, examples, report, capture_cuda_graph)
    report.warm()
    return report


def capture_calls(
    policy: ImageWAMForActionPrediction, examples: list[Mapping[str, Any]], report: CompiledPolicy, capture: Capture
) -> None:
    """Have `capture` make the policy's calls from now on, those of the examples' shapes at once."""
    policy._static_calls = None
    for example in examples:
        policy.predict_action(**{**example, "num_inference_steps": 1})  # loads what is loaded on first use
    report.calls = policy._static_calls = StaticCalls(lambda: version_of(policy), capture)
    for example in examples:
        policy.predict_action(**example)


def version_of(policy: ImageWAMForActionPrediction) -> Hashable:
    """What a captured call depends on besides its inputs: where the weights lie, and which kernels run."""
    networks = policy.backbone.transformer, policy.action_expert, policy.backbone.frozen.get("vae")
    # Quantised weights, which have parts, tell no place.
    weights = [next(w for w in n.parameters() if type(w) is nn.Parameter) for n in networks if n is not None]
    return policy.attention_backend, *((weight.data_ptr(), weight.dtype) for weight in weights)


def compile_blocks(
    policy: ImageWAMForActionPrediction,
    examples: list[Mapping[str, Any]],
    report: CompiledPolicy,
    part: str,
    backend: str | Callable,
    mode: str | None,
) -> None:
    """Compile one of `PARTS`, or say in the report why it is not."""
    blocks = policy.action_expert.blocks if part == "actions" else _editing_blocks(policy)
    if not blocks:
        report.refuse(part, f"{type(policy.backbone.transformer).__name__} names no repeated blocks")
        return
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MAX_GRAPHS)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, MAX_GRAPHS)
    for block in blocks:
        block.compile(backend=backend, mode=mode, fullgraph=True, dynamic=False)
    try:
        for example in examples:
            policy.predict_action(**{**example, "num_inference_steps": 1})
    except Exception as error:  # whatever a compiler raises: the policy goes on without it, and says so
        for block in blocks:
            block._compiled_call_impl = None
        report.refuse(part, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    else:
        report.compiled.append(part)
        for block in blocks:
            block._compiled_call_impl = _or_as_before(block, part, report)


def _or_as_before(block: nn.Module, part: str, report: CompiledPolicy) -> Callable:
    """The block's compiled call; as it was before for shapes beyond `MAX_GRAPHS`, which would be an error."""
    compiled, name = block._compiled_call_impl, f"{part} of further shapes"

    def call(*args, **kwargs):
        if name not in report.refused:
            try:
                return compiled(*args, **kwargs)
            except FailOnRecompileLimitHit:
                report.refuse(name, f"there are graphs of {MAX_GRAPHS} shapes already")
        with torch.compiler.set_stance("eager_on_recompile"):
            return compiled(*args, **kwargs)

    return call


def _editing_blocks(policy: ImageWAMForActionPrediction) -> list[nn.Module]:
    """All repeated blocks but that of the last keys, which is left half-way and would break the graph."""
    network, last = policy.backbone.transformer, policy.backbone.tap.layer_names[-1]
    names = getattr(network, "_repeated_blocks", None) or ()
    return [
        block
        for name, block in network.named_modules()
        if type(block).__name__ in names and not last.startswith(f"{name}.")
    ]


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]
