"""Instructions and frames that are encoded once train as those that are encoded in every step."""

import numpy as np
import pytest
import torch
from tiny_training_parts import HORIZON, TinyDataset, tiny_policy, tiny_processor

from imagewam.data.collator import ImageWAMCollator
from imagewam.training.precomputed import PrecomputedCollator

MAX_LENGTH = 64
TEXTS = ("push the cube", "push the cube, then push the cube on the cube")


class TwoEpisodes(TinyDataset):
    """Two episodes of two frames, each with an instruction of its own; a sample's target is the frame behind it."""

    episode_lengths = {0: 2, 1: 2}
    tasks = dict(enumerate(TEXTS))

    def frames(self, camera, episode, indices):
        return [self.images[2 * episode + index] for index in indices]

    def values(self, key, episode):
        return self.states[2 * episode : 2 * episode + 2]

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        episode, frame = divmod(index, 2)
        target = {self.camera: self.images[2 * episode + 1]}
        place = {"episode_index": episode, "frame_index": frame, "instruction": TEXTS[episode]}
        return {**sample, **place, "target_images": target}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("padding", ["longest", "max_length"])
@torch.no_grad()
def test_padding_of_precomputed_instructions_is_hidden_as_in_plain_batches(padding, packed):
    options = {
        "prompt_format": {"padding": padding, "max_length": MAX_LENGTH},
        "pack_state_after_text": packed,
    }
    policy = tiny_policy(backbone_options=options).eval()
    processor, dataset = tiny_processor(policy), TwoEpisodes(size=4)
    samples = [dataset[0], dataset[3]]
    plain = ImageWAMCollator(processor)(samples)
    precomputed = PrecomputedCollator(policy, processor, [dataset])(samples)
    mask = precomputed["prompt_attention_mask"]
    assert torch.equal(mask, plain["attention_mask"]) and mask.sum() < mask.numel()
    assert mask.shape[1] == MAX_LENGTH or padding == "longest"
    generator = torch.Generator().manual_seed(0)
    draws = {
        "image_time": torch.tensor([0.1, 0.7]),
        "action_time": torch.tensor([0.9, 0.3]),
        "image_noise": torch.randn(precomputed["image_latents"].shape, generator=generator),
        "action_noise": torch.randn(2, HORIZON, 2, generator=generator),
    }
    expected, found = policy(**plain, **draws), policy(**precomputed, **draws)
    for name in ("action_velocity", "image_velocity"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=0)
