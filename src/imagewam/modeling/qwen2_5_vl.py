"""Qwen2.5-VL as a text encoder that sees the image: instructions with one image each -> hidden states of all tokens.

Batched and without Pillow; the image goes through what transformers' image processor does to it.
"""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from .image_levels import resize_levels, to_levels

# Stands for the image in token ids: no text can give it, and no vocabulary has it.
IMAGE_ID = -300
# Limits of the area that an image is resized to, from the processor of the released Qwen2.5-VL models.
VISION_PIXELS = (56 * 56, 128 * 128 * 28 * 28)


def read_prompt(
    text_encoder: Qwen2_5_VLForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    pixel_values: Tensor,
    vision_pixels: tuple[int, int] = VISION_PIXELS,
) -> tuple[Tensor, Tensor | None]:
    """Last hidden state, after the final norm, of every token of prompts with one image each.

    Image tokens have the 3-D positions that the model was trained with. (diffusers 0.42 with transformers 5 runs the
    same model with text positions throughout, for want of `mm_token_type_ids`: diffusers issue 14194.)

    Args:
        input_ids: `[B, L]` int64, `IMAGE_ID` once per row.
        attention_mask: `[B, L]`, padding on the right; None where nothing is padded.
        pixel_values: `[B, 3, H, W]` in [-1, 1].
        vision_pixels: least and most pixels that the image is resized to.

    Returns:
        `[B, L', D]` and the mask `[B, L']` bool or None. `IMAGE_ID` became begin mark, N visual tokens and end mark:
        L' = L + N + 1.

    Raises:
        ValueError: there is no image, or a prompt without a place for it.
    """
    check_inputs(input_ids, pixel_values)
    patches, grid = vision_patches(pixel_values, text_encoder.config.vision_config, vision_pixels)
    num_visual = int(grid[0].prod()) // text_encoder.config.vision_config.spatial_merge_size**2
    ids, mask = with_visual_tokens(text_encoder.config, input_ids, attention_mask, num_visual)
    output = text_encoder.model(
        input_ids=ids,
        attention_mask=mask,
        pixel_values=patches,
        image_grid_thw=grid,
        mm_token_type_ids=(ids == text_encoder.config.image_token_id).int(),  # 1 is an image, 0 text
        use_cache=False,
    )
    return output.last_hidden_state, mask


def vision_patches(
    pixel_values: Tensor, config: Qwen2_5_VLVisionConfig, vision_pixels: tuple[int, int] = VISION_PIXELS
) -> tuple[Tensor, Tensor]:
    """What the vision tower takes of images `[B, 3, H, W]` in [-1, 1].

    Returns:
        Patches `[B * h * w, 3 * temporal_patch_size * patch_size**2]` float32, those that are merged into one visual
        token behind each other, and (1, h, w) of every image, `[B, 3]`.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    size = smart_resize(*pixel_values.shape[-2:], patch * merge, *vision_pixels)
    levels = resize_levels(to_levels(pixel_values), size)
    mean, std = (levels.new_tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    pixels = (levels / 255 - mean) / std
    rows, columns = size[0] // patch, size[1] // patch
    cells = pixels.reshape(len(pixels), -1, rows // merge, merge, patch, columns // merge, merge, patch)
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)  # batch, row, column, row and column in the cell, channel, pixels
    frames = cells[:, :, :, :, :, :, None].expand(*[-1] * 6, config.temporal_patch_size, -1, -1)
    grid = torch.tensor([[1, rows, columns]], device=pixels.device).expand(len(pixels), -1)
    return frames.reshape(len(pixels) * rows * columns, -1), grid


def with_visual_tokens(
    config, input_ids: Tensor, attention_mask: Tensor | None, num_visual: int
) -> tuple[Tensor, Tensor | None]:
    """Ids `[B, L]` and mask with the marks and `num_visual` visual tokens in place of `IMAGE_ID`.

    Args:
        config: of the whole model, which knows the ids of these tokens.
    """
    image = input_ids.new_tensor(
        [config.vision_start_token_id, *[config.image_token_id] * num_visual, config.vision_end_token_id]
    )
    at = (input_ids == IMAGE_ID).int().argmax(dim=1)
    rows = [torch.cat([row[:i], image, row[i + 1 :]]) for row, i in zip(input_ids, at.tolist(), strict=True)]
    if attention_mask is None:
        return torch.stack(rows), None
    # The image stands among words and padding behind them, so the mask only grows in front.
    mask = functional.pad(attention_mask.bool(), (len(image) - 1, 0), value=True)
    return torch.stack(rows), mask


def check_inputs(input_ids: Tensor, pixel_values: Tensor | None) -> None:
    """Whether prompts `[B, L]` and images belong together.

    Raises:
        ValueError: there is no image, not one for each prompt, or a prompt without a place for it.
    """
    if pixel_values is None:
        raise ValueError("this text encoder sees the current image: expected pixel_values, got None")
    if pixel_values.ndim != 4 or len(pixel_values) != len(input_ids):
        raise ValueError(f"expected pixel_values [{len(input_ids)}, 3, H, W], got {list(pixel_values.shape)}")
    places = (input_ids == IMAGE_ID).sum(dim=1)
    if (places != 1).any():
        raise ValueError(f"expected prompts with the image's id {IMAGE_ID} once each, got {places.tolist()} of it")
