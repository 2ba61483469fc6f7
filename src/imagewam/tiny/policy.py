"""The tiny policy: built on the fitted pipeline, trained on the recorded episodes from latents encoded once."""

from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from transformers import set_seed

from ..data.action_chunks import ActionChunkDataset
from ..data.lerobot_dataset import LeRobotDataset
from ..data.statistics import compute_statistics
from ..data.training_data import training_data_of
from ..evaluation.environment import EnvironmentSpec
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing.camera_layout import CameraSpec
from ..processing.contract import ActionSpec, PolicyContract, StateSpec
from ..processing_imagewam import ImageWAMProcessor
from ..training.arguments import ImageWAMTrainingArguments
from ..training.baselines import mean_action
from ..training.checkpoints import last_complete_checkpoint
from ..training.precomputed import PrecomputedCollator
from ..training.trainer import ImageWAMTrainer
from .settings import TinySettings

ACTION_WIDTH = 128
CACHE = "cache"  # of encoded frames and instructions, beside the dataset
# Tokens of 16 x 16 pixels: with the finer ones of FLUX.2's own VAE a step would take four times as long.
SIZES = {"vae_channels": (8, 24, 48, 64), "latent_channels": 16, "text_layers": 6, "text_width": 48}
TEXT_LAYERS = [2, 4, 6]


def contract_of(spec: EnvironmentSpec, horizon: int) -> PolicyContract:
    """What an environment shows and takes, cameras side by side."""
    cameras = [CameraSpec(name, *size, source_size=size) for name, size in spec.camera_sizes.items()]
    return PolicyContract(
        cameras=tuple(cameras),
        layout="horizontal",
        state=StateSpec(names=spec.state_names),
        action=ActionSpec(names=spec.action_names, gripper=spec.gripper),
        fps=spec.fps,
        horizon=horizon,
    )


def new_policy(
    pipeline: Flux2KleinPipeline, contract: PolicyContract, num_inference_steps: int = 10, **changes: Any
) -> ImageWAMForActionPrediction:
    """An untrained policy of three to four million parameters that acts from the context alone.

    The context is modulated by time 0 in training as in inference: no time that it was not trained at, and one
    context for all steps.

    Args:
        changes: other arguments of `from_editing_pipeline`.
    """
    arguments = {
        "backbone_options": {"text_layers": TEXT_LAYERS},
        "action_hidden_size": ACTION_WIDTH,
        "edit_mode": "prefix",
        "context_timestep": 0,
        "num_inference_steps": num_inference_steps,
    }
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline,
        action_dim=len(contract.action.names),
        state_dim=len(contract.state.names),
        action_horizon=contract.horizon,
        **{**arguments, **changes},
    )


def train_policy(
    pipeline: Flux2KleinPipeline,
    contract: PolicyContract,
    dataset_folder: Path,
    output_dir: Path,
    settings: TinySettings,
) -> ImageWAMTrainer:
    """Train on the recorded episodes, going on from the last checkpoint in `output_dir` if there is one.

    Raises:
        SystemExit: stopped by SIGTERM; says at which step.
    """
    set_seed(settings.seed)
    train, held_out = (LeRobotDataset(dataset_folder, episodes) for episodes in settings.split())
    policy = new_policy(pipeline, contract, settings.num_inference_steps)
    args = training_arguments(output_dir, settings)
    trainer = tiny_trainer(policy, contract, train, held_out, args, dataset_folder.parent / CACHE)
    train_to_the_end(trainer, checkpoint_to_resume(output_dir))
    return trainer


def train_to_the_end(trainer: ImageWAMTrainer, resume_from: str | None = None) -> None:
    """Train; SystemExit, which says at which step, where a SIGTERM ended it before."""
    trainer.train(resume_from_checkpoint=resume_from)
    if trainer.stopped_at is not None:
        raise SystemExit(f"stopped by SIGTERM at step {trainer.stopped_at}")


def tiny_trainer(
    policy: ImageWAMForActionPrediction,
    contract: PolicyContract,
    train: LeRobotDataset,
    held_out: LeRobotDataset,
    args: ImageWAMTrainingArguments,
    cache: Path,
) -> ImageWAMTrainer:
    """The trainer of a policy on two parts of one recording, whose frames and instructions are encoded once."""
    statistics = compute_statistics(train, contract.horizon)
    # The usual template's words would be most of the context of a policy this small.
    processor = ImageWAMProcessor.for_policy(
        policy, contract, statistics, instruction_template="{instruction}", training_data=training_data_of(train)
    )
    return ImageWAMTrainer(
        model=policy,
        args=args,
        processing_class=processor,
        train_dataset=ActionChunkDataset(train, contract.horizon, [], with_images=False),
        eval_dataset=ActionChunkDataset(held_out, contract.horizon, [], with_images=False),
        data_collator=PrecomputedCollator(policy, processor, [train, held_out], folder=cache),
        train_statistics=statistics,
        baselines={"mean_action": mean_action(statistics["action"]["mean"])},
    )


def checkpoint_to_resume(output_dir: Path) -> str | None:
    """The last complete checkpoint, or None to start from step 0: in a new folder, or if the first was cut off."""
    try:
        return last_complete_checkpoint(output_dir)
    except FileNotFoundError:
        if any(output_dir.glob("checkpoint-*")):
            print(f"      no checkpoint in {output_dir} was written to its end: the training starts over")
        return None


def training_arguments(output_dir: Path, settings: TinySettings) -> ImageWAMTrainingArguments:
    return ImageWAMTrainingArguments(
        output_dir=str(output_dir),
        max_steps=settings.train_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.learning_rate,
        logging_steps=max(1, settings.train_steps // 200),
        eval_strategy="steps",
        eval_steps=max(1, settings.train_steps // 10),
        max_eval_samples=512,
        save_steps=max(1, settings.train_steps // 20),
        save_total_limit=1,
        save_frozen=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
    )
