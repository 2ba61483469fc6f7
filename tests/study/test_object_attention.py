import numpy as np
import pytest
import torch

from imagewam.data import ActionChunkDataset, LeRobotDataset
from imagewam.evaluation.env_worker import EnvWorker
from imagewam.evaluation.environment import Observation
from imagewam.shipped import METAWORLD_EPISODES
from imagewam.study.object_attention import Moment, _coverage, object_attention, summary, watched_moments
from shipped_policy import shipped_predictor


@pytest.fixture(scope="module")
def predictor():
    return shipped_predictor()


@pytest.fixture(scope="module")
def seen():
    dataset = LeRobotDataset(METAWORLD_EPISODES, [0])
    sample = ActionChunkDataset(dataset, 16, dataset.camera_names)[0]
    return Observation(sample["images"], sample["state"], sample["instruction"], "button-press-topdown-v3", 3000, 0)


def masks(value_of):
    return {name: np.full((96, 96), value_of(name)) for name in ("corner2", "gripperPOV")}


def test_shares_add_up_over_the_canvas(predictor, seen):
    parts = [masks(lambda name, one=one: name == one) for one in ("corner2", "gripperPOV")]
    scene, wrist, all_of_it = object_attention(
        predictor, [(seen, parts[0]), (seen, parts[1]), (seen, masks(lambda name: True))]
    )
    assert scene.area_share == wrist.area_share == 0.5 and all_of_it.area_share == 1
    assert scene.attention_share + wrist.attention_share == pytest.approx(1, abs=1e-5)
    assert all_of_it.attention_share == pytest.approx(1, abs=1e-5)


def test_planted_attention_is_measured_where_it_lies(predictor, seen, monkeypatch):
    """All attention on the token of row 2, column 3 of the scene; half of its square is object."""
    output = predictor.predict([seen], output_attentions=True)
    rows, columns = output.image_grid
    planted = torch.zeros_like(output.attentions[0][0])
    planted[..., output.context_spans["image"].start + 2 * columns + 3] = 1
    output.attentions = ((planted,),)
    monkeypatch.setattr(predictor, "predict", lambda *_, **__: output)
    mask = masks(lambda name: False)
    mask["corner2"][32:48, 48:56] = True
    (moment,) = object_attention(predictor, [(seen, mask)])
    assert moment.attention_share == pytest.approx(0.5)
    assert moment.area_share == pytest.approx(16 * 8 / (2 * 96 * 96))


def test_masks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="96 x 96 pixels does not divide into 5 x 6"):
        _coverage(np.zeros((96, 96), bool), (5, 6))


def test_the_summary_is_of_moments_with_the_object_in_sight():
    moments = [Moment("a", 0, 0, 0.4, 0.1), Moment("a", 0, 16, 0.2, 0.1), Moment("a", 0, 32, 0.0, 0.0)]
    found = summary(moments)
    assert found["ratio"] == pytest.approx(3) and len(found["moments"]) == 3
    with pytest.raises(ValueError, match="in sight at none of 1 moments"):
        summary(moments[-1:])


@pytest.mark.sim
def test_the_simulators_masks_are_the_object():
    with EnvWorker("imagewam.evaluation.metaworld:MetaWorldEnv", image_size=96) as worker:
        moments = list(watched_moments(worker, "drawer-open-v3", 3, every=30, step_limit=60))
        assert [seen.step for seen, _ in moments] == [0, 30]
        seen, found = moments[0]
        green = seen.images["corner2"].astype(int)
        is_green = (green[..., 1] - green[..., 0] > 25) & (green[..., 1] - green[..., 2] > 0)
        share = (found["corner2"] & is_green).sum() / max(is_green.sum(), 1)
        assert 0.01 < found["corner2"].mean() < 0.2 and share > 0.7, "the drawer is green"
        worker.reset("reach-v3", 3)
        assert 0 < worker.call("object_masks")["corner2"].mean() < 0.02, "the goal is a small ball"
