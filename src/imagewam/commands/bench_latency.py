"""`imagewam bench latency`: how long a decision takes, stage by stage, ours beside the published code's way."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..atomic import atomic_write_text
from ..inference.compiled import CompiledPolicy
from ..inference.decision import CANVAS, NUM_TEXT_TOKENS, Decision
from ..inference.latency import STAGES, Latency, Ways, measure_ways
from ..inference.mid_size import MID_SIZE
from ..inference.variants import VARIANTS
from .options import option, parse_options

PERCENTILES = (50, 90, 99)
WAYS = ("published", "ours", "compiled")


@dataclass
class LatencyOptions:
    """What to time."""

    variants: list[str] | None = option(f"Some of {', '.join(MID_SIZE)}; default all.")
    modes: list[str] | None = option("Edit modes; default: prefix and denoise, or those of the video baseline.")
    steps: list[int] = field(default_factory=lambda: [3, 10], metadata={"help": "Euler steps of the actions."})
    batch: list[int] = field(default_factory=lambda: [1], metadata={"help": "Observations decided on together."})
    ways: list[str] = field(
        default_factory=lambda: list(WAYS[:2]), metadata={"help": f"Some of {', '.join(WAYS)} (torch.compile)."}
    )
    size: str | None = option("full, or mid for a twentieth; default: full on a GPU, mid on a CPU.")
    device: str | None = option("cuda or cpu; default: cuda where there is one.")
    dtype: str | None = option("bfloat16, float16 or float32; default: bfloat16 on a GPU, float32 on a CPU.")
    repeats: int = option("Decisions of each way, taken in turns.", 10)
    text_tokens: int = option("Of the instruction, without the state.", NUM_TEXT_TOKENS)
    backend: str = option("Of torch.compile.", "inductor")
    compile_mode: str | None = option("Of torch.compile, such as reduce-overhead or max-autotune.")
    seed: int = option("Of weights and noise.", 0)
    output: str | None = option("FILE.json for all numbers in seconds.")

    def __post_init__(self):
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.startswith("cuda")
        self.size = self.size or ("full" if on_gpu else "mid")
        self.dtype = self.dtype or ("bfloat16" if on_gpu else "float32")
        known = {"variants": (self.variants or (), MID_SIZE), "ways": (self.ways, WAYS), "size": ([self.size], SIZES)}
        for name, (given, choices) in known.items():
            if unknown := sorted(set(given) - set(choices)):
                raise ValueError(f"{name}: no such {', '.join(unknown)}; there are {', '.join(choices)}")


SIZES = {"full": VARIANTS, "mid": MID_SIZE}


def main(argv: Sequence[str]) -> None:
    """Print the table as Markdown."""
    (options,) = parse_options((LatencyOptions,), argv, "bench latency", __doc__)
    rows = []
    print(f"{machine(options)}\n")
    print(_line(["variant", "mode", "batch", "steps", "way", *(f"{stage}, ms" for stage in STAGES)] + _TOTALS))
    print(_line(["---"] * (5 + len(STAGES) + len(_TOTALS))))
    for name in options.variants or MID_SIZE:
        variant = SIZES[options.size][name]
        for mode in options.modes or variant.modes:
            for batch in options.batch:
                for row in _measure(options, name, mode, batch):
                    rows.append(row)
                    print(_line(_cells(row)), flush=True)
    if options.output:
        report = {"machine": machine(options), "options": asdict(options), "canvas": CANVAS, "latency": rows}
        atomic_write_text(Path(options.output), json.dumps(report, indent=2) + "\n")


def machine(options: LatencyOptions) -> str:
    """What the numbers belong to."""
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()} CPU"
    threads = "" if options.device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    return f"{device}{threads}, torch {torch.__version__}, {options.dtype}, {options.size} size, seed {options.seed}"


def _measure(options: LatencyOptions, name: str, mode: str, batch: int) -> list[dict]:
    """A row per number of steps and way."""
    torch.manual_seed(options.seed)
    dtype, variant = getattr(torch, options.dtype), SIZES[options.size][name]
    decision = Decision(variant, mode, dtype, options.text_tokens, options.device, batch)
    rows = []
    # The published image code has these two modes; what the video baseline does besides has no other way here.
    known = ("published", "ours") if mode in ("prefix", "denoise") else ("ours",)
    plain = tuple(way for way in options.ways if way in known)
    latencies = {
        steps: measure_ways(Ways(decision, steps, options.seed), plain, options.repeats) for steps in options.steps
    }
    report = _compiled(options, decision) if "compiled" in options.ways else None
    for steps in options.steps:
        if report is not None:
            (compiled,) = measure_ways(Ways(decision, steps, options.seed), ("ours",), options.repeats, 2).values()
            latencies[steps]["compiled"] = compiled
        for way, latency in latencies[steps].items():
            rows.append(_row(name, mode, batch, steps, way, latency, latencies[steps].get("published"), report))
    return rows


def _compiled(options: LatencyOptions, decision: Decision) -> CompiledPolicy:
    latents, grid = decision.image
    observation = {"image_latents": latents, "image_grid": grid, "state": decision.state}
    observation["prompt_embeds"] = decision.prompt_embeds
    policy = decision.policy
    return policy.compile_for_inference(observation, backend=options.backend, mode=options.compile_mode)


def _row(
    variant: str,
    mode: str,
    batch: int,
    steps: int,
    way: str,
    latency: Latency,
    published: Latency | None,
    report: CompiledPolicy | None,
) -> dict:
    row = {"variant": variant, "edit_mode": mode, "batch": batch, "steps": steps, "way": way}
    row |= {f"{stage}_p50": latency.percentile(50, stage) for stage in STAGES}
    row |= {f"decision_p{percent}": latency.percentile(percent) for percent in PERCENTILES}
    row["action_step_p50"] = latency.percentile(50, "actions") / steps
    row["seconds"] = latency.stages
    if published is not None:
        row["published_over_this"] = published.percentile(50) / latency.percentile(50)
        row["largest_difference_of_actions"] = (latency.actions - published.actions).abs().max().item()
    if way == "compiled":
        row |= {"compiled": report.compiled, "refused": report.refused, "recompiles": report.recompiles}
    return row


_TOTALS = ["action step, ms", *(f"decision p{percent}, ms" for percent in PERCENTILES), "published / it", "difference"]


def _cells(row: dict) -> list[str]:
    times = [f"{stage}_p50" for stage in STAGES] + ["action_step_p50", *(f"decision_p{p}" for p in PERCENTILES)]
    cells = [str(row[name]) for name in ("variant", "edit_mode", "batch", "steps", "way")]
    cells += [f"{1000 * row[name]:.1f}" for name in times]
    ratio = row.get("published_over_this")
    return [*cells, *(["", ""] if ratio is None else [f"{ratio:.2f}", f"{row['largest_difference_of_actions']:.1e}"])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
