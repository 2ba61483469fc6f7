"""A LeRobot 0.6 policy folder that points to a policy of this package: three JSON files, no weights.

`lerobot_policy_imagewam` (folder `integrations/`) is what LeRobot reads it with.
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from ..configuration_imagewam import ImageWAMConfig
from ..processing.contract import PolicyContract
from ..processing_imagewam import ImageWAMProcessor
from ..references import names_a_repo
from ..shipped import shipped_source

IDENTITY = {"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "IDENTITY"}
CAMERA_PREFIX = "observation.images."


def lerobot_features(contract: PolicyContract) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input and output features of a contract: `{"type", "shape"}` by name."""
    cameras = {
        f"{CAMERA_PREFIX}{camera.name}": {"type": "VISUAL", "shape": [3, camera.height, camera.width]}
        for camera in contract.cameras
    }
    state = {"observation.state": {"type": "STATE", "shape": [len(contract.state.names)]}}
    return {**cameras, **state}, {"action": {"type": "ACTION", "shape": [len(contract.action.names)]}}


def lerobot_files(repo: str, revision: str | None = None, embodiment: str | None = None) -> dict[str, dict[str, Any]]:
    """File name -> content. Nothing but the policy's configuration files is fetched.

    Args:
        repo: on the hub.
        revision: branch, tag or commit; what is written is the commit that it stands for now.
        embodiment: the robot, where the policy drives several.

    Raises:
        ValueError: `repo` is a folder, which would mean nothing on another machine.
        OSError: there is no such repo or revision, or it holds no policy.
    """
    if not names_a_repo(repo) or shipped_source(repo) != repo:
        raise ValueError(
            f"a LeRobot folder points to a repo on the hub, which other machines reach too; {repo} is none: upload it "
            "with `policy.push_to_hub(NAME)` and `processor.push_to_hub(NAME)`, and give that name"
        )
    try:
        commit = extract_commit_hash(cached_file(repo, CONFIG_NAME, revision=revision), None)
    except OSError as error:
        raise OSError(f"{repo} at {revision or 'main'} gave no {CONFIG_NAME}: {error}") from error
    config = ImageWAMConfig.from_pretrained(repo, revision=commit)
    processor = ImageWAMProcessor.from_pretrained(repo, revision=commit, embodiment=embodiment)
    return describe(config, processor, repo, commit)


def describe(
    config: ImageWAMConfig, processor: ImageWAMProcessor, repo: str, revision: str
) -> dict[str, dict[str, Any]]:
    """The files of a policy whose configuration and processor are here already."""
    inputs, outputs = lerobot_features(processor.contract)
    source = {"repo": repo, "revision": revision, "embodiment": processor.embodiment}
    policy = {
        "type": "imagewam",
        **{f"imagewam_{name}": value for name, value in source.items()},
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": IDENTITY,
        "horizon": config.action_horizon,
        "target_offsets": list(config.target_offsets),
        "n_action_steps": config.action_horizon,
    }
    # LeRobot's training hands its statistics to these steps by name: they have to be there, and change nothing.
    preprocessor = [
        _step("rename_observations_processor", rename_map={}),
        _step("to_batch_processor"),
        _step("imagewam_processor", **source),
        _step("device_processor", device="cpu", float_dtype=None),
        _step("normalizer_processor", eps=1e-8, features={**inputs, **outputs}, norm_map=IDENTITY),
    ]
    postprocessor = [
        _step("unnormalizer_processor", eps=1e-8, features=outputs, norm_map=IDENTITY),
        _step("device_processor", device="cpu", float_dtype=None),
    ]
    return {
        "config.json": policy,
        "policy_preprocessor.json": {"name": "policy_preprocessor", "steps": preprocessor},
        "policy_postprocessor.json": {"name": "policy_postprocessor", "steps": postprocessor},
    }


def write_lerobot_files(files: dict[str, dict[str, Any]], folder: str | os.PathLike) -> None:
    """Write them into a folder that exists."""
    for name, content in files.items():
        (Path(folder) / name).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _step(name: str, **config: Any) -> dict[str, Any]:
    return {"registry_name": name, "config": config}
