"""`imagewam info`: a policy's contract and size, or what a dataset folder holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import ImageWAMConfig, ImageWAMProcessor
from ..data.lerobot_dataset import LeRobotDataset
from ..hub.policy_facts import Rows, contract_rows, dimensions, parameter_rows, variant_rows
from ..shipped import shipped_source
from .options import parse_options


@dataclass
class InfoOptions:
    """What to look at."""

    path: str = field(metadata={"help": "Folder or repo of a policy, or folder of a LeRobot dataset."})


def main(argv: Sequence[str]) -> None:
    """Print the table; nothing is loaded but configuration files."""
    words = ["--path", *argv] if argv and not argv[0].startswith("-") else argv
    (options,) = parse_options((InfoOptions,), words, "info", __doc__)
    path = str(shipped_source(options.path))
    rows = dataset_rows(path) if Path(path, "meta").is_dir() else policy_rows(path)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def dataset_rows(path: str) -> Rows:
    """Episodes, cameras, state and actions of a LeRobot folder."""
    dataset = LeRobotDataset(path)
    lengths = list(dataset.episode_lengths.values())
    return [
        ("dataset", f"LeRobot {dataset.metadata.codebase_version}, robot {dataset.robot_type}"),
        ("episodes", f"{len(lengths)}, {min(lengths)} to {max(lengths)} frames, {sum(lengths)} in all"),
        ("fps", f"{dataset.fps:g}"),
        *((f"camera {name}", f"{height} x {width}") for name, (height, width) in dataset.camera_sizes.items()),
        ("state", dimensions(dataset.state_names)),
        ("actions", dimensions(dataset.action_names)),
        *(("task", text) for text in dataset.tasks.values()),
    ]


def policy_rows(path: str) -> Rows:
    """Variant, parameter counts and contract of a policy."""
    config = ImageWAMConfig.from_pretrained(path)
    processor = ImageWAMProcessor.from_pretrained(path)
    rows = [*variant_rows(config), *parameter_rows(config)]
    if len(processor.embodiments) < 2:
        return rows + contract_rows(processor)
    for name in processor.embodiments:
        rows += [("robot", name), *contract_rows(processor.for_embodiment(name))]
    return rows
