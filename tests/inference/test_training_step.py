"""The planned step beside a real one of a tiny policy, counted in the same way."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction
from imagewam.inference.peak_memory import PeakMemory
from imagewam.inference.training_step import Precision, TrainingStep
from imagewam.inference.variants import VARIANTS, variant_of_pipeline
from imagewam.tiny.pipeline import build_tiny_pipeline

CANVAS, WORDS = (64, 128), 20
INSTRUCTION = "push the cube"
NETWORK = {"heads": 4, "head_dim": 32, "num_layers": 1, "num_single_layers": 2}
SIZES = {"action_dim": 7, "state_dim": 8, "action_horizon": 16, "action_hidden_size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    build_tiny_pipeline([INSTRUCTION], **NETWORK).save_pretrained(folder)
    return str(folder)


def planned(folder, batch_size, precision=None, **config):
    variant = variant_of_pipeline(folder)
    config = ImageWAMConfig(backbone=variant.backbone, **SIZES, **config)
    precision = precision or Precision(frozen=torch.float32)
    return TrainingStep(variant, config, CANVAS, batch_size, WORDS, precision)


def counted(folder, batch_size, checkpointing, bf16=False, **config):
    """Peak of a real step on the CPU, gradients in place."""
    policy = ImageWAMForActionPrediction.from_editing_pipeline(folder, **SIZES, **config).train()
    if checkpointing:
        policy.activation_checkpointing_enable()
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    inputs = {
        name: torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, torch.Tensor) else x
        for name, x in planned(folder, batch_size)._inputs(batch_size).items()
    }
    with PeakMemory() as memory:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = policy(**inputs).loss
        loss.backward()
    return memory.peak


@pytest.mark.parametrize(("edit_mode", "checkpointing"), [("denoise", False), ("denoise", True), ("prefix", False)])
def test_the_planned_step_is_the_real_one(folder, edit_mode, checkpointing):
    real = counted(folder, 8, checkpointing, edit_mode=edit_mode)
    assert planned(folder, 8, edit_mode=edit_mode).step_peak(checkpointing) == pytest.approx(real, rel=0.05)


def test_the_planned_step_under_autocast(folder):
    """CUDA's autocast, which is planned, runs norms in float32, the CPU's does not: a wider tolerance."""
    precision = Precision(frozen=torch.float32, autocast=torch.bfloat16)
    plan, real = planned(folder, 8, precision).step_peak(False), counted(folder, 8, False, bf16=True)
    assert plan == pytest.approx(real, rel=0.2)


def test_a_step_grows_evenly_with_its_batch(folder):
    peaks = [planned(folder, size).step_peak(False) for size in (16, 32, 48)]
    assert peaks[0] < peaks[1] < peaks[2]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.01)


def test_operations_are_three_forward_passes(folder):
    """Forward, and twice as many for the gradients of weights and inputs."""
    step = planned(folder, 1)
    with FlopCounterMode(display=False) as counter:
        step.model(**step._inputs(1))
    assert step.operations() == pytest.approx(3 * counter.get_total_flops(), rel=0.05)


def test_parts_and_tokens_of_the_folder(folder):
    step = planned(folder, 2)
    transformer = build_tiny_pipeline([INSTRUCTION], **NETWORK).transformer
    assert step.parts["editing transformer"].parameters == sum(p.numel() for p in transformer.parameters())
    assert step.tokens == {"text": 20, "state": 1, "image": 128, "target": 128, "action": 16}


def test_a_canvas_must_fit(folder):
    with pytest.raises(ValueError, match="a canvas of 60 x 128.*multiples of 8"):
        variant = variant_of_pipeline(folder)
        TrainingStep(variant, ImageWAMConfig(backbone=variant.backbone, **SIZES), (60, 128), 1, WORDS, Precision())


def test_pipelines_without_a_plan(tmp_path):
    with pytest.raises(ValueError, match="no plan for the pipeline ORG/unknown: .* black-forest-labs/FLUX.2-klein-4B"):
        variant_of_pipeline("ORG/unknown")
    with pytest.raises(OSError, match="holds no editing pipeline"):
        variant_of_pipeline(str(tmp_path))
    assert variant_of_pipeline("OmniGen2/OmniGen2") is VARIANTS["imagewam-omnigen2"]
