"""Tier C: networks whose reference image shares the noisy canvas, so that there is no context without a target.

Actions see the keys and values of one call over the canvas at the image time (τ* at inference). What holds for other
families and not here: keys of the context that are kept while a target is denoised, `edit_mode="prefix"`, and a time
that modulates the context.
"""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ...configuration_imagewam import ImageWAMConfig
from ..kv_cache import KVCache, LayerKV
from .base import EditingBackbone, TransformerCall


class FeatureBackbone(EditingBackbone):
    """A family whose `encode_context` makes no call: it only hands the observation on, with no keys.

    A subclass's `target_call` reads `context.conditions`: `prompt_embeds` `[B, L, text_dim]`, `prompt_mask` `[B, L]`
    bool or None, `image_latents` `[B, N, C]`, and `pooled_prompt_embeds` `[B, D]` or None.

    Raises:
        ValueError: the config asks for actions that attend to a context only, or for a context with a time of its own.
    """

    tier = "C"

    def __init__(self, config: ImageWAMConfig, transformer=None):
        _check_that_the_canvas_is_all(config)
        super().__init__(config, transformer)

    @abstractmethod
    def velocity_of(self, output: Tensor, target_latents: Tensor, timestep: Tensor) -> Tensor:
        """The network's output as ε - x.

        Args:
            target_latents: `[B, N, C]` noisy, what the network was given.
            timestep: `[B]`.
        """

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep):
        raise TypeError(f"{self.family} has no call without a target: its reference shares the target's canvas")

    def encode_context(
        self, prompt_embeds, prompt_attention_mask, image_latents, image_grid, timestep, pooled_prompt_embeds=None
    ) -> KVCache:
        """No keys, and the observation for the call over the canvas. `timestep` modulates nothing here."""
        no_keys = [
            image_latents.new_zeros(len(image_latents), 0, g.num_kv_heads, g.head_dim, dtype=self.transformer.dtype)
            for g in self.attention_layers
        ]
        conditions = {
            "prompt_embeds": prompt_embeds,
            "prompt_mask": prompt_attention_mask,
            "image_latents": image_latents,
            "pooled_prompt_embeds": pooled_prompt_embeds,
        }
        layers = tuple(LayerKV(empty, empty) for empty in no_keys)
        return KVCache(layers, image_grid=image_grid, conditions=conditions)

    def predict_velocity(self, target_latents, timestep, context, capture=False) -> tuple[Tensor, KVCache]:
        """u(z_t, t | o, l), and with `capture` the keys of the canvas, in which the observation is mixed in."""
        call = self.target_call(target_latents, timestep, context)
        with self._tapped(call, context, capture) as cache:
            output = self.run_transformer(call)
        return self.velocity_of(output, target_latents, timestep), self._target_cache(cache, call, context)

    def target_keys(self, target_latents, timestep, context) -> KVCache:
        """As in the base class, with no context in front."""
        call = self.target_call(target_latents, timestep, context)
        tapped = self.tap.capture(key_mask=call.key_mask, keys_only=True)
        with torch.no_grad(), tapped as cache, self._ending_early(True):
            self.run_transformer(call)
        return self._target_cache(cache, call, context)

    def _tapped(self, call: TransformerCall, context: KVCache, capture: bool) -> AbstractContextManager[KVCache]:
        """The cache that the call's keys go to; without `capture` no more is done than its key mask needs."""
        if capture:
            return self.tap.capture(key_mask=call.key_mask)
        if call.key_mask is None:
            return nullcontext(KVCache())
        return self.tap.prefix(context, key_mask=call.key_mask)  # the context has no keys: the mask alone


def _check_that_the_canvas_is_all(config: ImageWAMConfig) -> None:
    family = config.backbone["family"]
    if config.edit_mode == "prefix":
        raise ValueError(
            f"{family} has no context without a target, its reference shares the target's canvas: "
            "expected edit_mode 'denoise', 'joint' or 'imagine', got 'prefix'"
        )
    # The other modes come with a fixed time, which has nothing to modulate here.
    if config.edit_mode == "denoise" and config.context_timestep != "target":
        raise ValueError(
            f"{family} has no context tokens that a time of their own could modulate: "
            f"expected context_timestep 'target', got {config.context_timestep!r}"
        )
