"""Checks before the first step: do policy, processor and dataset speak of the same robot?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..configuration_imagewam import ImageWAMConfig
from ..data.action_chunks import ActionChunkDataset
from ..data.lerobot_dataset import LeRobotDataset
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing.contract import PolicyContract
from ..processing_imagewam import ImageWAMProcessor


def check_policy_matches_contract(config: ImageWAMConfig, contract: PolicyContract) -> None:
    """Raise ValueError unless the policy's action, state and horizon sizes are those of the processor's contract."""
    expected = {
        "action_dim": len(contract.action.names),
        "state_dim": len(contract.state.names),
        "action_horizon": contract.horizon,
    }
    _raise_if_different("policy config", {name: getattr(config, name) for name in expected}, "contract", expected)


def check_canvas_fits(policy: ImageWAMForActionPrediction, processor: ImageWAMProcessor) -> None:
    """Raise ValueError unless the processor's canvas divides into the policy's image tokens."""
    multiple, (height, width) = policy.backbone.image_multiple, processor.layout.canvas_size
    if height % multiple or width % multiple:
        raise ValueError(
            f"the cameras give a canvas of {height} x {width} (height x width), the policy's image encoder needs "
            f"multiples of {multiple}"
        )


def check_dataset_matches_contract(dataset: Dataset, contract: PolicyContract) -> None:
    """Raise ValueError unless a dataset has the contract's cameras, state, actions, horizon and frame rate."""
    _check_sample(dataset[0], contract)
    if isinstance(dataset, ActionChunkDataset):
        check_recording_matches_contract(dataset.dataset, contract)


def check_recording_matches_contract(dataset: LeRobotDataset, contract: PolicyContract) -> None:
    """Raise ValueError unless the names of state and actions, and the frame rate if the contract has one, agree."""
    found = {"fps": float(dataset.fps), "state": dataset.state_names, "actions": dataset.action_names}
    expected = {"state": contract.state.names, "actions": contract.action.names}
    if contract.fps is not None:  # published policies do not say
        expected["fps"] = contract.fps
    _raise_if_different("dataset", found, "contract", expected)


def check_target_frames(dataset: Dataset, config: ImageWAMConfig) -> None:
    """Raise ValueError unless a dataset with images has the target frames that the policy predicts."""
    if isinstance(dataset, ActionChunkDataset) and dataset.with_images:
        found, expected = {"target_offsets": list(dataset.target_offsets)}, {"target_offsets": config.target_offsets}
        _raise_if_different("dataset", found, "policy config", expected)


def _check_sample(sample: Mapping[str, Any], contract: PolicyContract) -> None:
    if "images" in sample:
        _check_cameras(set(sample["images"]), contract)
    expected = {
        "actions": (contract.horizon, len(contract.action.names)),
        "state": (len(contract.state.names),),
    }
    _raise_if_different("dataset", {name: np.shape(sample[name]) for name in expected}, "contract", expected)


def _check_cameras(found: set[str], contract: PolicyContract) -> None:
    missing = {camera.name for camera in contract.cameras} - found
    if missing:
        raise ValueError(
            f"the processor's contract needs the cameras {sorted(missing)}, the dataset gives {sorted(found)}"
        )


def _raise_if_different(name: str, values: dict[str, Any], expected_name: str, expected: dict[str, Any]) -> None:
    different = [key for key in expected if values[key] != expected[key]]
    if different:
        lines = [f"{key}: {name} has {values[key]}, {expected_name} says {expected[key]}" for key in different]
        raise ValueError("; ".join(lines))
