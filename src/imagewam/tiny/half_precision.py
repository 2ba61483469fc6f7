"""Weight files at half their size: stored in float16, loaded in the precision that config.json names."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..atomic import atomic_file


def store_in_float16(folder: str | Path) -> None:
    """Round the floating-point tensors of all safetensors files below a checkpoint's folder, file by file.

    Raises:
        ValueError: a value is beyond float16's largest, 65504.
    """
    for path in sorted(Path(folder).rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: _rounded(file.get_tensor(name), f"{path}: {name}") for name in file.keys()}
        with atomic_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def _rounded(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(torch.float16)
    if not half.isfinite().all():
        raise ValueError(f"{name} has values beyond float16's largest, 65504")
    return half
