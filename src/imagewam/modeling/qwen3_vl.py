"""Qwen3-VL as a text encoder that sees the image at the resolution it has: prompts with one image each -> states."""

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from .qwen2_5_vl import IMAGE_ID, check_inputs, with_visual_tokens

_IMAGE_TYPE = 1


def read_prompt(
    text_encoder: Qwen3VLForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    pixel_values: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Last hidden state, before the final norm, of every token of prompts with one image each.

    Args:
        input_ids: `[B, L]` int64, `IMAGE_ID` once per row.
        attention_mask: `[B, L]`, padding on the right; None where nothing is padded.
        pixel_values: `[B, 3, H, W]` in [-1, 1].

    Returns:
        `[B, L', D]` and the mask `[B, L']` bool or None. `IMAGE_ID` became begin mark, N visual tokens and end mark:
        L' = L + N + 1.

    Raises:
        ValueError: there is no image, a prompt without a place for it, or an image that is no grid of visual tokens.
    """
    check_inputs(input_ids, pixel_values)
    config = text_encoder.config
    patches, grid = vision_patches(pixel_values, config.vision_config)
    num_visual = int(grid[0].prod()) // config.vision_config.spatial_merge_size**2
    ids, mask = with_visual_tokens(config, input_ids, attention_mask, num_visual)
    # What a model gives as its last hidden state depends on the version of transformers.
    states = []
    handle = text_encoder.model.language_model.norm.register_forward_pre_hook(
        lambda module, args: states.append(args[0])
    )
    try:
        text_encoder.model(
            input_ids=ids,
            attention_mask=mask,
            pixel_values=patches,
            image_grid_thw=grid,
            mm_token_type_ids=(ids == config.image_token_id).int() * _IMAGE_TYPE,
            use_cache=False,
        )
    finally:
        handle.remove()
    return states[-1], mask


def vision_patches(pixel_values: Tensor, config: Qwen3VLVisionConfig) -> tuple[Tensor, Tensor]:
    """What the vision tower takes of images `[B, 3, H, W]` in [-1, 1], its own range.

    Returns:
        Patches `[B * h * w, 3 * temporal_patch_size * patch_size**2]` float32, those that are merged into one visual
        token behind each other, and (1, h, w) of every image, `[B, 3]`.

    Raises:
        ValueError: height or width is no multiple of a visual token's side.
    """
    patch, merge = config.patch_size, config.spatial_merge_size
    height, width = pixel_values.shape[-2:]
    if height % (patch * merge) or width % (patch * merge):
        raise ValueError(f"image height and width must be multiples of {patch * merge}, got {height} x {width}")
    rows, columns = height // patch, width // patch
    cells = pixel_values.float().unflatten(3, (columns // merge, merge, patch))
    cells = cells.unflatten(2, (rows // merge, merge, patch))  # batch, channel, 3 of the height, 3 of the width
    cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)
    frames = cells[:, :, :, :, :, :, None].expand(*[-1] * 6, config.temporal_patch_size, -1, -1)
    grid = torch.tensor([[1, rows, columns]], device=pixel_values.device).expand(len(pixel_values), -1)
    return frames.reshape(len(pixel_values) * rows * columns, -1), grid


def begin_of_user_turn(input_ids: Tensor) -> tuple[int, int]:
    """Where the turn with the image begins, and where the image stands; the same in all rows.

    A turn begins with the mark that the prompt begins with.

    Raises:
        ValueError: the rows differ up to the image.
    """
    at = int((input_ids[0] == IMAGE_ID).int().argmax())
    front = input_ids[:, : at + 1]
    if (front != front[:1]).any() or front[0, -1] != IMAGE_ID:
        raise ValueError(f"expected prompts that are the same up to the image's id {IMAGE_ID}, got {front.tolist()}")
    return int((front[0] == front[0, 0]).nonzero()[-1]), at
