"""`imagewam bench latency`: how long a decision takes, stage by stage, ours beside the published code's way.

Each way is a row: `published` and `ours` as they are, `actions-compiled` and `compiled` with the action expert's and
then also the editing network's blocks through torch.compile, `graphs` with all calls captured as CUDA graphs on top,
and `published-compiled` and `published-graphs` likewise. What was refused is a row without numbers, and its reason.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..atomic import atomic_write_text
from ..inference.compiled import CompiledPolicy
from ..inference.cost import plan_cost
from ..inference.decision import CANVAS, NUM_TEXT_TOKENS, Decision
from ..inference.latency import LEVELS, STAGES, WAYS, Latency, Ways, measure_ways, raise_level
from ..inference.mid_size import MID_SIZE
from ..inference.roofline import Ceilings, StageWork, measure_ceilings, work_of_stages
from ..inference.variants import VARIANTS
from .options import option, parse_options

PERCENTILES = (50, 90, 99)
ON_CPU = ("published", "ours")


@dataclass
class LatencyOptions:
    """What to time."""

    variants: list[str] | None = option(f"Some of {', '.join(MID_SIZE)}; default all.")
    modes: list[str] | None = option("Edit modes; default: prefix and denoise, or those of the video baseline.")
    steps: list[int] = field(default_factory=lambda: [3, 10], metadata={"help": "Euler steps of the actions."})
    batch: list[int] = field(default_factory=lambda: [1], metadata={"help": "Observations decided on together."})
    ways: list[str] | None = option(f"Some of {', '.join(WAYS)}; default all, or {', '.join(ON_CPU)} on a CPU.")
    size: str | None = option("full, or mid for a twentieth; default: full on a GPU, mid on a CPU.")
    device: str | None = option("cuda or cpu; default: cuda where there is one.")
    dtype: str | None = option("bfloat16, float16 or float32; default: bfloat16 on a GPU, float32 on a CPU.")
    repeats: int = option("Decisions of each way, taken in turns.", 10)
    text_tokens: int = option("Of the instruction, without the state.", NUM_TEXT_TOKENS)
    backend: str = option("Of torch.compile.", "inductor")
    compile_mode: str | None = option("Of torch.compile, such as reduce-overhead or max-autotune.")
    seed: int = option("Of weights and noise.", 0)
    roofline: bool = option("Also print what share of the device's measured ceilings every stage reaches.", False)
    output: str | None = option("FILE.json for all numbers in seconds.")
    plot: str | None = option("FILE.png for bars of the stages (needs matplotlib).")

    def __post_init__(self):
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.startswith("cuda")
        self.size = self.size or ("full" if on_gpu else "mid")
        self.ways = self.ways or list(WAYS if on_gpu else ON_CPU)
        self.dtype = self.dtype or ("bfloat16" if on_gpu else "float32")
        known = {"variants": (self.variants or (), MID_SIZE), "ways": (self.ways, WAYS), "size": ([self.size], SIZES)}
        for name, (given, choices) in known.items():
            if unknown := sorted(set(given) - set(choices)):
                raise ValueError(f"{name}: no such {', '.join(unknown)}; there are {', '.join(choices)}")


SIZES = {"full": VARIANTS, "mid": MID_SIZE}


def main(argv: Sequence[str]) -> None:
    """Print the table as Markdown."""
    (options,) = parse_options((LatencyOptions,), argv, "bench latency", __doc__)
    if options.plot:
        from .latency_plot import plot_latencies  # before hours of measuring: matplotlib may be missing
    rows, notes = [], []
    ceilings = None
    if options.roofline:
        ceilings = measure_ceilings(torch.device(options.device), getattr(torch, options.dtype))
    print(f"{machine(options)}\n")
    print(_line(["variant", "mode", "batch", "steps", "way", *(f"{stage}, ms" for stage in STAGES)] + _TOTALS))
    print(_line(["---"] * (5 + len(STAGES) + len(_TOTALS))))
    for name in options.variants or MID_SIZE:
        variant = SIZES[options.size][name]
        for mode in options.modes or variant.modes:
            for batch in options.batch:
                for steps in options.steps:
                    found, refused = _measure(options, name, mode, batch, steps)
                    rows += found
                    notes += [f"{part}: {reason}" for part, reason in refused.items()]
                    print(*(_line(_cells(row)) for row in found), sep="\n", flush=True)
    print(*(f"\n{note}" for note in dict.fromkeys(notes)), sep="")
    if ceilings is not None:
        ceilings = ceilings.highest(measure_ceilings(torch.device(options.device), getattr(torch, options.dtype)))
        _add_shares(rows, ceilings)
        print(roofline_table(rows, ceilings))
    if options.output:
        report = {"machine": machine(options), "options": asdict(options), "canvas": CANVAS, "latency": rows}
        report["ceilings"] = None if ceilings is None else asdict(ceilings)
        atomic_write_text(Path(options.output), json.dumps(report, indent=2) + "\n")
    if options.plot:
        plot_latencies(rows, machine(options), Path(options.plot))


def machine(options: LatencyOptions) -> str:
    """What the numbers belong to."""
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()} CPU"
    threads = "" if options.device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    return f"{device}{threads}, torch {torch.__version__}, {options.dtype}, {options.size} size, seed {options.seed}"


def _measure(
    options: LatencyOptions, name: str, mode: str, batch: int, steps: int
) -> tuple[list[dict], dict[str, str]]:
    """A row per way, and what was refused, with its reason."""
    torch.manual_seed(options.seed)
    torch._dynamo.reset()
    dtype, variant = getattr(torch, options.dtype), SIZES[options.size][name]
    decision = Decision(variant, mode, dtype, options.text_tokens, options.device, batch)
    ways, report, latencies = Ways(decision, steps, options.seed), CompiledPolicy(), {}
    # The published image code has these two modes; what the video baseline does besides has no other way here.
    wanted = [way for way in options.ways if mode in ("prefix", "denoise") or not WAYS[way].published]
    last_level = max(LEVELS.index(WAYS[way].level) for way in wanted)
    for level in LEVELS[: last_level + 1]:
        if level != "eager":
            raise_level(ways, level, report, backend=options.backend, mode=options.compile_mode)
        here = [way for way in wanted if WAYS[way].level == level and not _is_refused(level, report)]
        # A way's first decision in its shapes compiles and captures; the second is as all later ones.
        latencies |= measure_ways(ways, here, options.repeats, warm_up=1 if level == "eager" else 2)
    work = _work(decision, mode, options, steps) if options.roofline else {}
    published = min(
        (latencies[way] for way in latencies if WAYS[way].published), key=lambda it: it.percentile(50), default=None
    )
    rows = []
    for way in wanted:
        row = {"variant": name, "edit_mode": mode, "batch": batch, "steps": steps, "way": way}
        if (latency := latencies.get(way)) is not None:
            row |= _numbers(latency, steps, published)
            row |= {"compiled": report.compiled, "captured": report.captured, "refused": report.refused}
            if work and not WAYS[way].published:
                row["work"] = {stage: asdict(part) for stage, part in work.items()}
        rows.append(row)
    return rows, report.refused


def _is_refused(level: str, report: CompiledPolicy) -> bool:
    return {"actions compiled": "actions", "compiled": "prefill", "graphs": "CUDA graphs"}.get(level) in report.refused


def _work(decision: Decision, mode: str, options: LatencyOptions, steps: int) -> dict[str, StageWork]:
    policy, vae = decision.policy, decision.frozen["vae"]
    parts = {"editing": policy.backbone.transformer, "expert": policy.action_expert, "vae": vae.encoder}
    weights = {part: sum(p.nbytes for p in network.parameters()) for part, network in parts.items()}
    cost = plan_cost(decision.variant, mode, options.text_tokens)
    return work_of_stages(cost, weights, getattr(torch, options.dtype), steps, len(decision.pixels))


def _numbers(latency: Latency, steps: int, published: Latency | None) -> dict:
    row = {f"{stage}_p50": latency.percentile(50, stage) for stage in STAGES}
    row |= {f"decision_p{percent}": latency.percentile(percent) for percent in PERCENTILES}
    row["action_step_p50"] = latency.percentile(50, "actions") / steps
    row["seconds"], row["peak_memory"] = latency.stages, latency.peak_memory
    if published is not None:
        row["published_over_this"] = published.percentile(50) / latency.percentile(50)
        row["largest_difference_of_actions"] = (latency.actions - published.actions).abs().max().item()
    return row


_TOTALS = ["action step, ms", *(f"decision p{percent}, ms" for percent in PERCENTILES)]
_TOTALS += ["best published / it", "difference", "peak, GiB"]


def _cells(row: dict) -> list[str]:
    times = [f"{stage}_p50" for stage in STAGES] + ["action_step_p50", *(f"decision_p{p}" for p in PERCENTILES)]
    cells = [str(row[name]) for name in ("variant", "edit_mode", "batch", "steps", "way")]
    cells += [f"{1000 * row[name]:.1f}" if name in row else "" for name in times]
    ratio, peak = row.get("published_over_this"), row.get("peak_memory")
    cells += ["", ""] if ratio is None else [f"{ratio:.2f}", f"{row['largest_difference_of_actions']:.1e}"]
    return [*cells, "" if peak is None else f"{peak / 2**30:.2f}"]


def _add_shares(rows: Sequence[dict], ceilings: Ceilings) -> None:
    """To our ways: the least time of every stage and of the decision, and its share of the measured one."""
    for row in rows:
        if "work" in row:
            floors = {stage: StageWork(**part).floor(ceilings) for stage, part in row["work"].items()}
            floors["decision"] = sum(floors.values())
            row["at_least"] = floors
            row["share_of_roofline"] = {stage: floor / row[f"{stage}_p50"] for stage, floor in floors.items()}


def roofline_table(rows: Sequence[dict], ceilings: Ceilings) -> str:
    """Our ways' stages against what the device can do."""
    columns = ["variant", "mode", "batch", "steps", "way", "stage", "TFLOP", "MiB", "bound by", "at least, ms"]
    lines = [
        f"\nMeasured ceilings: {ceilings.operations / 1e12:.3f} TFLOP/s, {ceilings.bandwidth / 1e9:.1f} GB/s.\n",
        _line([*columns, "took, ms", "share"]),
        _line(["---"] * (len(columns) + 2)),
    ]
    for row in rows:
        for stage, floor in row.get("at_least", {}).items():
            cells = [str(row[name]) for name in ("variant", "edit_mode", "batch", "steps", "way")]
            cells += [stage, *_work_cells(row["work"].get(stage), ceilings), f"{1000 * floor:.2f}"]
            cells += [f"{1000 * row[f'{stage}_p50']:.2f}", f"{100 * row['share_of_roofline'][stage]:.0f} %"]
            lines.append(_line(cells))
    return "\n".join(lines)


def _work_cells(part: dict | None, ceilings: Ceilings) -> list[str]:
    if part is None:
        return ["", "", ""]
    work = StageWork(**part)
    bound = "operations" if work.is_compute_bound(ceilings) else "bandwidth"
    return [f"{work.operations / 1e12:.4f}", f"{work.moved / 2**20:.0f}", bound]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
