import pytest

from imagewam.evaluation.intervals import PairedComparison, SuccessRate, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (45, 50, 0.7864, 0.9565)],
)
def test_wilson_interval_against_published_tables(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_shrinks_with_trials():
    narrow, wide = SuccessRate.of([True, False] * 200), SuccessRate.of([True, False] * 5)
    assert narrow.rate == wide.rate == 0.5
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5
    assert str(wide) == "5/10 = 50% [24%, 76%]"


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"got {successes} of {trials}"):
        wilson_interval(successes, trials)


def test_paired_comparison():
    first = [True] * 8 + [False] * 2
    second = [True] * 3 + [False] * 7
    found = PairedComparison.of(first, second)
    assert (found.only_first, found.only_second, found.trials) == (5, 0, 10)
    assert found.difference == 0.5 and found.p_value == pytest.approx(2 / 32)
    assert PairedComparison.of(first, first).p_value == 1.0
    even = PairedComparison.of([True, False], [False, True])
    assert even.p_value == 1.0 and even.difference == 0
    with pytest.raises(ValueError, match="same episodes, got 10 and 9"):
        PairedComparison.of(first, second[1:])
