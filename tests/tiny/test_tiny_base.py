import pytest
import torch

from imagewam.tiny.pipeline import build_tiny_pipeline
from imagewam.tiny.text_encoder import fit_text_encoder
from imagewam.tiny.vae import fit_vae

TEXTS = ["turn the faucet on", "turn the faucet off", "pull the drawer open"]


@pytest.fixture
def vae():
    return build_tiny_pipeline(["go"], num_layers=1, num_single_layers=1).vae


def test_fitting_lowers_the_error_and_measures_the_latents(vae):
    ground = torch.rand(8, 1, 1, 3, generator=torch.Generator().manual_seed(0)) * 255
    images = ground.expand(-1, 16, 24, -1).to(torch.uint8)
    first = fit_vae(vae, images, steps=1)
    last = fit_vae(vae, images, steps=40)
    assert last < 0.8 * first
    assert vae.bn.running_var.max() != 1 and not any(p.requires_grad for p in vae.parameters())


def test_canvases_that_are_no_whole_tokens_are_refused(vae):
    with pytest.raises(ValueError, match="multiples of 8, got 16 x 20"):
        fit_vae(vae, torch.zeros(1, 16, 20, 3, dtype=torch.uint8), steps=1)


def test_the_text_encoder_learns_to_continue_its_sentences():
    pipeline = build_tiny_pipeline(TEXTS, num_layers=1, num_single_layers=1, text_layers=3)
    first = fit_text_encoder(pipeline.text_encoder, pipeline.tokenizer, TEXTS, steps=1)
    last = fit_text_encoder(pipeline.text_encoder, pipeline.tokenizer, TEXTS, steps=60)
    assert last < 0.3 * first
    assert not any(weight.requires_grad for weight in pipeline.text_encoder.parameters())
    again = build_tiny_pipeline(TEXTS, num_layers=1, num_single_layers=1, text_layers=3)
    fit_text_encoder(again.text_encoder, again.tokenizer, TEXTS, steps=1)
    assert fit_text_encoder(again.text_encoder, again.tokenizer, TEXTS, steps=60) == last
