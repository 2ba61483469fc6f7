"""Arms of the study on six recorded episodes, for two steps each; figures from made-up results."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from imagewam.data.decoded_dataset import DecodedDataset
from imagewam.evaluation.environment import EnvironmentSpec, Observation
from imagewam.study.arms import ARMS
from imagewam.study.figures import read_rows, write_figures
from imagewam.study.run import run_study
from imagewam.study.settings import StudySettings
from imagewam.study.train_arm import train_arm
from imagewam.tiny.base import fitted_tiny_pipeline
from imagewam.tiny.policy import SIZES, contract_of
from imagewam.tiny.recipe import BASE, DATASET
from imagewam.tiny.settings import TinySettings
from recorded_ball import CAMERAS, record_ball

TASKS = ["faucet-open-v3", "faucet-close-v3"]
NAMES = [tuple(f"{key}_{i}" for i in range(4)) for key in ("observation.state", "action")]
CONTRACT = contract_of(EnvironmentSpec("ball", 80, dict.fromkeys(CAMERAS, (32, 32)), *NAMES, "+1 closes"), 16)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """What `imagewam train-tiny` leaves of two tasks."""
    folder = tmp_path_factory.mktemp("recipe")
    record_ball(folder / DATASET)
    few = {"tasks": TASKS, "episodes_per_task": 2, "held_out_per_task": 1}
    TinySettings("metaworld", output_dir=str(folder), **few).claim_folder()
    pipeline = fitted_tiny_pipeline(DecodedDataset(folder / DATASET), CONTRACT, 2, 0, text_steps=2, **SIZES)
    pipeline.save_pretrained(folder / BASE)
    return folder


def settings(recipe, **changes):
    return StudySettings(**{"recipe": str(recipe), "tasks": TASKS[:1], "train_steps": 2, "batch_size": 2, **changes})


def test_the_arms_learn_the_episodes_of_the_chosen_tasks(recipe):
    assert settings(recipe).episodes() == ([0, 1], [2])
    assert settings(recipe, tasks=TASKS[1:]).episodes() == ([3, 4], [5])
    with pytest.raises(ValueError, match="not recorded with reach-v3"):
        settings(recipe, tasks=["reach-v3"]).made()
    with pytest.raises(ValueError, match="no arm 'magic'"):
        StudySettings(arms=["magic"])
    with pytest.raises(OSError, match="no run of `imagewam train-tiny`"):
        StudySettings(recipe="/nowhere").made()


@pytest.mark.parametrize("name", list(ARMS))
def test_an_arm_learns_and_plays(name, recipe, tmp_path):
    trained = train_arm(ARMS[name], 0, settings(recipe), CONTRACT, tmp_path)
    reference = train_arm(ARMS["prefix"], 0, settings(recipe), CONTRACT, tmp_path / "reference")
    assert trained.steps == (4 if ARMS[name].pretrained else 2) and trained.seconds > 0
    assert abs(trained.num_parameters / reference.num_parameters - 1) < 0.1, "a budget of another size"
    pictures = {camera: np.zeros((32, 32, 3), np.uint8) for camera in CAMERAS}
    seen = [Observation(pictures, np.zeros(4, np.float32), "turn the faucet on", TASKS[0], 0, step) for step in (0, 8)]
    for config in ARMS[name].played.values():
        chunks = trained.predictor(config)(seen)
        assert np.shape(chunks) == (2, 16, 4) and np.isfinite(chunks).all()


def test_a_seed_is_another_start_and_the_same_one_the_same(recipe, tmp_path):
    first, again, other = (
        train_arm(ARMS["cloning"], seed, settings(recipe), CONTRACT, tmp_path / str(number)).policy
        for number, seed in enumerate((0, 0, 1))
    )
    weights = [policy.encoder.words.weight for policy in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def write_result(folder, arm, seed, solved, settings):
    played = {
        title: [{"task": TASKS[0], "seed": trial, "success": trial < solved} for trial in range(4)]
        for title in ARMS[arm].played
    }
    result = {"arm": arm, "seed": seed, "settings": settings, "training_seconds": 60 + seed}
    result |= {"parameters": 1000, "frozen_parameters": 20, "steps": 7}
    (folder / arm).mkdir(parents=True, exist_ok=True)
    (folder / arm / f"seed_{seed}.json").write_text(json.dumps({**result, "played": played}))


def test_figures_come_from_the_files(tmp_path):
    for seed, solved in ((0, 4), (1, 2)):
        write_result(tmp_path, "cloning", seed, solved, {})
    write_result(tmp_path, "denoise", 0, 1, {})
    rows = read_rows(tmp_path)
    assert [row.title for row in rows] == [f"denoise (the paper's), τ* = {t}" for t in ("1", "0.75", "0.5")] + [
        "CNN, behaviour cloning"
    ]
    assert (rows[-1].overall.successes, rows[-1].overall.trials, rows[-1].training_seconds) == (6, 8, 60.5)
    table, plot = write_figures(tmp_path)
    line = "| CNN, behaviour cloning | 6/8 = 75% | 41% to 93% | 100%, 50% | 6/8 | 1,000 | 20 | 7 | 60 |"
    assert line in table.read_text()
    assert Image.open(plot).size[0] > 500
    with pytest.raises(OSError, match="holds no results"):
        read_rows(tmp_path / "cloning")
    write_result(tmp_path, "flow", 0, 1, {"train_steps": 9})
    with pytest.raises(ValueError, match="train_steps: there 9, now None"):
        read_rows(tmp_path)


def test_results_of_other_settings_are_not_mixed(recipe, tmp_path):
    mine = settings(recipe, output=str(tmp_path), arms=["cloning"], seeds=[0])
    write_result(tmp_path, "cloning", 0, 1, {**mine.to_dict(), "train_steps": 9})
    for asked in (mine, settings(recipe, output=str(tmp_path), arms=["flow"], seeds=[1])):
        with pytest.raises(ValueError, match="train_steps: there 9, now 2"):
            run_study(asked)
    shutil.rmtree(tmp_path / "cloning")
    write_result(tmp_path, "cloning", 0, 1, mine.to_dict())
    assert run_study(mine) == [tmp_path / "cloning" / "seed_0.json"], "a result that is there is made again"
