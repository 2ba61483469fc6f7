import pytest
import torch

from imagewam import ImageWAMForActionPrediction
from imagewam.modeling.backbones import family_of_pipeline
from imagewam.processing.prompt import check_prompt_format, tokenize
from tiny_families import FAMILIES

INSTRUCTIONS = ["open the drawer", "push the red button on the wall"]


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_pipeline(request):
    """Every test that uses it, or a policy on it, runs for every editing family."""
    return FAMILIES[request.param].pipeline(INSTRUCTIONS)


@pytest.fixture
def make_policy(tiny_pipeline):
    """A new tiny policy; keyword arguments go to the config. Its weights are its own."""

    def make(**kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            arguments = {"action_dim": 4, "state_dim": 3, "action_horizon": 6, "action_hidden_size": 24, **kwargs}
            return ImageWAMForActionPrediction.from_editing_pipeline(tiny_pipeline, **arguments).eval()

    return make


@pytest.fixture
def observation(tiny_pipeline):
    """A batch of two, with instructions of different lengths."""
    generator = torch.Generator().manual_seed(2)
    prompt_format = check_prompt_format(family_of_pipeline(tiny_pipeline).default_prompt_format)
    tokens = tokenize(tiny_pipeline.tokenizer, INSTRUCTIONS, "{instruction}", prompt_format)
    if (second := prompt_format["tokenizer_2"]) is not None:
        tokens_2 = tokenize(tiny_pipeline.tokenizer_2, INSTRUCTIONS, "{instruction}", second)
        tokens |= {f"{name}_2": values for name, values in tokens_2.items()}
    tokens = {name: torch.from_numpy(values) for name, values in tokens.items()}
    assert not tokens["attention_mask"].all()
    return {
        "pixel_values": torch.rand(2, 3, 16, 32, generator=generator) * 2 - 1,
        **tokens,
        "state": torch.randn(2, 3, generator=generator),
    }


@pytest.fixture
def batch(observation):
    generator = torch.Generator().manual_seed(3)
    return {
        **observation,
        "target_pixel_values": torch.rand(2, 3, 16, 32, generator=generator) * 2 - 1,
        "actions": torch.randn(2, 6, 4, generator=generator),
        "action_is_pad": torch.tensor([[False] * 6, [False] * 4 + [True] * 2]),
    }


@pytest.fixture
def noise(make_policy):
    """What `predict_action` starts from, for `observation`."""
    channels = make_policy().backbone.latent_channels
    return {
        "latents": torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(4)),
        "image_noise": torch.randn(2, 8, channels, generator=torch.Generator().manual_seed(5)),
    }


@pytest.fixture
def training_noise(noise):
    return {"action_noise": noise["latents"], "image_noise": noise["image_noise"]}
