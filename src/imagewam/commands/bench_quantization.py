"""`imagewam bench quantization`: how far actions move in lower precision, and what the weights then take.

Of the published variants with random weights, at about a twentieth of their size or in full; or of a checkpoint, on
frames of a dataset. Every precision decides on the same observations from the same noise as float32. All that a
decision needs is in the precision, VAE and text encoder too; of int8 and fp8, which are for the weights of the editing
transformer's blocks only, there is a row for each precision of the rest.
"""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from .. import ImageWAMForActionPrediction, ImageWAMProcessor
from ..atomic import atomic_write_text
from ..inference.decision import NUM_TEXT_TOKENS, Decision
from ..inference.mid_size import MID_SIZE, VOCABULARY
from ..inference.precision_error import Observe, Precision, PrecisionError, measure_precisions
from ..inference.quantized import PRECISIONS, require_torchao
from ..inference.variants import VARIANTS
from .options import option, parse_options
from .predict import PredictOptions, read_observation

DTYPES = ("float32", "bfloat16", "float16")
SIZES = {"full": VARIANTS, "mid": MID_SIZE}
MIB = 2**20


@dataclass
class QuantizationOptions:
    """What to measure."""

    variants: list[str] | None = option(f"Some of {', '.join(MID_SIZE)}; default all.")
    modes: list[str] | None = option("Edit modes; default: those of the variant.")
    checkpoint: str | None = option("Policy to measure in their place: repo or folder.")
    dataset: str | None = option("Folder of a LeRobot dataset with the observations for a checkpoint.")
    episode: int = option("Episode of the dataset.", 0)
    frames: list[int] = field(default_factory=lambda: [0], metadata={"help": "Frames of the episode."})
    precisions: list[str] = field(
        default_factory=lambda: [*DTYPES, *PRECISIONS],
        metadata={"help": f"Some of {', '.join((*DTYPES, *PRECISIONS))}."},
    )
    rest: list[str] = field(
        default_factory=lambda: list(DTYPES[:2]),
        metadata={"help": "Of everything but the blocks' weights, where these are in 8 bits."},
    )
    batch: int = option("Observations, drawn by the seed, for a variant.", 4)
    size: Literal["mid", "full"] = option("mid for a twentieth of the variants.", "mid")
    device: str = option("Where to compute, such as cuda.", "cpu")
    seed: int = option("Of weights, observations and noise.", 0)
    output: str | None = option("FILE.json for the numbers; weights in bytes.")

    def __post_init__(self):
        known = {
            "variants": (self.variants or (), MID_SIZE),
            "precisions": (self.precisions, (*DTYPES, *PRECISIONS)),
            "rest": (self.rest, DTYPES),
        }
        for name, (given, choices) in known.items():
            if unknown := sorted(set(given) - set(choices)):
                raise ValueError(f"{name}: no such {', '.join(unknown)}; there are {', '.join(choices)}")
        if bool(self.checkpoint) != bool(self.dataset):
            raise ValueError(
                "a checkpoint is measured on frames of a dataset: give --checkpoint and --dataset, or none"
            )
        if self.checkpoint and (self.variants or self.modes):
            raise ValueError("a checkpoint is measured in the place of variants: give no --variants and no --modes")
        if set(self.precisions) & set(PRECISIONS):
            require_torchao()

    @property
    def rows(self) -> list[Precision]:
        """The precisions to measure, in order."""
        plain = [Precision(name, name) for name in self.precisions if name in DTYPES]
        return plain + [Precision(name, rest) for name in self.precisions if name in PRECISIONS for rest in self.rest]


def main(argv: Sequence[str]) -> None:
    """Print the table as Markdown."""
    (options,) = parse_options((QuantizationOptions,), argv, "bench quantization", __doc__)
    rows = []
    print(f"{_machine(options)}\n")
    columns = ["policy", "edit mode", "blocks' weights", "all else", "editing, MiB", "expert, MiB"]
    columns += ["VAE and text encoder, MiB", "relative error", "largest error"]
    print(_line(columns))
    print(_line(["---"] * len(columns)))
    for name, policy, observe in _policies(options):
        for row in measure_precisions(policy, observe, options.rows, options.seed):
            mode = policy.config.edit_mode
            rows.append({"policy": name, "edit_mode": mode, **asdict(row), "precision": row.precision._asdict()})
            print(_line([name, mode, *_cells(row)]), flush=True)
    if options.output:
        report = {"machine": _machine(options), "options": asdict(options), "quantization": rows}
        atomic_write_text(Path(options.output), json.dumps(report, indent=2) + "\n")


def _policies(options: QuantizationOptions) -> Iterator[tuple[str, ImageWAMForActionPrediction, Observe]]:
    """Name, policy in float32, and what makes its observations."""
    if options.checkpoint:
        policy = ImageWAMForActionPrediction.from_pretrained(options.checkpoint, dtype=torch.float32)
        inputs = _recorded(options)
        yield options.checkpoint, policy.eval().to(options.device), lambda policy: _moved(inputs, policy)
        return
    for name in options.variants or MID_SIZE:
        variant = SIZES[options.size][name]
        for mode in options.modes or variant.modes:
            yield name, *_random(options, name, mode)


def _recorded(options: QuantizationOptions) -> dict[str, Any]:
    """Frames of the dataset as the checkpoint's processor reads them."""
    processor = ImageWAMProcessor.from_pretrained(options.checkpoint)
    where = {"checkpoint": options.checkpoint, "dataset": options.dataset, "episode": options.episode}
    samples = [read_observation(PredictOptions(**where, frame=frame), processor) for frame in options.frames]
    batch = {name: [sample[name] for sample in samples] for name in ("images", "instruction", "state")}
    return dict(processor(**batch, return_tensors="pt"))


def _random(options: QuantizationOptions, name: str, mode: str) -> tuple[ImageWAMForActionPrediction, Observe]:
    torch.manual_seed(options.seed)
    decision = Decision(SIZES[options.size][name], mode, torch.float32, NUM_TEXT_TOKENS, options.device, options.batch)
    generator = torch.Generator().manual_seed(options.seed)
    pixels = torch.rand(decision.pixels.shape, generator=generator) * 2 - 1
    state = torch.randn(decision.state.shape, generator=generator)
    ids = torch.randint(1, VOCABULARY, (options.batch, NUM_TEXT_TOKENS), generator=generator)

    def observe(policy: ImageWAMForActionPrediction) -> dict[str, Any]:
        inputs = {"pixel_values": pixels, "state": state, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if not policy.backbone.text_sees_image:
            return _moved(inputs, policy)
        # Its encoder looks for an image among the ids, which no tokenizer has put there.
        embeds = decision.variant.read(policy.backbone, NUM_TEXT_TOKENS, pixels.to(policy.device))
        return _moved({"pixel_values": pixels, "state": state, "prompt_embeds": embeds}, policy)

    return decision.policy, observe


def _moved(inputs: dict[str, Any], policy: ImageWAMForActionPrediction) -> dict[str, Any]:
    return {name: value.to(policy.device) for name, value in inputs.items()}


def _machine(options: QuantizationOptions) -> str:
    """What the numbers belong to."""
    on_gpu = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU"
    what = f"{options.size} size" if options.checkpoint is None else f"{len(options.frames)} frames"
    return f"{device}, torch {torch.__version__}, {what}, seed {options.seed}"


def _cells(row: PrecisionError) -> list[str]:
    sizes = (row.editing, row.expert, row.frozen)
    return [*row.precision, *(f"{size / MIB:.1f}" for size in sizes), f"{row.relative:.1e}", f"{row.largest:.1e}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
