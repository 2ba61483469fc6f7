"""Instruction embeddings: padding trimmed, the state token put behind the last word."""

import torch
from torch import Tensor


def trim_padding(prompt_embeds: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Valid tokens moved to the front in their order, columns that are padding for everyone cut off.

    Masked padding equals no padding exactly, so this only saves work.

    Args:
        prompt_embeds: `[B, L, D]`.
        mask: `[B, L]` bool, True for real tokens, wherever they stand.

    Returns:
        `[B, L', D]` and `[B, L']`; the mask is None when nothing is padded.
    """
    lengths = mask.sum(dim=1)
    shortest, longest = int(lengths.min()), int(lengths.max())
    order = (~mask).int().argsort(dim=1, stable=True)[:, :longest]
    prompt_embeds = prompt_embeds.gather(1, order[..., None].expand(-1, -1, prompt_embeds.shape[-1]))
    return prompt_embeds, None if shortest == longest else mask.gather(1, order)


def append_state_token(prompt_embeds: Tensor, mask: Tensor | None, token: Tensor) -> tuple[Tensor, Tensor | None]:
    """Put one token `[B, D]` right behind each sample's last valid token.

    Args:
        prompt_embeds, mask: as `trim_padding` returns them.
    """
    token = token[:, None].to(prompt_embeds.dtype)
    if mask is None:
        return torch.cat([prompt_embeds, token], dim=1), None
    position = mask.sum(dim=1)[:, None]
    padded = torch.cat([prompt_embeds, torch.zeros_like(token)], dim=1)
    embeds = padded.scatter(1, position[..., None].expand(-1, -1, token.shape[-1]), token)
    mask = torch.nn.functional.pad(mask, (0, 1)).scatter(1, position, True)
    return embeds, mask
