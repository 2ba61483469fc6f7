"""The demo's parts on recorded moments, without a simulator."""

import numpy as np
import pytest

from imagewam.data.action_chunks import ActionChunkDataset
from imagewam.data.lerobot_dataset import LeRobotDataset
from imagewam.demo.closed_loop import Condition, attention_views, foreseen_views
from imagewam.demo.report import write_report
from imagewam.demo.settings import DemoSettings
from imagewam.demo.told import Told
from imagewam.evaluation.environment import Observation
from imagewam.evaluation.rollout import Episode, EpisodeRecord, Rollouts, Trace
from imagewam.shipped import METAWORLD_EPISODES
from shipped_policy import shipped_predictor

ON, OFF = "turn the faucet on", "turn the faucet off"


@pytest.fixture(scope="module")
def predictor():
    return shipped_predictor()


@pytest.fixture(scope="module")
def observations():
    """Of one recorded episode, at steps 0, 8, 16 and 24."""
    dataset = LeRobotDataset(METAWORLD_EPISODES, [6])
    samples = ActionChunkDataset(dataset, 16, dataset.camera_names)
    moments = [samples[step] for step in (0, 8, 16, 24)]
    return [Observation(s["images"], s["state"], ON, "faucet-open-v3", 3, s["frame_index"]) for s in moments]


def test_views_have_the_cameras_sizes(predictor, observations):
    for views in (attention_views(predictor, observations), foreseen_views(predictor, observations)):
        assert [[view.shape for view in pair] for pair in views] == [[(96, 96, 3)] * 2] * 4


def test_another_instruction_is_heard_until_its_step(predictor, observations):
    told = Told(predictor, {"faucet-open-v3": OFF}, until=16)
    assert [told.heard(seen).instruction for seen in observations] == [OFF, OFF, ON, ON]
    assert [Told(predictor, {"reach-v3": OFF}).heard(seen).instruction for seen in observations] == [ON] * 4
    own = predictor(observations)
    changed = told(observations)
    assert not np.allclose(changed[0], own[0], atol=1e-2), "the words make no difference"
    np.testing.assert_allclose(changed[3], own[3], atol=1e-4)


def test_the_report_is_complete(predictor, observations, tmp_path):
    settings = DemoSettings(output_dir=str(tmp_path), tasks=["faucet-open-v3"], episodes_per_task=1, seed=4)
    record = EpisodeRecord("faucet-open-v3", 3, ON, success=True, steps=30)
    film = [np.full((64, 64, 3), 5 * step, np.uint8) for step in range(30)]
    rollouts = Rollouts([record], {Episode("faucet-open-v3", 3): Trace(observations, film)})
    conditions = [
        Condition("its instruction", Told(predictor, {}), rollouts),
        Condition("the opposite's", Told(predictor, {}), Rollouts([], {})),
        Condition("changed", Told(predictor, {"faucet-open-v3": OFF}, 16), rollouts),
    ]
    write_report(tmp_path / "report", predictor, conditions, settings)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "demo.png", "attention.png", "futures.png", "success.png", "episodes.mp4", "changed.mp4", "report.md"
    }  # fmt: skip
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| faucet-open-v3 | its instruction | 1/1 | 21% to 100% |" in page
    assert "imagewam demo --tasks faucet-open-v3 --episodes_per_task 1 --seed 4" in page


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="no task 'faucet'"):
        DemoSettings(tasks=["faucet"])
