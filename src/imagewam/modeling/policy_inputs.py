"""What goes into a policy: checked, and with what frozen parts make of pixels and token ids."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration_imagewam import ImageWAMConfig
from .backbones import EditingBackbone
from .prompt_tokens import append_state_token, trim_padding
from .turns import Turns

Grid = tuple[int, int]


class PolicyInputs:
    """Mixin of the policy: tensors of an observation or a training batch, in the form that the networks take."""

    config: ImageWAMConfig
    backbone: EditingBackbone
    state_encoder: nn.Linear | None
    _turns: Turns

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
            latents, grid = self._call(self.backbone.encode_image, pixel_values)
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
        """Frozen parts compute in their own dtype, in mixed-precision training as at inference, and for one thread."""
        with self._turns, torch.no_grad(), self._without_autocast():
            yield

    def _without_autocast(self) -> AbstractContextManager:
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()

    def _target_latents(self, target_pixel_values, pixel_values, target_latents, image_latents) -> Tensor | None:
        if not self.backbone.denoises_targets:
            return None
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
        """Token ids and masks of the family's tokenizers; empty unless all ids are there.

        Raises:
            ValueError: a batch of several has no mask, so that padding would be read as words.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.backbone.has_tokenizer_2:
            tokens |= {"input_ids_2": input_ids_2, "attention_mask_2": attention_mask_2}
        elif input_ids_2 is not None:
            raise ValueError(f"{self.backbone.family} has one tokenizer, got input_ids_2")
        ids = [name for name in ("input_ids", "input_ids_2") if name in tokens]
        if any(tokens[name] is None for name in ids):
            return {}
        for name in ids:
            mask = name.replace("input_ids", "attention_mask")
            if tokens[mask] is None and len(tokens[name]) > 1:
                raise ValueError(
                    f"{name} {list(tokens[name].shape)} need their {mask}, which tells words from padding: "
                    f"expected it for a batch of more than one, got none"
                )
        return tokens

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
                pooled_prompt_embeds = self.backbone.read_pooled_instruction(**tokens)
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
                prompt_embeds, prompt_mask = self.backbone.read_instruction(**tokens, pixel_values=pixel_values)
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
