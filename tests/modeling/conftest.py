import pytest
import torch

from imagewam import ImageWAMForActionPrediction
from imagewam.demo.tiny_pipeline import build_tiny_pipeline

INSTRUCTIONS = ["open the drawer", "push the red button on the wall"]


@pytest.fixture(scope="session")
def tiny_pipeline():
    return build_tiny_pipeline(INSTRUCTIONS, num_layers=1, num_single_layers=2, heads=2, head_dim=16, text_width=16)


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
    tokens = tiny_pipeline.tokenizer(INSTRUCTIONS, padding=True, return_tensors="pt")
    assert not tokens["attention_mask"].all()
    return {
        "pixel_values": torch.rand(2, 3, 16, 32, generator=generator) * 2 - 1,
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
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
