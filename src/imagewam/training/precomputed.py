"""Training on a small dataset without decoder, VAE and text encoder in the loop: each runs once per frame or text."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..data.lerobot_dataset import STATE_KEY, LeRobotDataset
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing_imagewam import ImageWAMProcessor

BATCH_SIZE = 32


class PrecomputedCollator:
    """Like `ImageWAMCollator`, with image latents and instruction embeddings in place of pictures and words.

    Everything is encoded when the collator is made, on the policy's device, and kept in main memory.

    Args:
        policy: its VAE and text encoder must not change afterwards.
        datasets: all that samples will be drawn from; episode numbers must mean the same in each.

    Raises:
        ValueError: the policy's text encoder sees the image, so that words cannot be encoded once; or it predicts
            video, in which future frames are coded behind the current one.
    """

    def __init__(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        datasets: Sequence[LeRobotDataset],
    ):
        if policy.backbone.text_sees_image:
            raise ValueError(f"{policy.backbone.family} reads the words with the image: no text can be encoded once")
        if policy.backbone.predicts_video:
            raise ValueError(f"{policy.backbone.family} codes frames behind others: none can be encoded once")
        self.processor = processor
        (self.target_offset,) = policy.config.target_offsets
        self._latents: dict[int, torch.Tensor] = {}  # episode -> [frames, N, C]
        for dataset in datasets:
            for episode in tqdm(dataset.episode_lengths, desc="encoding frames", unit="episode"):
                self._latents[episode], self._grid = _encode_episode(policy, processor, dataset, episode)
        texts = {text for dataset in datasets for text in dataset.tasks.values()}
        self._prompts = {text: _encode_text(policy, processor, text) for text in sorted(texts)}

    def __call__(self, samples: Sequence[dict]) -> BatchFeature:
        """Batch with image_latents, target_latents, image_grid, prompt_embeds, prompt_attention_mask, state, actions
        and action_is_pad, and pooled_prompt_embeds for a backbone that has them."""
        batch = self.processor(
            state=np.stack([sample["state"] for sample in samples]),
            actions=np.stack([sample["actions"] for sample in samples]),
            action_is_pad=np.stack([sample["action_is_pad"] for sample in samples]),
            return_tensors="pt",
        )
        prompts, masks, pooled = zip(*(self._prompts[sample["instruction"]] for sample in samples), strict=True)
        batch["prompt_embeds"] = pad_sequence(prompts, batch_first=True)
        batch["prompt_attention_mask"] = pad_sequence(masks, batch_first=True)
        if pooled[0] is not None:
            batch["pooled_prompt_embeds"] = torch.stack(pooled)
        batch["image_latents"] = torch.stack([self._latent(sample, ahead=0) for sample in samples])
        batch["target_latents"] = torch.stack([self._latent(sample, ahead=self.target_offset) for sample in samples])
        batch["image_grid"] = self._grid  # no tensor: nothing may split it along the batch
        return batch

    def _latent(self, sample: dict, ahead: int) -> torch.Tensor:
        episode = self._latents[sample["episode_index"]]
        return episode[min(sample["frame_index"] + ahead, len(episode) - 1)]


@torch.no_grad()
def _encode_episode(policy, processor, dataset, episode: int) -> tuple[torch.Tensor, tuple[int, int]]:
    length = dataset.episode_lengths[episode]
    cameras = [camera.name for camera in processor.contract.cameras]
    frames = [dataset.frames(camera, episode, range(length)) for camera in cameras]
    images = [dict(zip(cameras, views, strict=True)) for views in zip(*frames, strict=True)]
    states = dataset.values(STATE_KEY, episode)
    tokens = []
    for start in range(0, length, BATCH_SIZE):
        chosen = slice(start, start + BATCH_SIZE)
        batch = processor(images=images[chosen], state=states[chosen], return_tensors="pt")
        latents, grid = policy.backbone.encode_image(batch["pixel_values"].to(policy.device))
        tokens.append(latents.cpu())
    return torch.cat(tokens), grid


@torch.no_grad()
def _encode_text(policy, processor, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`[L, text_dim]`, the mask `[L]` int64 of its words and, for a backbone that has it, `[pooled_dim]`.

    Padding that the prompt format asks for is kept: the state token may have to stand behind it.
    """
    states = np.zeros((1, len(processor.contract.state.names)), dtype=np.float32)
    tokens = processor(instruction=[text], state=states, return_tensors="pt").to(policy.device)
    del tokens["state"]
    prompt_embeds, mask = policy.backbone.encode_instruction(**tokens)
    if mask is None:
        mask = prompt_embeds.new_ones(prompt_embeds.shape[:2])
    prompt, mask = prompt_embeds[0].cpu(), mask[0].long().cpu()
    if policy.backbone.pooled_dim is None:
        return prompt, mask, None
    return prompt, mask, policy.backbone.encode_pooled_instruction(**tokens)[0].cpu()
