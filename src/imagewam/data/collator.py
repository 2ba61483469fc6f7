"""From samples of a dataset to a batch for the policy."""

from collections.abc import Sequence

import numpy as np
from transformers import BatchFeature

from ..processing_imagewam import ImageWAMProcessor


class ImageWAMCollator:
    """`collate_fn` of a training loader: hands a list of `ActionChunkDataset` samples to the processor."""

    def __init__(self, processor: ImageWAMProcessor):
        self.processor = processor

    def __call__(self, samples: Sequence[dict]) -> BatchFeature:
        """The processor's training batch: prepared images, target images and text; normalised state and actions."""
        return self.processor(
            images=[sample["images"] for sample in samples],
            target_images=[sample["target_images"] for sample in samples],
            instruction=[sample["instruction"] for sample in samples],
            state=np.stack([sample["state"] for sample in samples]),
            actions=np.stack([sample["actions"] for sample in samples]),
            action_is_pad=np.stack([sample["action_is_pad"] for sample in samples]),
            return_tensors="pt",
        )
