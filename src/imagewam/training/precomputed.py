"""Training batches with what frozen networks made once in place of words, or of words and pictures."""

import os
from collections.abc import Sequence
from functools import partial

import torch
from transformers import BatchFeature

from ..data.collator import IMAGES, ImageWAMCollator
from ..data.lerobot_dataset import LeRobotDataset
from ..inference.instruction_encoder import join_prompts
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor
from .instruction_cache import InstructionCache, check_words_alone, instruction_texts
from .latent_cache import LatentCache, check_frames_alone


class PrecomputedInstructions(ImageWAMCollator):
    """Like `ImageWAMCollator`, with instruction embeddings in place of words; pictures are prepared as they come.

    Batches have prompt_embeds, prompt_attention_mask and, for a backbone that has them, pooled_prompt_embeds. No text
    encoder is asked for: `policy.backbone.release_frozen` may let go of it.
    """

    def __init__(self, processor: ImageWAMProcessor, instructions: InstructionCache):
        super().__init__(processor, partial(prompt_inputs, instructions))
        self.instructions = instructions


class PrecomputedCollator(PrecomputedInstructions):
    """Like `ImageWAMCollator`, with image latents and instruction embeddings in place of pictures and words.

    What no cache holds yet is encoded when the collator is made, on the policy's device, and kept on disk.

    Args:
        policy: its VAE and text encoder must not change afterwards.
        processor: faces the robot of the datasets.
        datasets: all that samples will be drawn from, of one recording: frames are found by episode number.
        folder: where caches lie; the cache of `datasets` by default.

    Raises:
        ValueError: the policy's text encoder sees the image, so that words cannot be encoded once; or it predicts
            video, in which future frames are coded behind the current one; or the datasets are several recordings.
    """

    def __init__(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        datasets: Sequence[LeRobotDataset],
        folder: str | os.PathLike | None = None,
    ):
        check_words_alone(policy)
        check_frames_alone(policy)
        (self.target_offset,) = policy.config.target_offsets
        self.latents = LatentCache(policy, processor, datasets, folder)
        super().__init__(processor, InstructionCache(policy, processor, instruction_texts(datasets), folder))

    def __call__(self, samples: Sequence[dict]) -> BatchFeature:
        """Batch with image_latents, target_latents, image_grid, prompt_embeds, prompt_attention_mask, state, actions
        and action_is_pad, and pooled_prompt_embeds for a backbone that has them.

        Raises:
            ValueError: a sample is of another robot than the one whose frames were encoded.
        """
        robots = {sample.get("embodiment") for sample in samples} - {None, self.processor.embodiment}
        if robots:
            raise ValueError(f"frames were encoded as those of {self.processor.embodiment!r}, got samples of {robots}")
        without_images = [{key: sample[key] for key in sample if key not in IMAGES} for sample in samples]
        batch = super().__call__(without_images)
        places = [(sample["episode_index"], sample["frame_index"]) for sample in samples]
        batch["image_latents"] = self.latents.batch(places)
        batch["target_latents"] = self.latents.batch([(episode, t + self.target_offset) for episode, t in places])
        batch["image_grid"] = self.latents.grid  # no tensor: nothing may split it along the batch
        return batch


def prompt_inputs(instructions: InstructionCache, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The policy's inputs for instructions that were encoded, padded to the longest."""
    return join_prompts([instructions[text] for text in texts])
