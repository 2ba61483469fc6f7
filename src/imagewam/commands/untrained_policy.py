"""A published variant with fresh weights that fits an environment: for measuring what it takes, not what it can."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from .. import ImageWAMForActionPrediction, ImageWAMProcessor
from ..evaluation.environment import EnvironmentSpec
from ..inference.decision import Decision
from ..inference.variants import Variant
from ..processing.camera_layout import CameraSpec
from ..processing.contract import ActionSpec, PolicyContract, StateSpec
from ..processing.normalization import identity_statistics
from ..tiny.pipeline import build_tiny_tokenizer


def untrained_policy(
    variant: Variant,
    edit_mode: str,
    spec: EnvironmentSpec,
    instructions: Iterable[str],
    *,
    dtype: torch.dtype,
    device: str,
    seed: int,
) -> tuple[ImageWAMForActionPrediction, ImageWAMProcessor]:
    """Policy and processor; cameras stand side by side in the sizes in which the environment renders them.

    Args:
        instructions: that the tokenizer learns its words from.

    Raises:
        ValueError: the variant reads words and image together, which needs its own tokenizer.
    """
    sizes = {"state_dim": len(spec.state_names), "action_dim": len(spec.action_names)}
    torch.manual_seed(seed)
    policy = Decision(replace(variant, settings={**variant.settings, **sizes}), edit_mode, dtype, device=device).policy
    if policy.backbone.text_sees_image:
        raise ValueError(f"{variant.name} reads the image among the words: measure a checkpoint of it instead")
    cameras = tuple(
        CameraSpec(name, *size, rotate_180=bool(spec.upside_down), source_size=size)
        for name, size in spec.camera_sizes.items()
    )
    contract = PolicyContract(
        cameras=cameras,
        layout="single" if len(cameras) == 1 else "horizontal",
        state=StateSpec(spec.state_names),
        action=ActionSpec(spec.action_names, gripper=spec.gripper),
        fps=spec.fps,
        horizon=policy.config.action_horizon,
    )
    processor = ImageWAMProcessor(
        contract,
        identity_statistics(sizes["state_dim"], sizes["action_dim"]),
        tokenizer=build_tiny_tokenizer(instructions),
        prompt_format=policy.backbone.prompt_format,
    )
    return policy, processor
