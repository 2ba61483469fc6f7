"""From samples of a dataset to a batch for the policy."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import BatchFeature

from ..processing_imagewam import ImageWAMProcessor

IMAGES = ("images", "target_images")
Text = Callable[[Sequence[str]], Mapping[str, torch.Tensor]]


class ImageWAMCollator:
    """`collate_fn` of a training loader: hands a list of `ActionChunkDataset` samples to the processor.

    Samples of a `MixtureDataset` say which robot they are of; each is prepared as that robot's.

    Args:
        text: instructions -> the text part of the batch; the processor's token ids by default.
    """

    def __init__(self, processor: ImageWAMProcessor, text: Text | None = None):
        self.processor = processor
        self._text = self._tokens if text is None else text

    def __call__(self, samples: Sequence[dict]) -> BatchFeature:
        """The processor's training batch: text, prepared images and target images if the samples have them; normalised
        state and actions.

        Raises:
            ContractMismatchError: a sample is of a robot that the processor does not know.
        """
        places: dict[str | None, list[int]] = {}
        for place, sample in enumerate(samples):
            places.setdefault(sample.get("embodiment"), []).append(place)
        batch, *others = (self._of_robot(name, [samples[place] for place in own]) for name, own in places.items())
        if others:
            order = torch.tensor([place for own in places.values() for place in own]).argsort()
            batch = {
                key: torch.cat([values, *(other[key] for other in others)])[order] for key, values in batch.items()
            }
        return BatchFeature({**batch, **self._text([sample["instruction"] for sample in samples])})

    def _tokens(self, instructions: Sequence[str]) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(values) for key, values in self.processor.tokenize(instructions).items()}

    def _of_robot(self, embodiment: str | None, samples: Sequence[dict]) -> BatchFeature:
        """All but the text, which is padded to the longest of the whole batch."""
        seen = [name for name in IMAGES if name in samples[0]]
        return self.processor.for_embodiment(embodiment)(
            **{name: [sample[name] for sample in samples] for name in seen},
            state=np.stack([sample["state"] for sample in samples]),
            actions=np.stack([sample["actions"] for sample in samples]),
            action_is_pad=np.stack([sample["action_is_pad"] for sample in samples]),
            return_tensors="pt",
        )
