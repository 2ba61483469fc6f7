"""What comes with the package works by its name alone, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.commands import info
from imagewam.data import ActionChunkDataset, LeRobotDataset
from imagewam.evaluation.recorded_episodes import read_recorded_episodes
from imagewam.hub.lerobot_folder import lerobot_files
from imagewam.hub.model_card import read_card
from imagewam.shipped import METAWORLD_EPISODES, TINY_METAWORLD, shipped_source
from imagewam.tiny.settings import TINY_BENCHMARKS

FOLDER = Path(shipped_source(TINY_METAWORLD))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def parts():
    return tuple(part.from_pretrained(TINY_METAWORLD) for part in (ImageWAMForActionPrediction, ImageWAMProcessor))


def test_names_are_found_and_folders_of_that_name_come_first(tmp_path, monkeypatch):
    assert FOLDER.is_dir() and shipped_source("org/other") == "org/other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / TINY_METAWORLD).mkdir()
    assert shipped_source(TINY_METAWORLD) == TINY_METAWORLD


def test_all_of_it_is_small():
    """As the weight files of a policy of this size are limited to 25 MB."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 25e6
    assert sum(p.stat().st_size for p in Path(shipped_source(METAWORLD_EPISODES)).rglob("*") if p.is_file()) < 2e6


def test_the_policy_acts_as_the_expert_did_in_episodes_that_it_never_saw(parts):
    policy, processor = parts
    assert policy.dtype == torch.float32
    dataset = LeRobotDataset(METAWORLD_EPISODES)
    samples = ActionChunkDataset(dataset, processor.contract.horizon, dataset.camera_names)
    chosen = [samples[index] for index in range(0, len(samples), 40)]
    inputs = processor(
        images=[sample["images"] for sample in chosen],
        instruction=[sample["instruction"] for sample in chosen],
        state=np.stack([sample["state"] for sample in chosen]),
        return_tensors="pt",
    )
    output = policy.predict_action(**inputs, generator=torch.Generator().manual_seed(0))
    valid = ~np.stack([sample["action_is_pad"] for sample in chosen])
    actions = np.stack([sample["actions"] for sample in chosen])
    error = np.abs(processor.decode_actions(output.actions) - actions)[valid].mean()
    still = np.abs(actions)[valid].mean()
    assert error < 0.4 * still, f"its error is {error:.3f}, that of no action {still:.3f}"


def test_the_episodes_are_of_its_tasks_and_were_not_trained_on(parts):
    _, processor = parts
    played = [episode for episode, _ in read_recorded_episodes(shipped_source(METAWORLD_EPISODES), "metaworld_sawyer")]
    assert [episode.task for episode in played] == list(TINY_BENCHMARKS["metaworld"].tasks)
    assert all(episode.seed >= 3000 for episode in played)


def test_the_card_tells_where_it_comes_from_and_what_it_can():
    card = read_card(FOLDER / "README.md")
    for words in (
        "imagewam train-tiny metaworld",
        "commit",
        "training_curves.png",
        *TINY_BENCHMARKS["metaworld"].tasks,
    ):
        assert words in card.text, words
    assert card.data.license == "apache-2.0" and "its licence is not" not in card.text
    (results,) = [json.loads(path.read_text()) for path in (FOLDER / "evaluations").glob("*.json")]
    assert results["overall"]["trials"] >= 20 * len(TINY_BENCHMARKS["metaworld"].tasks)


def test_commands_take_its_name(capsys):
    assert ImageWAMConfig.from_pretrained(TINY_METAWORLD).edit_mode == "prefix"
    for name, words in ((TINY_METAWORLD, "prefix"), (METAWORLD_EPISODES, "13, ")):
        info.main([name])
        shown = capsys.readouterr().out
        assert "corner2" in shown and words in shown


def test_a_lerobot_folder_points_to_a_repo_and_to_nothing_of_this_package():
    with pytest.raises(ValueError, match="is none: upload it"):
        lerobot_files(TINY_METAWORLD)
