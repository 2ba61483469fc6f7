"""`ImageWAMForActionPrediction`: one pass of an editing transformer, then an action chunk that attends to it.

Nothing attends to action tokens and the context attends to no target token, so a decision is three plain calls:
context -> (target) -> actions. The same calls serve training and inference.
"""

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import CommitInfo
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from ..atomic import atomic_folder
from ..configuration_imagewam import ImageWAMConfig
from ..upload import upload_saved
from . import flow_matching as flow
from .backbones import EditingBackbone, family_of_pipeline, get_family
from .frozen_parts import save_frozen_part
from .kv_cache import KVCache
from .memory import align_weights
from .prompt_tokens import append_state_token, trim_padding
from .weight_copy import copy_editing_weights

# transformers' names of attention implementations -> diffusers' names of attention backends.
ATTENTION_BACKENDS = {
    "sdpa": None,  # diffusers' own default, so that its switches keep working
    "eager": "_native_math",
    "flex_attention": "flex",
    "flash_attention_2": "flash_varlen",  # the variable-length kernels take the mask of a ragged batch
    "flash_attention_3": "_flash_varlen_3",
}

Grid = tuple[int, int]

logger = logging.get_logger(__name__)

TIERS = {
    "A": "its own context sees no target",
    "B": "its context is kept from seeing the target by the tap",
    "C": "features only, there is no context without a target: actions see the keys of the noisy canvas",
}


@dataclass
class ImageWAMOutput(ModelOutput):
    """Losses of a training batch.

    Attributes:
        loss: action_loss_weight · action_loss + image_loss_weight · image_loss.
        action_loss: flow-matching loss of the action chunk (paper, Eq. 9).
        image_loss: flow-matching loss of the future frame (paper, Eq. 7); None when it has no weight and no use.
        action_velocity: `[B, H, action_dim]`.
        image_velocity: `[B, N, C]` or None.
    """

    loss: Tensor | None = None
    action_loss: Tensor | None = None
    image_loss: Tensor | None = None
    action_velocity: Tensor | None = None
    image_velocity: Tensor | None = None


@dataclass
class ImageWAMActionOutput(ModelOutput):
    """A predicted action chunk.

    Attributes:
        actions: `[B, H, action_dim]`, normalised; `ImageWAMProcessor.decode_actions` gives physical units.
        attentions: on request, per Euler step, per layer: `[B, heads, H, S]` from actions to context keys.
        context_spans: which of the S keys are "text" (the state token last), "image" and, in denoise mode, "target".
        image_grid: (rows, columns) of the image tokens.
    """

    actions: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    context_spans: dict[str, slice] | None = None
    image_grid: Grid | None = None


class ImageWAMForActionPrediction(PreTrainedModel):
    """A policy on an image-editing transformer.

    `backbone.transformer`, `action_expert` and `state_encoder` are trained; the VAE and the text encoder are frozen,
    lie outside the module tree and load on first use. Inputs come from `ImageWAMProcessor`; each costly or random one
    can be passed in precomputed:

        prompt_embeds `[B, L, text_dim]` with prompt_attention_mask `[B, L]`   instead of input_ids, attention_mask
        and pooled_prompt_embeds `[B, pooled_dim]` where the family has them   (and input_ids_2, attention_mask_2)
        image_latents `[B, N, C]` with image_grid (rows, columns)              instead of pixel_values
        target_latents `[B, N, C]`                                             instead of target_pixel_values
        latents, image_noise, action_noise, and times of image and action      instead of random draws
    """

    config_class = ImageWAMConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # A mean flow-matching loss does not want the Trainer's token counts.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: ImageWAMConfig, transformer: nn.Module | None = None):
        super().__init__(config)
        if transformer is not None:
            for module in transformer.modules():
                module._is_hf_initialized = True  # else post_init would draw its weights anew
        self.backbone = get_family(config.backbone["family"])(config, transformer)
        if config.action_hidden_size is None:
            config.action_hidden_size = self.backbone.action_hidden_size
        self.action_expert = self.backbone.build_action_expert()
        self.state_encoder = nn.Linear(config.state_dim, self.backbone.text_dim) if config.state_dim else None
        editing_blocks = self.backbone.transformer._no_split_modules or []
        self._no_split_modules = [*self.action_expert.block_classes, *editing_blocks]
        self.post_init()
        self._use_attention_backend()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    # Training

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_2: Tensor | None = None,
        attention_mask_2: Tensor | None = None,
        state: Tensor | None = None,
        actions: Tensor | None = None,
        target_pixel_values: Tensor | None = None,
        action_is_pad: Tensor | None = None,
        action_dim_is_pad: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        image_latents: Tensor | None = None,
        image_grid: Grid | None = None,
        target_latents: Tensor | None = None,
        action_time: Tensor | None = None,
        image_time: Tensor | None = None,
        imagined_time: Tensor | None = None,
        action_noise: Tensor | None = None,
        image_noise: Tensor | None = None,
    ) -> ImageWAMOutput:
        """Joint flow-matching losses of a batch (paper, section 3.3).

        Args:
            pixel_values: `[B, 3, H, W]` in [-1, 1], now.
            target_pixel_values: the same, `target_offsets` steps ahead; `[B, T, 3, H, W]` where these are several.
            input_ids, attention_mask: `[B, L]`, right-padded instructions.
            input_ids_2, attention_mask_2: `[B, L_2]`, the same of a second tokenizer, for families that have one.
            state: `[B, state_dim]`, normalised.
            actions: `[B, H, action_dim]`, normalised.
            action_is_pad: `[B, H]` bool, steps past the end of the episode.
            action_dim_is_pad: `[B, action_dim]` bool, dimensions this embodiment lacks.
            action_time, image_time: `[B]` in [0, 1].
            imagined_time: `[B]`, that of the target which actions see in imagine mode; drawn as `image_time`, or 0
                for every other sample.
            action_noise, image_noise: like the actions and the target latents.

        Raises:
            ValueError: an input is missing or has the wrong shape.
        """
        self._check_actions(actions, action_is_pad)
        image_latents, image_grid = self._image_latents(pixel_values, image_latents, image_grid)
        target_latents = self._target_latents(target_pixel_values, pixel_values, target_latents, image_latents)
        batch_size, device = image_latents.shape[0], image_latents.device
        image_time = self._time(image_time, batch_size, device)
        action_time = self._time(action_time, batch_size, device)

        fixed = self.config.context_timestep
        context_time = image_time if fixed == "target" else torch.full_like(image_time, fixed)
        context = self.encode_context(
            pixel_values=pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            input_ids_2=input_ids_2,
            attention_mask_2=attention_mask_2,
            state=state,
            prompt_embeds=prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            pooled_prompt_embeds=pooled_prompt_embeds,
            image_latents=image_latents,
            image_grid=image_grid,
            timestep=context_time,
        )

        image_loss = image_velocity = None
        seen = context
        if target_latents is not None:
            noise = torch.randn_like(target_latents) if image_noise is None else image_noise
            noisy = flow.interpolate(target_latents, noise, image_time)
            mode = self.config.edit_mode
            capture = mode in ("denoise", "joint")
            image_velocity, target = self.backbone.predict_velocity(noisy, image_time, context, capture=capture)
            weight = flow.loss_weight(image_time, self.config.loss_weighting)
            image_loss = flow.flow_matching_loss(image_velocity, flow.velocity_target(target_latents, noise), weight)
            if mode == "imagine":
                time = self._imagined_time(imagined_time, batch_size, device)
                noisy = flow.interpolate(target_latents, noise, time)
                _, target = self.backbone.predict_velocity(noisy, time, context, capture=True)
            seen = context if mode == "prefix" else context.cat(target)

        actions = actions.float()
        noise = torch.randn_like(actions) if action_noise is None else action_noise
        noisy = flow.interpolate(actions, noise, action_time)
        action_velocity, _ = self._action_velocity(noisy, action_time, seen)
        weight = flow.loss_weight(action_time, self.config.loss_weighting)
        target = flow.velocity_target(actions, noise)
        action_loss = flow.flow_matching_loss(action_velocity, target, weight, action_is_pad, action_dim_is_pad)

        loss = self.config.action_loss_weight * action_loss
        if image_loss is not None:
            loss = loss + self.config.image_loss_weight * image_loss
        return ImageWAMOutput(loss, action_loss, image_loss, action_velocity, image_velocity)

    # Inference

    def encode_context(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_2: Tensor | None = None,
        attention_mask_2: Tensor | None = None,
        state: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        image_latents: Tensor | None = None,
        image_grid: Grid | None = None,
        timestep: Tensor | None = None,
    ) -> KVCache:
        """Keys and values of [instruction, state | current image], reusable while the observation stands.

        Args:
            timestep: `[B]`, the time that modulates context tokens; the config's inference time by default.
        """
        image_latents, image_grid = self._image_latents(pixel_values, image_latents, image_grid)
        batch_size = image_latents.shape[0]
        tokens = self._tokens(input_ids, attention_mask, input_ids_2, attention_mask_2)
        pooled = self._pooled_prompt(tokens, pooled_prompt_embeds, batch_size)
        prompt_embeds, prompt_mask = self._with_state(
            *self._prompt(tokens, pixel_values, prompt_embeds, prompt_attention_mask, batch_size), state
        )
        if timestep is None:
            timestep = image_latents.new_full(
                image_latents.shape[:1], self.config.inference_context_timestep, dtype=torch.float32
            )
        return self.backbone.encode_context(prompt_embeds, prompt_mask, image_latents, image_grid, timestep, **pooled)

    @torch.no_grad()
    def predict_action(
        self,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        image_noise: Tensor | None = None,
        context: KVCache | None = None,
        output_attentions: bool = False,
        **inputs: Any,
    ) -> ImageWAMActionOutput:
        """Denoise an action chunk (paper, section 3.4).

        Args:
            num_inference_steps: Euler steps; the config's by default.
            generator: one for the batch, or one per sample. The image noise, if there is any, is drawn first.
            latents: `[B, H, action_dim]` initial action noise.
            image_noise: `[B, N, C]` initial target noise; not in prefix mode.
            context: a cache from `encode_context` or `encode_edit`; else `inputs` are encoded now.
            output_attentions: also return attention weights.
            **inputs: as for `encode_context`.
        """
        if output_attentions and not self.backbone.aligned_keys:
            raise ValueError(
                f"no attentions from {self.backbone.family}: its layers have grids of tokens of their own, "
                "so that the same key means another place in each"
            )
        if context is None:
            context = self.encode_context(**inputs)
        num_inference_steps = num_inference_steps or self.config.num_inference_steps
        mode, device = self.config.edit_mode, context.layers[0].key.device
        if mode in ("denoise", "imagine") and "target" not in context.spans:
            context = self.encode_edit(
                context, num_inference_steps=num_inference_steps, generator=generator, image_noise=image_noise
            )
        if mode == "joint":
            target_latents = self._image_noise(context.batch_size, context.image_grid, device, generator, image_noise)
        shape = (context.batch_size, self.config.action_horizon, self.config.action_dim)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents must be {shape} (batch, horizon, action_dim), got {tuple(latents.shape)}")
        actions = latents.to(self._flow_dtype)

        scheduler, image_scheduler = (self._schedule(num_inference_steps, device) for _ in range(2))
        attentions, seen = [], context
        for t in scheduler.timesteps:
            time = (t / 1000).expand(shape[0])
            if mode == "joint":
                velocity, target = self.backbone.predict_velocity(target_latents, time, context, capture=True)
                velocity = velocity.to(target_latents.dtype)
                target_latents = image_scheduler.step(velocity, t, target_latents, return_dict=False)[0]
                seen = context.cat(target)
            velocity, weights = self._action_velocity(actions, time, seen, output_attentions)
            actions = scheduler.step(velocity.to(actions.dtype), t, actions, return_dict=False)[0]
            attentions.append(weights)
        return ImageWAMActionOutput(
            actions=actions.float(),
            attentions=tuple(attentions) if output_attentions else None,
            context_spans=seen.spans,
            image_grid=context.image_grid,
        )

    @torch.no_grad()
    def encode_edit(
        self,
        context: KVCache,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_noise: Tensor | None = None,
    ) -> KVCache:
        """Context followed by the target tokens' keys and values at τ* = `edit_timestep` (paper, Eq. 10).

        For τ* = 1 the target is pure noise; for τ* < 1 one Euler step first brings the noise from time 1 to τ*. In
        imagine mode the target is denoised in full, and τ* is 0.

        Args:
            num_inference_steps: Euler steps of imagine mode; the config's by default.

        Raises:
            ValueError: in joint mode the target changes with every step of the actions.
        """
        if self.config.edit_mode == "joint":
            raise ValueError("in edit_mode='joint' every step of the actions has its own target: nothing to keep")
        device = context.layers[0].key.device
        noise = self._image_noise(context.batch_size, context.image_grid, device, generator, image_noise)
        edit_time = self.config.edit_timestep
        if self.config.edit_mode == "imagine":
            num_steps = num_inference_steps or self.config.num_inference_steps
            noise = self._denoise_target(noise, num_steps, lambda time: context)
        elif edit_time < 1:
            velocity, _ = self.backbone.predict_velocity(noise, noise.new_ones(noise.shape[0]), context)
            noise = noise + (edit_time - 1) * velocity.float()
        time = noise.new_full(noise.shape[:1], edit_time)
        _, target = self.backbone.predict_velocity(noise, time, context, capture=True)
        return context.cat(target)

    @torch.no_grad()
    def predict_frame(
        self,
        *,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_noise: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """The edited future frame, `[B, 3, H, W]` in about [-1, 1], by full denoising; for looking, not for acting.

        Args:
            num_inference_steps: Euler steps from noise to the frame.
            **inputs: as for `encode_context`.
        """
        inputs = self._encoded(**inputs)
        image_latents, grid = inputs["image_latents"], inputs["image_grid"]
        context = None if self.config.context_timestep == "target" else self.encode_context(**inputs)
        latents = self._denoise_target(
            self._image_noise(len(image_latents), grid, image_latents.device, generator, image_noise),
            num_inference_steps,
            lambda time: context or self.encode_context(**inputs, timestep=time),
        )
        with self._frozen():
            return self.backbone.decode_target(latents, image_latents, grid).float()

    def _denoise_target(self, latents: Tensor, num_steps: int, context_at: Callable[[Tensor], KVCache]) -> Tensor:
        """Target noise -> target, with the context as it is at each image time."""
        scheduler = self._schedule(num_steps, latents.device)
        for t in scheduler.timesteps:
            time = (t / 1000).expand(len(latents))
            velocity, _ = self.backbone.predict_velocity(latents, time, context_at(time))
            latents = scheduler.step(velocity.to(latents.dtype), t, latents, return_dict=False)[0]
        return latents

    # Inputs

    def _encoded(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_ids_2: Tensor | None = None,
        attention_mask_2: Tensor | None = None,
        state: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        image_latents: Tensor | None = None,
        image_grid: Grid | None = None,
    ) -> dict[str, Any]:
        """An observation's inputs with what the frozen parts make of them in place of pixels and token ids."""
        image_latents, image_grid = self._image_latents(pixel_values, image_latents, image_grid)
        tokens = self._tokens(input_ids, attention_mask, input_ids_2, attention_mask_2)
        pooled = self._pooled_prompt(tokens, pooled_prompt_embeds, len(image_latents))
        prompt_embeds, prompt_attention_mask = self._prompt(
            tokens, pixel_values, prompt_embeds, prompt_attention_mask, len(image_latents)
        )
        return {
            "prompt_embeds": prompt_embeds,
            "prompt_attention_mask": prompt_attention_mask,
            **pooled,
            "image_latents": image_latents,
            "image_grid": image_grid,
            "state": state,
        }

    def _image_latents(self, pixel_values, image_latents, image_grid) -> tuple[Tensor, Grid]:
        if image_latents is None:
            if pixel_values is None:
                raise ValueError("the policy needs pixel_values [B, 3, H, W], or image_latents with image_grid")
            return self._encode_image(pixel_values)
        if image_grid is None:
            raise ValueError("image_latents need their image_grid (rows, columns)")
        image_grid = tuple(int(n) for n in image_grid)
        expected = (image_grid[0] * image_grid[1], self.backbone.latent_channels)
        if tuple(image_latents.shape[1:]) != expected:
            raise ValueError(
                f"image_latents of a {image_grid[0]} x {image_grid[1]} grid must be [B, {expected[0]}, {expected[1]}],"
                f" got {list(image_latents.shape)}"
            )
        return image_latents.float(), image_grid

    def _encode_image(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        with self._frozen():
            latents, grid = self.backbone.encode_image(pixel_values)
        self._check_channels(latents)
        return latents.float(), grid

    def _check_channels(self, latents: Tensor) -> None:
        if latents.shape[-1] != self.backbone.latent_channels:
            raise ValueError(
                f"the VAE gives tokens of {latents.shape[-1]} channels, the editing transformer takes "
                f"{self.backbone.latent_channels}: they do not belong together"
            )

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Frozen parts compute in their own dtype, in mixed-precision training as at inference."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _target_latents(self, target_pixel_values, pixel_values, target_latents, image_latents) -> Tensor | None:
        if target_latents is None and target_pixel_values is not None:
            with self._frozen():
                target_latents = self.backbone.encode_target(target_pixel_values, pixel_values)
        if target_latents is None:
            if self.config.edit_mode != "prefix" or self.config.image_loss_weight:
                raise ValueError(
                    "training needs target_pixel_values or target_latents (the frames target_offsets steps ahead); "
                    "only edit_mode='prefix' with image_loss_weight=0 can do without"
                )
            return None
        batch_size, num_image, channels = image_latents.shape
        expected = (batch_size, num_image * self.backbone.num_target_frames, channels)
        if tuple(target_latents.shape) != expected:
            raise ValueError(
                f"target latents {list(target_latents.shape)} and those expected from the image latents "
                f"{list(expected)} differ"
            )
        return target_latents.float()

    def _tokens(self, input_ids, attention_mask, input_ids_2, attention_mask_2) -> dict[str, Tensor | None]:
        """Token ids and masks of the family's tokenizers; empty unless all are there."""
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.backbone.has_tokenizer_2:
            tokens |= {"input_ids_2": input_ids_2, "attention_mask_2": attention_mask_2}
        elif input_ids_2 is not None:
            raise ValueError(f"{self.backbone.family} has one tokenizer, got input_ids_2")
        complete = all(tokens[name] is not None for name in ("input_ids", "input_ids_2") if name in tokens)
        return tokens if complete else {}

    def _missing_tokens(self, embeds: str) -> ValueError:
        second = "input_ids_2 with attention_mask_2 and " if self.backbone.has_tokenizer_2 else ""
        return ValueError(f"the policy needs {second}input_ids with attention_mask, or {embeds}")

    def _pooled_prompt(self, tokens, pooled_prompt_embeds, batch_size) -> dict[str, Tensor]:
        """`pooled_prompt_embeds` `[B, pooled_dim]`, or nothing for families without it."""
        width = self.backbone.pooled_dim
        if width is None:
            if pooled_prompt_embeds is not None:
                raise ValueError(f"{self.backbone.family} takes no pooled_prompt_embeds")
            return {}
        if pooled_prompt_embeds is None:
            if not tokens:
                raise self._missing_tokens("prompt_embeds with pooled_prompt_embeds")
            with self._frozen():
                pooled_prompt_embeds = self.backbone.encode_pooled_instruction(**tokens)
        expected = [batch_size, width]
        if list(pooled_prompt_embeds.shape) != expected:
            raise ValueError(f"pooled_prompt_embeds must be {expected}, got {list(pooled_prompt_embeds.shape)}")
        return {"pooled_prompt_embeds": pooled_prompt_embeds.to(self.dtype)}

    def _prompt(self, tokens, pixel_values, prompt_embeds, prompt_mask, batch_size) -> tuple[Tensor, Tensor | None]:
        """Instruction embeddings `[B, L, text_dim]` and their bool mask `[B, L]`; None: nothing is padded."""
        if prompt_embeds is None:
            if not tokens:
                raise self._missing_tokens("prompt_embeds")
            if self.backbone.text_sees_image and pixel_values is None:
                raise ValueError(
                    f"the text encoder of {self.backbone.family} sees the image: it needs pixel_values beside "
                    "image_latents, or prompt_embeds made for this very image"
                )
            with self._frozen():
                prompt_embeds, prompt_mask = self.backbone.encode_instruction(**tokens, pixel_values=pixel_values)
        if prompt_embeds.shape[0] != batch_size or prompt_embeds.shape[-1] != self.backbone.text_dim:
            raise ValueError(
                f"instruction embeddings must be [{batch_size}, L, {self.backbone.text_dim}], "
                f"got {list(prompt_embeds.shape)}"
            )
        return prompt_embeds.to(self.dtype), None if prompt_mask is None else prompt_mask.bool()

    def _with_state(self, prompt_embeds: Tensor, prompt_mask: Tensor | None, state) -> tuple[Tensor, Tensor | None]:
        """The state token behind the instruction's; the mask is None when nothing is padded."""
        packed = self.backbone.pack_state_after_text or prompt_mask is None
        if packed and prompt_mask is not None:
            prompt_embeds, prompt_mask = trim_padding(prompt_embeds, prompt_mask)
        if self.state_encoder is None:
            return prompt_embeds, prompt_mask
        token = self.state_encoder(self._state(state, len(prompt_embeds)).to(self.state_encoder.weight.dtype))
        if packed:
            return append_state_token(prompt_embeds, prompt_mask, token)
        prompt_embeds = torch.cat([prompt_embeds, token[:, None].to(prompt_embeds.dtype)], dim=1)
        return prompt_embeds, nn.functional.pad(prompt_mask, (0, 1), value=True)

    def _state(self, state: Tensor | None, batch_size: int) -> Tensor:
        expected = (batch_size, self.config.state_dim)
        if state is None or tuple(state.shape) != expected:
            got = "none" if state is None else list(state.shape)
            raise ValueError(f"the policy was built for a state of {list(expected)} (batch, state_dim), got {got}")
        return state

    def _check_actions(self, actions: Tensor | None, is_pad: Tensor | None) -> None:
        expected = (self.config.action_horizon, self.config.action_dim)
        if actions is None or tuple(actions.shape[1:]) != expected:
            got = "none" if actions is None else list(actions.shape)
            raise ValueError(f"the policy was built for actions [B, {expected[0]}, {expected[1]}], got {got}")
        if is_pad is not None and is_pad.shape != actions.shape[:2]:
            raise ValueError(f"action_is_pad must be {list(actions.shape[:2])}, got {list(is_pad.shape)}")

    # Flow

    @property
    def _flow_dtype(self) -> torch.dtype:
        """What times, Euler steps and the chunk between steps are rounded to."""
        return self.dtype if self.config.time_dtype == "model" else torch.float32

    def _schedule(self, num_steps: int, device: torch.device):
        return flow.euler_schedule(num_steps, self.config.time_shift, device=device, dtype=self._flow_dtype)

    def _time(self, time: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if time is None:
            time = flow.sample_time(batch_size, self.config.time_shift, device=device)
        return time.to(self._flow_dtype).float()

    def _imagined_time(self, time: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        if time is not None:
            return self._time(time, batch_size, device)
        return self._time(None, batch_size, device) * (torch.rand(batch_size, device=device) < 0.5)

    def _image_noise(self, batch_size: int, grid: Grid, device, generator, image_noise: Tensor | None) -> Tensor:
        shape = (batch_size, grid[0] * grid[1] * self.backbone.num_target_frames, self.backbone.latent_channels)
        if image_noise is None:
            return randn_tensor(shape, generator=generator, device=device)
        if tuple(image_noise.shape) != shape:
            raise ValueError(f"image_noise must be {list(shape)}, got {list(image_noise.shape)}")
        return image_noise

    def _action_velocity(self, actions, time, context, output_attentions=False):
        rotary_emb = self.backbone.action_rotary_emb(actions.shape[1], actions.device)
        weight = self.action_expert.action_encoder.weight
        time = self.backbone.action_time(time)
        return self.action_expert(actions.to(weight.dtype), time, context, rotary_emb, output_attentions)

    # Gradient checkpointing and attention backends

    def _set_gradient_checkpointing(self, enable: bool = True, every_n_layers: int = 1, **kwargs) -> None:
        if every_n_layers != 1:
            raise ValueError(f"the policy checkpoints every block or none, not every {every_n_layers}")
        super()._set_gradient_checkpointing(enable=enable, **kwargs)
        if enable:
            self.backbone.tap.enable_gradient_checkpointing()

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        super().set_attn_implementation(attn_implementation, **kwargs)
        self._use_attention_backend()

    def _use_attention_backend(self) -> None:
        name = self.config._attn_implementation
        if name not in ATTENTION_BACKENDS:
            raise ValueError(f"attn_implementation is one of {sorted(ATTENTION_BACKENDS)}, got {name!r}")
        backend = ATTENTION_BACKENDS[name] and AttentionBackendName(ATTENTION_BACKENDS[name])
        self.backbone.set_attention_backend(backend)
        self.action_expert.set_attention_backend(backend)

    # LoRA

    def lora_config(self, **kwargs):
        """peft's `LoraConfig` for this policy: adapters on the editing transformer's attention and MLP projections,
        action expert and state encoder trained whole.

        Args:
            **kwargs: override any field, e.g. `r=16, lora_alpha=16`.
        """
        from peft import LoraConfig

        whole = ["action_expert", "state_encoder"] if self.state_encoder is not None else ["action_expert"]
        defaults = {"r": 16, "lora_alpha": 16, "target_modules": self.backbone.lora_targets, "modules_to_save": whole}
        return LoraConfig(**{**defaults, **kwargs})

    # Checkpoints

    @classmethod
    def from_editing_pipeline(
        cls,
        pipeline: DiffusionPipeline | str | os.PathLike,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        preset: str = "paper",
        weight_copy: str | None = "auto",
        backbone_options: dict[str, Any] | None = None,
        **config_kwargs: Any,
    ) -> "ImageWAMForActionPrediction":
        """A policy on a diffusers editing pipeline: its transformer, its frozen parts, a weight-copied action expert.

        The log tells the family and its tier: "A" and "B" read the observation before there is a target, "C" sees it
        in the keys of the noisy canvas only.

        Args:
            pipeline: the pipeline (the policy takes over its transformer object), or the folder or hub repo of one.
            revision: of the repo.
            dtype: of the policy and its frozen parts; what the pipeline has, or float32, by default.
            preset: `"paper"`, `"published"` or `"fastwam"`, see `ImageWAMConfig.from_preset`.
            weight_copy: how the action expert starts: `"per_segment"`, `"one_axis"` (the published way), None for
                fresh weights, or `"auto"`: per segment where the expert has the form of the editing blocks, else
                fresh.
            backbone_options: the family's own options, e.g. `{"rope_dtype": "model"}`.
            **config_kwargs: `action_dim`, `state_dim`, `action_horizon` and the rest of `ImageWAMConfig`.

        Raises:
            ValueError: no family serves the pipeline (the message says why), or its family cannot do what is asked.
        """
        if weight_copy not in ("auto", "per_segment", "one_axis", None):
            raise ValueError(f"weight_copy is 'auto', 'per_segment', 'one_axis' or None, got {weight_copy!r}")
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        source = getattr(pipeline, "name_or_path", None)
        family = family_of_pipeline(pipeline, revision)
        weight_copy = _weight_copy(family, weight_copy)
        if isinstance(pipeline, (str, os.PathLike)):
            source = str(pipeline)
            pipeline = family.load_pipeline(source, revision, dtype)
            for module in (getattr(pipeline, name) for name in (family.denoiser, *family.frozen_loaders)):
                align_weights(module)
        transformer = getattr(pipeline, family.denoiser)
        backbone = {**family.backbone_config(pipeline), **(backbone_options or {})}
        policy = cls(ImageWAMConfig.from_preset(preset, backbone=backbone, **config_kwargs), transformer)
        if weight_copy is not None:
            per_segment = weight_copy == "per_segment"
            copy_editing_weights(policy.action_expert, transformer, per_segment=per_segment)
        policy.to(transformer.device, transformer.dtype)
        policy.backbone.attach_pipeline(pipeline, source, revision)
        return policy if dtype is None else policy.to(dtype)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a checkpoint folder or hub repo. As in transformers, but a weight that is missing, unexpected or
        unreadable is an error: a policy with a few random tensors still moves a robot.

        Raises:
            ValueError: names of the weights that did not match.
            OSError: the file that could not be read.
        """
        path = pretrained_model_name_or_path
        try:
            policy, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise OSError(f"a weight file of {path} is corrupt or truncated: {error}") from error
        for kind in ("missing_keys", "unexpected_keys"):
            if info[kind]:
                raise ValueError(f"{path} does not fit its own config.json: {kind} {sorted(info[kind])}")
        align_weights(policy)
        policy.backbone.freeze_unused_weights()
        return (policy, info) if output_loading_info else policy

    @property
    def homeless_frozen_parts(self) -> list[str]:
        """The frozen parts that no hub repo is known to hold."""
        references = self.config.frozen_parts
        return [name for name in self.backbone.frozen_loaders if not (references.get(name) or {}).get("repo")]

    def check_frozen_references(self, saved: Collection[str] = ()) -> None:
        """Make sure that a checkpoint could find the frozen parts again that are not `saved` with it.

        Raises:
            ValueError: one of them has no hub repo to refer to.
        """
        homeless = [name for name in self.homeless_frozen_parts if name not in saved]
        if homeless:
            raise ValueError(
                f"the frozen parts {homeless} were not loaded from a hub repo, so a checkpoint cannot refer to them; "
                "save with save_frozen=True, or name a repo in policy.config.frozen_parts"
            )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        save_frozen: bool | Collection[str] = False,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Write the checkpoint folder: whole, or not at all.

        Args:
            save_frozen: also write VAE and text encoder into `frozen/`, so that the folder needs nothing else; or the
                names of those to write.

        Raises:
            ValueError: a frozen part that is not written has no hub repo to refer to.
        """
        saved = self._frozen_to_save(save_frozen)
        self.check_frozen_references(saved)
        references = self.config.frozen_parts
        with atomic_folder(save_directory, replaces=("model*.safetensors", "model.safetensors.index.json")) as staging:
            try:
                self.config.frozen_parts = self._save_frozen(staging, saved)
                super().save_pretrained(staging, **kwargs)
            finally:
                self.config.frozen_parts = references
        if push_to_hub:
            self.push_to_hub(Path(save_directory).name, save_frozen=save_frozen)

    def push_to_hub(
        self, repo_id: str, *, save_frozen: bool | Collection[str] = False, max_shard_size="50GB", **kwargs
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes; all else in the repo stays as it is.

        Args:
            **kwargs: `commit_message`, `private`, `token`, `revision`, `create_pr`.
        """

        def save(folder: str) -> None:
            self.save_pretrained(folder, save_frozen=save_frozen, max_shard_size=max_shard_size)

        return upload_saved(save, repo_id, **{"commit_message": "Upload policy", **kwargs})

    def _frozen_to_save(self, save_frozen: bool | Collection[str]) -> Collection[str]:
        known = tuple(self.backbone.frozen_loaders)
        names = (known if save_frozen else ()) if isinstance(save_frozen, bool) else save_frozen
        if unknown := set(names) - set(known):
            raise ValueError(f"this policy has the frozen parts {known}, not {sorted(unknown)}")
        return names

    def _save_frozen(self, folder: str, names: Collection[str]) -> dict[str, dict]:
        references = dict(self.config.frozen_parts)
        for name in names:
            save_frozen_part(self.backbone.frozen_part(name), os.path.join(folder, "frozen", name))
            references[name] = {"repo": None, "subfolder": f"frozen/{name}", "revision": None}
        return references


def _weight_copy(family: type[EditingBackbone], asked: str | None) -> str | None:
    """How the action expert starts on this family, said in the log with the family's tier."""
    if asked not in ("auto", None) and not family.copies_weights:
        raise ValueError(
            f"the action expert of {family.family} has not the form of its editing blocks and cannot start as a copy "
            f"of them: expected weight_copy 'auto' or None, got {asked!r}"
        )
    if asked == "auto":
        asked = "per_segment" if family.copies_weights else None
    start = "fresh weights" if asked is None else f"editing weights, {asked}"
    tell = logger.info if family.copies_weights and family.tier != "C" else logger.warning
    tell(f"{family.family}: tier {family.tier}, {TIERS[family.tier]}. The action expert starts with {start}.")
    return asked
