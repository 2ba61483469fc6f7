"""RoPE positions of image tokens, for networks that number images, rows and columns."""

import torch
from torch import Tensor


def image_ids(grid: tuple[int, int], index: int, device: torch.device | str | None = None) -> Tensor:
    """Positions (index, row, column) of one image, `[rows · columns, 3]`, row-major."""
    rows, columns = (torch.arange(size, device=device) for size in grid)
    return torch.cartesian_prod(torch.full((1,), index, device=device), rows, columns)
