import numpy as np
import pytest

from imagewam.processing.normalization import (
    Normalizer,
    canonical_statistics,
    statistics_differences,
    statistics_hash,
)

NAMES = ("x", "y", "still")
STATISTICS = {
    "min": [-2.0, 100.0, 0.3],
    "max": [2.0, 101.0, 0.30005],
    "mean": [0.5, 100.4, 0.3],
    "std": [1.0, 0.25, 0.0],
    "q01": [-1.0, 100.1, 0.3],
    "q99": [1.0, 100.9, 0.3],
    "count": 7,
}


def normalizer(mode):
    return Normalizer(STATISTICS, mode, NAMES, "action")


def test_min_max_reaches_both_ends_and_only_shifts_what_stands_still():
    x = np.array([[-2.0, 100.0, 0.3], [2.0, 101.0, 0.4]])
    np.testing.assert_allclose(normalizer("min_max").normalize(x), [[-1, -1, 0], [1, 1, 0.1]], atol=1e-6)


def test_mean_std_and_quantiles():
    x = np.array([1.5, 100.9, np.float32(0.3)])
    np.testing.assert_allclose(normalizer("mean_std").normalize(x), [1, 2, 0], atol=1e-5)
    np.testing.assert_allclose(normalizer("quantiles").normalize(x), [1.5, 1, 0], atol=1e-5)


def test_forward_clamps_and_inverse_does_not():
    norm = normalizer("min_max")
    assert norm.normalize(np.array([1000.0, 0.0, 0.3]))[:2].tolist() == [5, -5]
    assert norm.denormalize(np.array([10.0, 0.0, 0.0]))[0] == 20.0


@pytest.mark.parametrize("mode", ["min_max", "mean_std", "quantiles"])
def test_round_trip_loses_no_more_than_the_float32_of_the_normalised_value(mode):
    low, high = np.array(STATISTICS["min"]), np.array(STATISTICS["max"])
    x = np.random.default_rng(0).uniform(low, high, (1000, 3)).astype(np.float32)
    x[:, 2] = 0.3
    norm = normalizer(mode)
    y = norm.normalize(x)
    bound = np.spacing(np.abs(y)).astype(np.float64) / 2 / norm.scale
    assert (np.abs(norm.denormalize(y) - x) <= bound + 1e-13).all()
    assert y.dtype == np.float32


def test_a_missing_statistic_and_a_wrong_length_are_named():
    with pytest.raises(
        ValueError, match=r"mean_std normalisation of the state needs the statistic 'mean', got \['max', 'min'\]"
    ):
        Normalizer({"min": [0], "max": [1]}, "mean_std", ("x",), "state")
    with pytest.raises(ValueError, match=r"2 dimensions \['a', 'b'\], but its statistic 'min' has shape \(3,\)"):
        Normalizer(STATISTICS, "min_max", ("a", "b"), "action")


def both(**changes):
    return {"state": STATISTICS, "action": {**STATISTICS, **changes}}


def test_hash_is_that_of_the_float32_numbers_in_any_container():
    group = {key: value if key == "count" else np.asarray(value, np.float32) for key, value in STATISTICS.items()}
    arrays = {"state": group, "action": group}
    assert statistics_hash(arrays) == statistics_hash(both()) == statistics_hash(canonical_statistics(arrays))
    assert statistics_hash(both(min=[-2.0, 100.0, 0.30001])) != statistics_hash(both())
    assert canonical_statistics(arrays)["action"]["max"] == [2.0, 101.0, 0.30005]


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"action": STATISTICS}, r"'state' and 'action', got \['action'\]"),
        (both(min=[np.nan, 0, 0]), "statistic action.min must be a list of finite numbers"),
        (both(max=[-3.0, 101.0, 0.3]), "statistics of the action: min .* exceeds max"),
        (both(std=[1.0, -1.0, 0.0]), "negative std"),
    ],
)
def test_impossible_statistics_are_refused(statistics, message):
    with pytest.raises(ValueError, match=message):
        canonical_statistics(statistics)


def test_differences_name_dimension_and_both_values():
    names = {"state": NAMES, "action": NAMES}
    assert statistics_differences(both(), both(), names) == []
    lines = statistics_differences(both(), both(max=[2.0, 102.5, 0.30005], count=9), names)
    assert lines == [
        "action.count: 7 in the policy, 9 given",
        "action.max[1] (y): 101.0 in the policy, 102.5 given",
    ]
