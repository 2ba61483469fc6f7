"""Checks before the first step: do policy, processor and dataset speak of the same robot?"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def check_policy_matches_contract(config: Any, contract: Any) -> None:
    """Raise ValueError unless the policy's action, state and horizon sizes are those of the processor's contract."""
    expected = {
        "action_dim": len(contract.action.names),
        "state_dim": len(contract.state.names),
        "action_horizon": contract.horizon,
    }
    _raise_if_different("policy config", {name: getattr(config, name) for name in expected}, "contract", expected)


def check_sample_matches_contract(sample: Mapping[str, Any], contract: Any) -> None:
    """Raise ValueError unless a dataset's sample has the contract's cameras, state and action sizes and horizon."""
    missing = {camera.name for camera in contract.cameras} - set(sample["images"])
    if missing:
        raise ValueError(
            f"the processor's contract needs the cameras {sorted(missing)}, "
            f"the dataset gives {sorted(sample['images'])}"
        )
    expected = {
        "actions": (contract.horizon, len(contract.action.names)),
        "state": (len(contract.state.names),),
    }
    _raise_if_different("dataset", {name: np.shape(sample[name]) for name in expected}, "contract", expected)


def check_fps(fps: float, contract: Any) -> None:
    """Raise ValueError unless the dataset was recorded at the contract's rate, on which a chunk's duration hangs."""
    _raise_if_different("dataset", {"fps": float(fps)}, "contract", {"fps": float(contract.fps)})


def _raise_if_different(name: str, values: dict[str, Any], expected_name: str, expected: dict[str, Any]) -> None:
    different = [key for key in expected if values[key] != expected[key]]
    if different:
        lines = [f"{key}: {name} has {values[key]}, {expected_name} says {expected[key]}" for key in different]
        raise ValueError("; ".join(lines))
