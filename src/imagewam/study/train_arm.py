"""Training of one arm: a policy of the tiny policy's kind, or one without an editing model, on the same samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from transformers import Trainer, set_seed

from ..data.action_chunks import ActionChunkDataset
from ..data.collator import ImageWAMCollator
from ..data.decoded_dataset import DecodedDataset
from ..data.lerobot_dataset import LeRobotDataset
from ..data.statistics import compute_statistics
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.rollout import Predict
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing.contract import PolicyContract
from ..processing_imagewam import ImageWAMProcessor
from ..tiny.policy import CACHE, new_policy, tiny_trainer, train_to_the_end
from ..tiny.recipe import BASE, DATASET
from ..training.arguments import ImageWAMTrainingArguments
from ..training.trainer import ImageWAMTrainer
from .arms import Arm
from .plain_policies import CloningPolicy, FlowPolicy, PlainPolicy
from .plain_predictor import PlainPredictor
from .settings import StudySettings

PLAIN_POLICIES = {"cloning": CloningPolicy, "flow": FlowPolicy}
BATCH_SIZE = 2  # of the policy's calls: with it, the number of simulators changes no bit of a result
# About as many parameters as the tiny policy trains, see tests/study.
PLAIN_WIDTHS = {"cloning": 448, "flow": 320}


@dataclass
class Trained:
    """A policy of either kind with its processor; steps and seconds of all training that it had in this study."""

    policy: ImageWAMForActionPrediction | PlainPolicy
    processor: ImageWAMProcessor
    steps: int
    seconds: float

    @property
    def num_parameters(self) -> int:
        """Of what was trained."""
        return sum(weight.numel() for weight in self.policy.parameters())

    @property
    def num_frozen_parameters(self) -> int:
        """Of the VAE and the text encoder, which had learnt the recipe's frames and sentences before."""
        if isinstance(self.policy, PlainPolicy):
            return 0
        backbone = self.policy.backbone
        return sum(w.numel() for name in backbone.frozen_loaders for w in backbone.frozen_part(name).parameters())

    def predictor(self, config: Mapping[str, Any]) -> Predict:
        """What plays.

        Args:
            config: changes to an ImageWAM policy's, which stay.
        """
        if isinstance(self.policy, PlainPolicy):
            return PlainPredictor(self.policy, self.processor)
        self.policy.config.update(config)
        return PolicyPredictor(self.policy, self.processor, batch_size=BATCH_SIZE)


def train_arm(arm: Arm, seed: int, settings: StudySettings, contract: PolicyContract, folder: Path) -> Trained:
    """Train one arm with one seed.

    Args:
        contract: of the recorded environment.
        folder: empty, for what a trainer writes.

    Raises:
        SystemExit: stopped by SIGTERM; what was trained by then is no result.
    """
    set_seed(seed)
    if arm.kind == "imagewam":
        return _train_imagewam(arm, seed, settings, contract, folder)
    return _train_plain(arm, seed, settings, contract, folder)


def _train_imagewam(arm: Arm, seed: int, settings: StudySettings, contract: PolicyContract, folder: Path) -> Trained:
    pipeline = Flux2KleinPipeline.from_pretrained(Path(settings.recipe, BASE))
    pipeline.transformer = type(pipeline.transformer).from_config(pipeline.transformer.config)
    steps, seconds = settings.train_steps, 0.0
    if arm.pretrained:
        editing = new_policy(pipeline, contract, action_loss_weight=0.0)
        seconds += _seconds(_fit(editing, seed, settings, contract, folder / "editing"))
        pipeline.transformer = editing.backbone.transformer
        steps *= 2
    policy = new_policy(pipeline, contract, weight_copy=arm.weight_copy, **arm.config)
    trainer = _fit(policy, seed, settings, contract, folder / "policy")
    return Trained(policy, trainer.processor, steps, seconds + _seconds(trainer))


def _fit(
    policy: ImageWAMForActionPrediction, seed: int, settings: StudySettings, contract: PolicyContract, folder: Path
) -> ImageWAMTrainer:
    recordings = [LeRobotDataset(Path(settings.recipe, DATASET), chosen) for chosen in settings.episodes()]
    args = _arguments(folder, seed, settings)
    trainer = tiny_trainer(policy, contract, *recordings, args, Path(settings.recipe, CACHE))
    train_to_the_end(trainer)
    return trainer


def _seconds(trainer: Trainer) -> float:
    """Of the steps alone: encoding frames, which is done once for all arms, is not among it."""
    return next(line["train_runtime"] for line in reversed(trainer.state.log_history) if "train_runtime" in line)


def _train_plain(arm: Arm, seed: int, settings: StudySettings, contract: PolicyContract, folder: Path) -> Trained:
    train = DecodedDataset(Path(settings.recipe, DATASET), settings.episodes()[0])
    pipeline = Flux2KleinPipeline.from_pretrained(Path(settings.recipe, BASE))
    processor = ImageWAMProcessor.for_policy(
        new_policy(pipeline, contract),
        contract,
        compute_statistics(train, contract.horizon),
        instruction_template="{instruction}",
    )
    set_seed(seed)
    sizes = len(contract.state.names), len(contract.action.names), contract.horizon, PLAIN_WIDTHS[arm.kind]
    policy = PLAIN_POLICIES[arm.kind](len(pipeline.tokenizer), *sizes)
    trainer = Trainer(
        model=policy,
        args=_arguments(folder, seed, settings),
        train_dataset=ActionChunkDataset(train, contract.horizon, train.camera_names),
        data_collator=ImageWAMCollator(processor),
    )
    trainer.train()
    return Trained(policy, processor, settings.train_steps, _seconds(trainer))


def _arguments(folder: Path, seed: int, settings: StudySettings) -> ImageWAMTrainingArguments:
    """Equal for all arms."""
    return ImageWAMTrainingArguments(
        output_dir=str(folder),
        max_steps=settings.train_steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        logging_steps=max(1, settings.train_steps // 20),
        save_strategy="no",
        save_frozen=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )
