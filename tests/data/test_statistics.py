import json
import weakref

import numpy as np
import pytest

from imagewam.data import LeRobotDataset, compute_statistics
from imagewam.data.statistics import describe

FUNCTIONS = {
    "min": lambda values: values.min(axis=0),
    "max": lambda values: values.max(axis=0),
    "mean": lambda values: values.mean(axis=0),
    "std": lambda values: values.std(axis=0),
    "q01": lambda values: np.quantile(values, 0.01, axis=0),
    "q99": lambda values: np.quantile(values, 0.99, axis=0),
}


def assert_statistics(found, values):
    for name, function in FUNCTIONS.items():
        np.testing.assert_allclose(found[name], function(values.astype(np.float64)), rtol=1e-6, atol=1e-7)


def relative_values(episodes, action, state, horizon):
    return np.array(
        [
            episode["action"][t + k, action] - episode["observation.state"][t, state]
            for episode in episodes
            for t in range(len(episode["action"]))
            for k in range(horizon)
            if t + k < len(episode["action"])
        ]
    )


@pytest.mark.parametrize("chosen", [[0, 1, 2], [2, 0]])
def test_absolute_statistics_are_those_of_the_chosen_frames(v3_root, episodes, chosen):
    found = compute_statistics(LeRobotDataset(v3_root, chosen), horizon=5)
    for name, key in (("state", "observation.state"), ("action", "action")):
        values = np.concatenate([episodes[i][key] for i in chosen])
        assert_statistics(found[name], values)
        assert found[name]["count"] == len(values)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("horizon", [1, 5, 16])
def test_relative_statistics_are_those_of_every_step_inside_an_episode(v21_root, episodes, horizon):
    found = compute_statistics(LeRobotDataset(v21_root), horizon, relative_to_state=(None, 2))["action"]
    columns = {0: np.concatenate([episode["action"][:, 0] for episode in episodes])}
    columns[1] = relative_values(episodes, action=1, state=2, horizon=horizon)
    for dimension, values in columns.items():
        assert_statistics({name: found[name][dimension] for name in FUNCTIONS}, values)
    assert found["count"] == 20


def test_one_dimension_at_a_time_is_held():
    """The columns may be far larger together than memory."""
    made = []

    def columns():
        for size in range(1, 6):
            column = np.arange(size, dtype=np.float32)
            made.append(weakref.ref(column))
            assert sum(reference() is not None for reference in made) <= 2  # the last one and the one before
            yield column

    assert describe(columns(), ["q50"])["q50"] == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_relative_dimensions_must_fit_the_dataset(v3_root):
    dataset = LeRobotDataset(v3_root)
    with pytest.raises(ValueError, match="names 3 dimensions, the actions have 2"):
        compute_statistics(dataset, 5, relative_to_state=(0, 1, 2))
    with pytest.raises(ValueError, match=r"names state dimensions \[3\], the states have 3"):
        compute_statistics(dataset, 5, relative_to_state=(None, 3))
