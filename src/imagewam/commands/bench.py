"""`imagewam bench memory`: what the published variants need in memory, from arithmetic on the meta device."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from ..atomic import atomic_write_text
from ..inference.memory_plan import CANVAS, NUM_TEXT_TOKENS, MemoryPlan, plan_memory
from ..inference.variants import VARIANTS
from .options import parse_options

GIB = 2**30


@dataclass
class BenchOptions:
    """What to measure."""

    what: Literal["memory"] = field(metadata={"help": "memory: weights, keys and values, peak of one decision."})
    variants: list[str] | None = field(default=None, metadata={"help": f"Some of {', '.join(VARIANTS)}; default all."})
    dtype: Literal["bfloat16", "float16", "float32"] = field(default="bfloat16", metadata={"help": "Of all parts."})
    output: str | None = field(default=None, metadata={"help": "FILE.json for the numbers in bytes."})


def main(argv: Sequence[str]) -> None:
    """Print the table as Markdown."""
    words = ["--what", *argv] if argv and not argv[0].startswith("-") else argv
    (options,) = parse_options((BenchOptions,), words, "bench", __doc__)
    unknown = sorted(set(options.variants or ()) - set(VARIANTS))
    if unknown:
        raise ValueError(f"no such variant: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    plans = {
        (name, mode): plan_memory(VARIANTS[name], mode, getattr(torch, options.dtype))
        for name in options.variants or VARIANTS
        for mode in ("prefix", "denoise")
    }
    print(memory_table(plans))
    if options.output:
        rows = [{"variant": v, "edit_mode": mode, **dataclasses.asdict(plan)} for (v, mode), plan in plans.items()]
        assumptions = {"canvas": CANVAS, "text_tokens": NUM_TEXT_TOKENS, "batch": 1, "dtype": options.dtype}
        atomic_write_text(options.output, json.dumps({"assumptions": assumptions, "bytes": rows}, indent=2) + "\n")


def memory_table(plans: dict[tuple[str, str], MemoryPlan]) -> str:
    """Markdown, in GiB."""
    columns = ["variant", "edit mode", "editing", "expert", "text encoder", "VAE", "keys and values", "peak"]
    lines = [columns + ["peak, instruction cached"], ["---"] * (len(columns) + 1)]
    for (name, mode), plan in plans.items():
        sizes = [plan.editing, plan.expert, plan.text_encoder, plan.vae, plan.cache, plan.peak]
        cached = "not possible" if plan.peak_cached is None else f"{plan.peak_cached / GIB:.2f}"
        lines.append([name, mode, *(f"{size / GIB:.2f}" for size in sizes), cached])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
