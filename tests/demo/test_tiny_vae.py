import pytest
import torch

from imagewam.demo.tiny_pipeline import build_tiny_pipeline
from imagewam.demo.tiny_vae import fit_vae


@pytest.fixture
def vae():
    return build_tiny_pipeline(["go"], num_layers=1, num_single_layers=1).vae


def test_fitting_lowers_the_error_and_measures_the_latents(vae):
    ground = torch.rand(8, 1, 1, 3, generator=torch.Generator().manual_seed(0)) * 255
    images = ground.expand(-1, 16, 24, -1).to(torch.uint8)
    first = fit_vae(vae, images, steps=1)
    torch.manual_seed(0)
    last = fit_vae(vae, images, steps=40)
    assert last < 0.8 * first
    assert vae.bn.running_var.max() != 1 and not any(p.requires_grad for p in vae.parameters())


def test_canvases_that_are_no_whole_tokens_are_refused(vae):
    with pytest.raises(ValueError, match="multiples of 8, got 16 x 20"):
        fit_vae(vae, torch.zeros(1, 16, 20, 3, dtype=torch.uint8), steps=1)
