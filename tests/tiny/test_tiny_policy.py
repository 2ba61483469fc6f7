"""The recipe's policy on a recording of 32-pixel pictures: fitted, trained for some steps, stopped, resumed."""

import numpy as np
import pytest
import torch

from imagewam import ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.data.action_chunks import ActionChunkDataset
from imagewam.data.collator import ImageWAMCollator
from imagewam.data.decoded_dataset import DecodedDataset
from imagewam.data.statistics import compute_statistics
from imagewam.evaluation.environment import EnvironmentSpec
from imagewam.tiny.base import canvases, fitted_tiny_pipeline
from imagewam.tiny.half_precision import store_in_float16
from imagewam.tiny.policy import SIZES, TEXT_LAYERS, checkpoint_to_resume, contract_of, new_policy, train_policy
from imagewam.tiny.settings import TinySettings
from imagewam.training.precomputed import PrecomputedCollator

HORIZON = 4


@pytest.fixture(scope="module")
def contract():
    names = [tuple(f"{key}_{i}" for i in range(4)) for key in ("observation.state", "action")]
    spec = EnvironmentSpec("ball", 80, dict.fromkeys(("corner2", "gripperPOV"), (32, 32)), *names, "+1 closes")
    return contract_of(spec, HORIZON)


@pytest.fixture(scope="module")
def dataset(recorded):
    return DecodedDataset(recorded)


@pytest.fixture(scope="module")
def pipeline(dataset, contract):
    return fitted_tiny_pipeline(dataset, contract, 2, 0, text_steps=2, texts=["go"], **SIZES)


def settings(folder, **changes):
    few = {"episodes_per_task": 2, "held_out_per_task": 1, "train_steps": 4, "batch_size": 2, **changes}
    tasks = ["faucet-open-v3", "faucet-close-v3"]
    return TinySettings("metaworld", output_dir=str(folder), tasks=tasks, horizon=HORIZON, replan_steps=2, **few)


def test_canvases_hold_all_cameras(dataset, contract):
    assert canvases(dataset, contract).shape == (len(dataset), 32, 64, 3)


def test_frames_in_memory_are_the_frames_on_disk(dataset, recorded):
    plain = super(DecodedDataset, DecodedDataset(recorded)).frames("corner2", 2, [5, 0])
    assert np.array_equal(dataset.frames("corner2", 2, [5, 0]), plain)
    with pytest.raises(IndexError, match="not in episode 2"):
        dataset.frames("corner2", 2, [-1])


def test_precomputed_batches_train_like_plain_ones(pipeline, contract, dataset, tmp_path):
    policy = new_policy(pipeline, contract)
    assert policy.config.backbone["text_layers"] == TEXT_LAYERS
    processor = ImageWAMProcessor.for_policy(policy, contract, compute_statistics(dataset, HORIZON))
    samples = ActionChunkDataset(dataset, HORIZON, dataset.camera_names)
    chosen = [samples[index] for index in (0, 8, 20, 40)]  # the second is an episode's last frame
    plain = ImageWAMCollator(processor)(chosen)
    precomputed = PrecomputedCollator(policy, processor, [dataset], tmp_path)(chosen)
    draws = {
        "image_time": torch.tensor([0.1, 0.4, 0.7, 1.0]),
        "action_time": torch.tensor([0.9, 0.6, 0.3, 0.0]),
        "image_noise": torch.randn(precomputed["image_latents"].shape),
        "action_noise": torch.randn(precomputed["actions"].shape),
    }
    expected, output = policy(**plain, **draws), policy(**precomputed, **draws)
    assert output.action_loss.item() == pytest.approx(expected.action_loss.item(), rel=1e-5)
    assert output.image_loss.item() == pytest.approx(expected.image_loss.item(), rel=1e-5)


def test_the_stored_policy_is_whole_and_half_as_large(pipeline, contract, recorded, tmp_path):
    trainer = train_policy(pipeline, contract, recorded, tmp_path / "training", settings(tmp_path))
    trainer.save_model(str(tmp_path / "policy"))
    size = (tmp_path / "policy" / "model.safetensors").stat().st_size
    store_in_float16(tmp_path / "policy")
    assert (tmp_path / "policy" / "model.safetensors").stat().st_size < 0.51 * size
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path / "policy")
    assert loaded.dtype == torch.float32, "half precision is for the disk: CPUs are slow at it"
    assert loaded.backbone.frozen_part("vae").dtype == torch.float32
    for name, weight in trainer.policy.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], weight.half().float(), rtol=0, atol=0)
    assert ImageWAMProcessor.from_pretrained(tmp_path / "policy").contract.hash == trainer.processor.contract.hash


def test_training_goes_on_from_the_last_whole_checkpoint(tmp_path, capsys):
    assert checkpoint_to_resume(tmp_path) is None
    assert capsys.readouterr().out == ""
    (tmp_path / "checkpoint-5").mkdir()  # killed while it was written
    assert checkpoint_to_resume(tmp_path) is None
    assert "the training starts over" in capsys.readouterr().out
    whole = tmp_path / "checkpoint-3"
    whole.mkdir()
    (whole / "run.json").write_text("{}")
    assert checkpoint_to_resume(tmp_path) == str(whole)
