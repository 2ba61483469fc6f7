import numpy as np
import pytest
import torch

from imagewam.pipelines.attention_maps import attention_maps, attention_shares, mean_attention, overlay
from imagewam.processing.camera_layout import CameraLayout, CameraSpec

LAYOUT = CameraLayout([CameraSpec("scene", 64, 64), CameraSpec("wrist", 64, 32)], "horizontal")
GRID = (4, 6)  # 16 pixels per token
SPANS = {"text": slice(0, 5), "state": slice(5, 6), "image": slice(6, 30)}


def attention_on(row: int, column: int) -> torch.Tensor:
    """Three quarters of the attention on one image token, the rest on the state token."""
    attention = torch.zeros(1, 30)
    attention[0, 6 + row * GRID[1] + column] = 0.75
    attention[0, 5] = 0.25
    return attention


def test_a_token_appears_in_its_camera_at_its_place():
    (maps,) = attention_maps(attention_on(2, 5), SPANS["image"], GRID, LAYOUT)
    assert maps["scene"].shape == (4, 4) and maps["wrist"].shape == (4, 2)
    assert maps["scene"].max() == 0
    assert np.argwhere(maps["wrist"]).tolist() == [[2, 1]]


def test_shares_add_up():
    assert attention_shares(attention_on(0, 0), SPANS) == [{"text": 0.0, "state": 0.25, "image": 0.75}]


def test_mean_over_chosen_parts():
    generator = torch.Generator().manual_seed(0)
    attentions = [[torch.rand(2, 3, 8, 30, generator=generator) for _layer in range(4)] for _step in range(5)]
    everything = torch.stack([torch.stack(step) for step in attentions])  # [steps, layers, B, heads, horizon, tokens]
    assert torch.allclose(mean_attention(attentions), everything.mean(dim=(0, 1, 3, 4)))
    chosen = mean_attention(
        attentions, steps=slice(-1, None), layers=slice(1, 3), heads=slice(0, 1), actions=slice(0, 2)
    )
    assert torch.allclose(chosen, everything[-1, 1:3, :, 0, :2].mean(dim=(0, 2)))


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"24 tokens, a grid of \(4, 4\)"):
        attention_maps(attention_on(0, 0), SPANS["image"], (4, 4), LAYOUT)


def test_the_overlay_is_brightest_where_the_heat_is():
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[3, 0] = 0.5
    picture = overlay(image, heat)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    row, column = np.unravel_index(picture[..., 0].argmax(), (64, 64))
    assert row >= 48 and column < 16
    assert overlay(image, heat, top=5.0).max() < picture.max(), "a common scale dims weaker maps"


def test_what_lies_below_the_floor_leaves_no_colour():
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    heat = np.full((4, 4), 0.1, dtype=np.float32)
    assert np.ptp(overlay(image, heat, top=1.0, floor=0.1)) == 0
    assert np.ptp(overlay(image, heat, top=1.0, floor=0.0), axis=2).max() > 0
