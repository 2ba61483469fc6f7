"""LongCat-Image-Edit: Qwen2.5-VL reads image and instruction, FLUX.1's blocks edit.

Tokens are [image and instruction, state | reference image] in the context and the target image in the second call.
Positions are 3-D (kind, row, column): text (0, i, i), target (1, p + r, p + c), reference (2, p + r, p + c), action
(3, p + k, p), where p is `image_offset`.
"""

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, LongCatImageEditPipeline, LongCatImageTransformer2DModel
from torch import Tensor, nn
from transformers import ProcessorMixin, Qwen2_5_VLForConditionalGeneration

from ..action_expert import AttentionGeometry, double_then_single
from ..action_expert.longcat_image import LongCatImageActionExpert
from ..image_positions import image_ids
from ..image_prompt import check_image_comes_first
from ..kv_cache import token_spans
from ..qwen2_5_vl import IMAGE_ID, VISION_PIXELS, read_prompt
from ..qwen3_vl import begin_of_user_turn
from .base import EditingBackbone, Option, TransformerCall, register_family

TARGET_KIND, REFERENCE_KIND, ACTION_KIND = 1, 2, 3
# Tokens in front of the pipeline's image tokens for a square image: 512 of padded words, 18 x 18 visual, 2 marks.
IMAGE_OFFSET = 512 + 18 * 18 + 2
_PATCH = 2
_SYSTEM_TURN = (
    "<|im_start|>system\nAs an image editing expert, first analyze the content and attributes of the input image(s). "
    "Then, based on the user's editing instructions, clearly and precisely determine how to modify the given "
    "image(s), ensuring that only the specified parts are altered and all other aspects remain consistent with the "
    "original(s).<|im_end|>\n<|im_start|>user\n"
)


@register_family
class LongCatImageEditBackbone(EditingBackbone):
    """`LongCatImageEditPipeline`: last hidden states of Qwen2.5-VL for image and instruction.

    The text encoder sees the current image at the policy's own resolution; the pipeline first brings it to about 512²
    pixels, and the VAE's to 1024².

    The pipeline pads the words to 512 tokens, and image positions start behind the padding. Here padding is hidden,
    and image positions start at `image_offset` whatever the length of the text, so that a sample does not depend on
    its batch. The prompt ends with the instruction: attention is causal, and the pipeline drops what follows.

    The pipeline spells text in quotation marks letter by letter; here it is tokenised like any other.

    Options in `config.backbone`: `image_offset`, and `vision_pixels`, least and most pixels of the image that the text
    encoder sees.
    """

    family = "longcat-image-edit"
    pipeline_classes = ("LongCatImageEditPipeline",)
    text_sees_image = True
    frozen_loaders = {"vae": AutoencoderKL, "text_encoder": Qwen2_5_VLForConditionalGeneration}
    default_prompt_format = {
        "chat_template_kwargs": None,
        "system_message": None,
        "content_parts": False,
        "max_length": 640,
        "text": _SYSTEM_TURN + "<image>{prompt}",
        "image_ids": [IMAGE_ID],
    }
    options = {"image_offset": Option(IMAGE_OFFSET), "vision_pixels": Option(list(VISION_PIXELS))}
    action_expert_class = LongCatImageActionExpert
    lora_targets = (
        r"backbone\.transformer\.(transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj"
        r"|add_v_proj|to_add_out)|(ff|ff_context)\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out))"
    )

    def build_transformer(self) -> LongCatImageTransformer2DModel:
        return LongCatImageTransformer2DModel.from_config(self.config.backbone["transformer"])

    def prepare_transformer(self) -> None:
        super().prepare_transformer()
        check_image_comes_first(self.prompt_format["text"])

    @property
    def attention_layers(self) -> list[AttentionGeometry]:
        return double_then_single(self.transformer.config)

    @property
    def text_dim(self) -> int:
        return self.transformer.config.joint_attention_dim

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.in_channels

    @property
    def image_multiple(self) -> int:
        return 2 ** (len(self.frozen_part("vae").config.block_out_channels) - 1) * _PATCH

    @property
    def image_offset(self) -> int:
        return self.config.backbone["image_offset"]

    def encode_instruction(self, input_ids, attention_mask, pixel_values=None) -> tuple[Tensor, Tensor | None]:
        """Hidden states from the image's begin mark on: `[B, L', text_dim]` with their mask."""
        limits = self.config.backbone["vision_pixels"]
        text_encoder = self.frozen_part("text_encoder")
        hidden_states, mask = read_prompt(text_encoder, input_ids, attention_mask, pixel_values, limits)
        _, start = begin_of_user_turn(input_ids)
        return hidden_states[:, start:], None if mask is None else mask[:, start:]

    def encode_image(self, pixel_values: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Mean of the VAE posterior, shifted, scaled, in 2x2 patches."""
        vae, grid = self.frozen_part("vae"), self.grid_of(pixel_values)
        latents = vae.encode(pixel_values.to(vae.dtype)).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return LongCatImageEditPipeline._pack_latents(latents, *latents.shape), grid

    def decode_image(self, image_latents: Tensor, image_grid: tuple[int, int]) -> Tensor:
        vae = self.frozen_part("vae")
        height, width = (n * _PATCH for n in image_grid)
        latents = LongCatImageEditPipeline._unpack_latents(image_latents.to(vae.dtype), height, width, 1)
        return vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]

    def context_call(self, prompt_embeds, prompt_mask, image_latents, image_grid, timestep) -> TransformerCall:
        num_text, num_image = prompt_embeds.shape[1], image_latents.shape[1]
        key_mask = None if prompt_mask is None else nn.functional.pad(prompt_mask, (0, num_image), value=True)
        kwargs = self._kwargs(prompt_embeds, image_latents, image_grid, REFERENCE_KIND, timestep)
        return TransformerCall(kwargs, token_spans(text=num_text, image=num_image), key_mask)

    def target_call(self, target_latents, timestep, context) -> TransformerCall:
        no_text = target_latents.new_zeros(len(target_latents), 0, self.text_dim)
        kwargs = self._kwargs(no_text, target_latents, context.image_grid, TARGET_KIND, timestep)
        return TransformerCall(kwargs, token_spans(target=target_latents.shape[1]))

    def _kwargs(self, text: Tensor, latents: Tensor, grid: tuple[int, int], kind: int, timestep: Tensor) -> dict:
        dtype, device = self.transformer.dtype, latents.device
        return {
            "hidden_states": latents.to(dtype),
            "encoder_hidden_states": text.to(dtype),
            "timestep": timestep.to(dtype),
            "img_ids": shifted_image_ids(grid, kind, self.image_offset, device),
            "txt_ids": text_ids(text.shape[1], device),
        }

    def action_rotary_emb(self, horizon: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.transformer.pos_embed(shifted_image_ids((horizon, 1), ACTION_KIND, self.image_offset, device))

    @classmethod
    def load_pipeline(cls, source, revision, dtype, **parts) -> DiffusionPipeline:
        """Without the processor, which needs torchvision: the policy prepares tokens and images itself."""
        return super().load_pipeline(source, revision, dtype, **{"text_processor": AbsentProcessor(), **parts})


def text_ids(length: int, device: torch.device) -> Tensor:
    """`[length, 3]` positions (0, i, i)."""
    index = torch.arange(length, device=device)
    return torch.stack([torch.zeros_like(index), index, index], dim=-1)


def shifted_image_ids(grid: tuple[int, int], kind: int, offset: int, device: torch.device) -> Tensor:
    """`[rows · columns, 3]` positions (kind, offset + row, offset + column), row-major."""
    ids = image_ids(grid, kind, device)
    return ids + ids.new_tensor([0, offset, offset])


class AbsentProcessor(ProcessorMixin):
    """What the pipeline class can be built with where nobody will run it."""

    image_processor = None

    def __init__(self):
        super().__init__()
