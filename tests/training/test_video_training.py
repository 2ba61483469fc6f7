"""The video baseline in the same trainer, processor and evaluation as every other policy."""

import math

import numpy as np
import pytest
from tiny_training_parts import TinyDataset, tiny_policy, tiny_processor

from imagewam import ImageWAMTrainer, ImageWAMTrainingArguments
from imagewam.training.precomputed import PrecomputedCollator

FRAMES = 4


class TinyVideos(TinyDataset):
    """Samples with four target frames each."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        targets = [{self.camera: self.images[(index + ahead) % len(self)]} for ahead in range(FRAMES)]
        return {**sample, "target_images": targets}


def video_policy(**config):
    return tiny_policy(family="wan2.2-ti2v", target_offsets=[1, 2, 3, 4], context_timestep=0, **config)


@pytest.mark.parametrize("edit_mode", ["prefix", "joint", "imagine"])
def test_every_mode_trains_and_is_evaluated(tmp_path, edit_mode):
    policy = video_policy(edit_mode=edit_mode)
    before = policy.backbone.transformer.blocks[0].attn1.to_k.weight.detach().clone()
    trainer = ImageWAMTrainer(
        model=policy,
        args=ImageWAMTrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            logging_steps=1,
            save_strategy="no",
            learning_rate=1e-3,
            disable_tqdm=True,
            use_cpu=True,
            save_frozen=True,
        ),
        processing_class=tiny_processor(policy),
        train_dataset=TinyVideos(),
        eval_dataset=TinyVideos(size=4, seed=1),
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "image_loss" in line]
    assert len(lines) == 2 and all(math.isfinite(line["loss"]) and line["image_loss"] > 0 for line in lines)
    assert not np.array_equal(before, policy.backbone.transformer.blocks[0].attn1.to_k.weight.detach())
    assert math.isfinite(trainer.evaluate()["eval_action_mae"])


def test_no_frame_of_a_video_can_be_encoded_once():
    policy = video_policy()
    with pytest.raises(ValueError, match="wan2.2-ti2v codes frames behind others"):
        PrecomputedCollator(policy, tiny_processor(policy), [])
