"""FLUX.1 Control: FLUX.1's transformer over a canvas whose tokens hold the noisy target and the current image.

Tier C. Tokens are [instruction, state | canvas] in one call, and actions see the keys of all of them. Positions are
3-D (image, row, column): text (0, 0, 0), canvas (0, r, c), action (2, k, 0).
"""

import torch
from torch import Tensor, nn

from ..image_positions import image_ids
from ..kv_cache import token_spans
from .base import TransformerCall, register_family
from .features import FeatureBackbone
from .flux_kontext import TARGET_INDEX, FluxKontextBackbone


@register_family
class FluxControlBackbone(FeatureBackbone, FluxKontextBackbone):
    """`FluxControlPipeline`, with the current image as the control image: for weights that were trained to edit.

    Text, padding, VAE and the option `guidance_scale` are as in `FluxKontextBackbone`; the pipeline draws the control
    image from the VAE's posterior, here it is the mean.

    Raises:
        ValueError: the transformer's tokens do not hold two images.
    """

    family = "flux-control"
    pipeline_classes = ("FluxControlPipeline",)

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        taken, given = self.transformer.config.in_channels, self.transformer.out_channels
        if taken != 2 * given:
            raise ValueError(
                f"expected a transformer that takes {2 * given} channels (target and current image), "
                f"got one that takes {taken}"
            )

    @property
    def latent_channels(self) -> int:
        return self.transformer.out_channels

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        conditions, num_target, key_mask = context.conditions, target_latents.shape[1], None
        text, mask = conditions["prompt_embeds"], conditions["prompt_mask"]
        if mask is not None:
            key_mask = nn.functional.pad(mask, (0, num_target), value=True)
        canvas = torch.cat([target_latents, conditions["image_latents"]], dim=-1)
        ids = image_ids(context.image_grid, TARGET_INDEX, target_latents.device)
        kwargs = self._kwargs(text, conditions["pooled_prompt_embeds"], canvas, ids, timestep)
        return TransformerCall(kwargs, token_spans(text=text.shape[1], target=num_target), key_mask)

    def velocity_of(self, output: Tensor, target_latents: Tensor, timestep: Tensor) -> Tensor:
        return output
