import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def image():
    levels = np.random.default_rng(0).integers(256, size=(32, 64, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="session")
def noise():
    """For an image of the size of `image`: 4 channels, stride 4."""
    return torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(1))
