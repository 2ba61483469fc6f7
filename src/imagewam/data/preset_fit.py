"""Does a dataset fit a preset, and the preset a policy? Cameras, state and actions are found under the names that
recordings give them."""

from collections.abc import Sequence

import numpy as np

from ..processing.contract import PolicyContract
from .features import vector_size
from .lerobot_dataset import ACTION_KEY, STATE_KEY, LeRobotDataset
from .lerobot_metadata import LeRobotMetadata
from .presets import DataPreset
from .renamed_dataset import RenamedDataset

Recording = LeRobotDataset | RenamedDataset

# LeRobot's own key, and the one without its prefix that older copies have.
VECTOR_SOURCES = {STATE_KEY: (STATE_KEY, "state"), ACTION_KEY: (ACTION_KEY, "actions")}


def fit_recording(
    dataset: LeRobotDataset,
    preset: DataPreset | None,
    cameras: Sequence[str] | None = None,
    turned: bool = False,
    gripper: str | None = None,
) -> Recording:
    """The dataset as a policy knows it: under the preset's names, or under its own where there is no preset.

    Args:
        cameras: with a preset, see `find_cameras`.
        turned: turn every image by 180 degrees on reading.
        gripper: what the gripper's actions mean, in words, if not what the preset says; they are not checked then.

    Raises:
        ValueError: the dataset does not fit the preset; says what it has and what the preset expects.
    """
    if preset is None:
        names = {name: name for name in dataset.camera_names}
        return RenamedDataset(dataset, names, turned=True) if turned else dataset
    renamed = fit_preset(preset, dataset, cameras, turned)
    if not gripper:
        check_gripper(preset, renamed)
    return renamed


def check_policy(
    preset: DataPreset,
    contract: PolicyContract,
    policy: str,
    turned: bool = False,
    rotate_180: Sequence[str] | None = None,
    gripper: str | None = None,
) -> None:
    """Raise ValueError if a policy would see the preset's dataset otherwise than it learned to.

    Args:
        contract: the policy's.
        policy: its name, for the message.
        turned: the dataset's images are turned by 180 degrees on reading.
        rotate_180: cameras, by the preset's names, that the policy is to turn; default: none, or all if `turned`.
        gripper: what the gripper's actions in the dataset mean, in words; default: what the preset says.
    """
    names = [camera.name for camera in preset.cameras]
    mine = {
        "cameras": names,
        "rotate_180": sorted((names if turned else []) if rotate_180 is None else rotate_180),
        "gripper": gripper or preset.action.gripper,
    }
    theirs = {
        "cameras": [camera.name for camera in contract.cameras],
        "rotate_180": sorted(camera.name for camera in contract.cameras if camera.rotate_180),
        "gripper": contract.action.gripper,
    }
    changed = [
        f"{name}: {mine[name]} in the preset, {theirs[name]} in the policy"
        for name in mine
        if mine[name] != theirs[name]
    ]
    if changed:
        raise ValueError(
            f"the policy of {policy} does not fit preset {preset.name}: {'; '.join(changed)} "
            f"(--turn_images makes a dataset whose images stand upright fit a policy that turns its images; --gripper "
            f"says what the dataset's gripper values mean)"
        )


def fit_preset(
    preset: DataPreset, dataset: LeRobotDataset, cameras: Sequence[str] | None = None, turned: bool = False
) -> RenamedDataset:
    """The dataset under the preset's names.

    Args:
        cameras: see `find_cameras`.
        turned: turn every image by 180 degrees on reading.

    Raises:
        ValueError: the dataset does not fit; says what it has and what the preset expects.
    """
    expected = {STATE_KEY: preset.state.names, ACTION_KEY: preset.action.names}
    features = {key: _find_vector(preset, dataset, key, names) for key, names in expected.items()}
    found = find_cameras(preset, dataset, cameras)
    return RenamedDataset(dataset, found, features, {} if preset.keeps_names else expected, turned)


def find_cameras(
    preset: DataPreset, dataset: LeRobotDataset | LeRobotMetadata, cameras: Sequence[str] | None = None
) -> dict[str, str]:
    """The dataset's camera by the preset's name, in the preset's order.

    Args:
        cameras: the dataset's names of the preset's cameras, in order; by default found by `camera_sources`.

    Raises:
        ValueError: there are none, or several; says what the dataset has and what the preset expects.
    """
    sources = {camera.name: names for camera, names in zip(preset.cameras, preset.camera_sources, strict=True)}
    if cameras is not None:
        return _given_cameras(preset, dataset, cameras)
    found = {name: [camera for camera in dataset.camera_names if camera in sources[name]] for name in sources}
    if any(len(matches) != 1 for matches in found.values()):
        expected = "; ".join(f"{name}: {' or '.join(names)}" for name, names in sources.items())
        raise ValueError(
            f"preset {preset.name} expects one camera each ({expected}), {dataset.root} has "
            f"{list(dataset.camera_names)}: name them with --cameras, in the order {list(sources)}"
        )
    return {name: matches[0] for name, matches in found.items()}


def check_gripper(preset: DataPreset, dataset: RenamedDataset) -> None:
    """Raise ValueError if the gripper's actions in the first episode do not go from 0 to 1, as the preset has them.

    Recordings in the convention of LIBERO's simulator go from -1 to 1, with open and closed the other way round.
    """
    actions = dataset.values(ACTION_KEY, next(iter(dataset.episode_lengths)))
    for index in preset.gripper_index:
        low, high = np.min(actions[:, index]), np.max(actions[:, index])
        if low < -0.1 or high > 1.1:  # room for a gripper that overshoots
            raise ValueError(
                f"preset {preset.name} expects action {dataset.action_names[index]!r} from 0 to 1 "
                f"({preset.action.gripper}); in {dataset.root} it goes from {low:g} to {high:g}: say with --gripper "
                f"what its values mean, if they are to be learned as they are"
            )


def _find_vector(preset: DataPreset, dataset: LeRobotDataset, key: str, names: Sequence[str]) -> str:
    found = next((source for source in VECTOR_SOURCES[key] if source in dataset.features), None)
    if found is None:
        raise ValueError(
            f"preset {preset.name} expects one of the features {list(VECTOR_SOURCES[key])}, {dataset.root} has "
            f"{sorted(dataset.features)}"
        )
    feature = dataset.feature(found)
    given = str(feature.get("names"))
    if vector_size(found, feature) != len(names) or any(part in given for part in preset.foreign_names):
        raise ValueError(
            f"preset {preset.name} expects {len(names)} dimensions {list(names)}, feature {found!r} of {dataset.root} "
            f"has {vector_size(found, feature)}, named {given}"
        )
    return found


def _given_cameras(
    preset: DataPreset, dataset: LeRobotDataset | LeRobotMetadata, cameras: Sequence[str]
) -> dict[str, str]:
    names = [camera.name for camera in preset.cameras]
    if len(cameras) != len(names):
        raise ValueError(f"preset {preset.name} has the cameras {names}, given are {list(cameras)}")
    for camera in cameras:
        if camera not in dataset.camera_names:
            raise ValueError(f"{dataset.root} has no camera {camera!r}; it has {list(dataset.camera_names)}")
    return dict(zip(names, cameras, strict=True))
