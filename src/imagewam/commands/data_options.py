"""Data options of `imagewam train`, and what they mean for episodes and contract."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.lerobot_dataset import LeRobotDataset
from ..data.splits import parse_episodes
from ..processing.camera_layout import CameraSpec
from ..processing.contract import ActionSpec, PolicyContract, StateSpec
from ..training.baselines import matching_state_index
from .options import option


@dataclass
class DataOptions:
    """Which episodes, and how the policy sees them."""

    _argument_group_name = "data"

    dataset: str = field(metadata={"help": "Folder of a LeRobot dataset, v2.1 or v3.0."})
    train_episodes: str | None = option("Episodes to train on, such as 0:13 or 0:3,7; default: all but the held-out.")
    eval_episodes: str | None = option("Held-out episodes; default: none, and no evaluation.")
    cameras: list[str] | None = option("Camera names in the order of the layout; default: all of the dataset.")
    layout: Literal["single", "horizontal", "robotwin"] | None = option(
        "single, horizontal or robotwin; default: single, or horizontal for several cameras."
    )
    camera_sizes: list[str] | None = option("HEIGHTxWIDTH on the canvas, one for all or one per camera (224x224).")
    rotate_180: list[str] | None = option("Cameras whose images are turned upside down.")
    horizon: int | None = option("Actions per chunk, and steps to the target frame (16; 32 in fastwam).")
    state_normalization: Literal["min_max", "mean_std", "quantiles"] | None = option(
        "min_max, mean_std or quantiles (min_max)."
    )
    action_normalization: Literal["min_max", "mean_std", "quantiles"] | None = option(
        "min_max, mean_std or quantiles (min_max)."
    )
    relative_actions: list[str] | None = option("Actions taken relative to the state of the same name; `all` for all.")
    precompute: bool = option("Encode all frames and instructions once, before training, and keep the result.", False)
    dataset_repo: str | None = option("Name under which the contract remembers the dataset.")
    dataset_revision: str | None = option("Its revision.")

    CONTRACT = (
        "cameras layout camera_sizes rotate_180 horizon state_normalization action_normalization relative_actions"
        " dataset_repo dataset_revision"
    ).split()

    def load(self) -> tuple[LeRobotDataset, LeRobotDataset | None]:
        """Training and held-out episodes; ValueError if they overlap."""
        train, held_out = parse_episodes(self.train_episodes), parse_episodes(self.eval_episodes)
        if train is None and held_out is not None:
            train = sorted(set(LeRobotDataset(self.dataset).episode_lengths) - set(held_out))
        if train and held_out and set(train) & set(held_out):
            raise ValueError(f"episodes {sorted(set(train) & set(held_out))} are both trained on and held out")
        return LeRobotDataset(self.dataset, train), LeRobotDataset(self.dataset, held_out) if held_out else None

    def contract(self, dataset: LeRobotDataset, horizon: int = 16) -> PolicyContract:
        """The contract of a policy that is trained on this dataset with these options.

        Args:
            horizon: where the options name none.
        """
        cameras = self.cameras or dataset.camera_names
        repo = self.dataset_repo and {"repo": self.dataset_repo, "revision": self.dataset_revision}
        return PolicyContract(
            cameras=tuple(self._camera(name, size) for name, size in zip(cameras, self._sizes(cameras), strict=True)),
            layout=self.layout or ("single" if len(cameras) == 1 else "horizontal"),
            state=StateSpec(names=dataset.state_names, normalization=self.state_normalization or "min_max"),
            action=ActionSpec(
                names=dataset.action_names,
                normalization=self.action_normalization or "min_max",
                relative_to_state=self._relative_to_state(dataset),
            ),
            fps=dataset.fps,
            horizon=self.horizon or horizon,
            dataset=repo,
        )

    def _camera(self, name: str, size: str) -> CameraSpec:
        height, cross, width = size.partition("x")
        if not (cross and height.isdigit() and width.isdigit()):
            raise ValueError(f"camera size {size!r} is not HEIGHTxWIDTH")
        return CameraSpec(name, int(height), int(width), rotate_180=name in (self.rotate_180 or ()))

    def _sizes(self, cameras: list[str]) -> list[str]:
        sizes = self.camera_sizes or ["224x224"]
        sizes = sizes * len(cameras) if len(sizes) == 1 else sizes
        if len(sizes) != len(cameras):
            raise ValueError(f"{len(sizes)} camera sizes for {len(cameras)} cameras: {sizes}, {list(cameras)}")
        return sizes

    def _relative_to_state(self, dataset: LeRobotDataset) -> tuple[int | None, ...] | None:
        if not self.relative_actions:
            return None
        names = dataset.action_names if self.relative_actions == ["all"] else self.relative_actions
        unknown = set(names) - set(dataset.action_names)
        if unknown or matching_state_index(dataset.state_names, names) is None:
            missing = sorted(unknown or set(names) - set(dataset.state_names))
            raise ValueError(f"relative actions {missing} have no namesake among both states and actions")
        return tuple(dataset.state_names.index(name) if name in names else None for name in dataset.action_names)


def contract_options(contract: PolicyContract) -> dict[str, Any]:
    """The options of `DataOptions.CONTRACT`, spelled out, that make this contract."""
    relative = contract.action.relative_to_state or ()
    names = zip(contract.action.names, relative, strict=False)
    return {
        "cameras": [camera.name for camera in contract.cameras],
        "layout": contract.layout,
        "camera_sizes": [f"{camera.height}x{camera.width}" for camera in contract.cameras],
        "rotate_180": [camera.name for camera in contract.cameras if camera.rotate_180],
        "horizon": contract.horizon,
        "state_normalization": contract.state.normalization,
        "action_normalization": contract.action.normalization,
        "relative_actions": [name for name, index in names if index is not None],
        "dataset_repo": contract.dataset and contract.dataset["repo"],
        "dataset_revision": contract.dataset and contract.dataset["revision"],
    }
