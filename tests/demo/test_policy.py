import numpy as np
import pytest
import torch
from imagewam.demo.policy import checkpoint_to_resume, metaworld_contract, new_policy

from imagewam.data.action_chunks import ActionChunkDataset
from imagewam.data.collator import ImageWAMCollator
from imagewam.data.decoded_dataset import DecodedDataset
from imagewam.data.statistics import compute_statistics
from imagewam.demo.closed_loop import attention_views, imagined_futures, play
from imagewam.demo.settings import DemoSettings
from imagewam.evaluation.environment import Observation
from imagewam.evaluation.policy_predictor import PolicyPredictor
from imagewam.processing.contract import ContractMismatchError
from imagewam.processing_imagewam import ImageWAMProcessor
from imagewam.tiny.base import canvases
from imagewam.training.precomputed import PrecomputedCollator

HORIZON = 4


@pytest.fixture(scope="module")
def dataset(recorded):
    return DecodedDataset(recorded)


@pytest.fixture(scope="module")
def predictor(dataset):
    contract = metaworld_contract(dataset, HORIZON)
    policy = new_policy(
        dataset, contract, DemoSettings(horizon=HORIZON, replan_steps=2, vae_steps=3, num_inference_steps=2)
    )
    statistics = compute_statistics(dataset, HORIZON)
    return PolicyPredictor(policy, ImageWAMProcessor.for_policy(policy, contract, statistics))


@pytest.fixture(scope="module")
def samples(dataset):
    return ActionChunkDataset(dataset, HORIZON, dataset.camera_names)


@pytest.fixture
def observations(samples):
    chosen = [samples[index] for index in (3, 30)]
    return [Observation(s["images"], s["state"], s["instruction"], "task", 7, s["frame_index"]) for s in chosen]


def test_frames_in_memory_are_the_frames_on_disk(dataset, recorded):
    plain = super(DecodedDataset, DecodedDataset(recorded)).frames("corner2", 2, [5, 0])
    assert np.array_equal(dataset.frames("corner2", 2, [5, 0]), plain)
    with pytest.raises(IndexError, match="not in episode 2"):
        dataset.frames("corner2", 2, [-1])
    assert canvases(dataset, metaworld_contract(dataset, HORIZON)).shape == (len(dataset), 32, 64, 3)


def test_precomputed_batches_train_like_plain_ones(predictor, dataset, samples, tmp_path):
    policy, processor = predictor.policy, predictor.processor
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


def test_a_prediction_does_not_depend_on_its_batch(predictor, observations):
    together = predictor(observations)
    assert together.shape == (2, HORIZON, 4)
    for chunk, observation in zip(together, observations, strict=True):
        np.testing.assert_allclose(predictor([observation])[0], chunk, atol=1e-5)


def test_another_seed_is_another_noise(predictor, observations):
    other = PolicyPredictor(predictor.policy, predictor.processor, seed=1)
    assert not np.allclose(other(observations), predictor(observations), atol=1e-3)


@pytest.mark.sim
def test_a_policy_for_other_pictures_is_not_played(predictor):
    """The recorded frames are 32 pixels wide, and the state and actions are named otherwise."""
    settings = DemoSettings(horizon=HORIZON, replan_steps=2, workers=1, image_size=64)
    with pytest.raises(ContractMismatchError, match=r"cameras\[0\].source_size\[0\]: 32 in the policy, 64 in the env"):
        play(predictor, settings)


def test_views_and_futures_have_the_cameras_sizes(predictor, observations, samples):
    views = attention_views(predictor, observations)
    assert [[view.shape for view in pair] for pair in views] == [[(32, 32, 3)] * 2] * 2
    (row,) = imagined_futures(predictor, samples, [4])
    assert [image.shape for image in row.images] == [(32, 64, 3)] * 3
    assert row.title == "“turn the faucet on”"


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
