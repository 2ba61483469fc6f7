"""`imagewam canvas`: a picture of what a policy sees of a dataset, as it is and as it is augmented in training."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import ImageWAMProcessor
from ..atomic import atomic_file
from ..data.action_chunks import ActionChunkDataset
from ..data.contact_sheet import contact_sheet
from ..processing.camera_layout import CameraLayout
from ..processing.contract import PolicyContract
from .data_options import DataOptions
from .options import option, parse_options


@dataclass
class CanvasOptions:
    """What to show of it."""

    _argument_group_name = "picture"

    output: str = field(metadata={"help": "FILE.png to write."})
    checkpoint: str | None = option("Policy whose eyes to look through; default: those of a policy to be trained.")
    samples: int = option("Frames, evenly spaced over the dataset: one row each.", 4)
    draws: int = option("How often each is augmented.", 2)
    seed: int = option("Of the augmentation.", 0)


def main(argv: Sequence[str]) -> None:
    """Write the picture: now and target, plain, then augmented if the options or the preset have an augmentation."""
    words = ["--dataset", *argv] if argv and not argv[0].startswith("-") else argv
    data, options = parse_options((DataOptions, CanvasOptions), words, "canvas", __doc__)
    contract = checkpoint_contract(data, options.checkpoint) if options.checkpoint else None
    (dataset, *_), _ = data.load()
    contract = contract or data.contract(dataset)
    samples = ActionChunkDataset(dataset, contract.horizon, [camera.name for camera in contract.cameras])
    indices = np.linspace(0, len(samples) - 1, options.samples + 2)[1:-1].round().astype(int).tolist()
    layout = CameraLayout(contract.cameras, contract.layout)
    sheet = contact_sheet(samples, layout, indices, data.image_augmentation, options.draws, options.seed)
    with atomic_file(options.output) as path:
        sheet.save(path)
    print(f"written: {options.output}, {layout.canvas_size[0]} x {layout.canvas_size[1]} pixels per canvas")


def checkpoint_contract(data: DataOptions, checkpoint: str) -> PolicyContract:
    """The contract of a policy; ValueError where the options say that it sees something else."""
    if settled := data.settled_by_checkpoint:
        raise ValueError(f"{', '.join(settled)}: already settled by the checkpoint {checkpoint}")
    contract = ImageWAMProcessor.from_pretrained(checkpoint).contract
    data.check_policy(contract, checkpoint)
    return contract
