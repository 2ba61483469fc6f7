"""Success rates as a metric of `evaluate`: `evaluate.load("<this folder>")`, or `SuccessRateMetric()`."""

import datasets
import evaluate

from imagewam.evaluation.intervals import PairedComparison, SuccessRate

_DESCRIPTION = "Success rates of episodes, per task, per suite and overall, with 95 % Wilson intervals."
_INPUTS = """
Args:
    predictions: whether each episode was solved.
    tasks: its task; what stands in front of a slash is its suite.
    baseline: outcomes of another run on the same episodes, for a paired comparison (exact McNemar test).
Returns:
    success_rate, low, high; tasks and suites: name -> the same; with a baseline: comparison.
"""
_CITATION = "Wilson 1927, Probable inference, the law of succession, and statistical inference; McNemar 1947."


class SuccessRateMetric(evaluate.Metric):
    """`compute(predictions=[True, False], tasks=["libero_goal/open", "libero_goal/push"])`."""

    def _info(self) -> evaluate.MetricInfo:
        inputs = {"predictions": datasets.Value("bool"), "tasks": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(inputs),
        )

    def _compute(self, predictions: list[bool], tasks: list[str], baseline: list[bool] | None = None) -> dict:
        overall = SuccessRate.of(predictions)
        results = {
            "success_rate": overall.rate,
            "low": overall.low,
            "high": overall.high,
            "tasks": grouped_rates(tasks, predictions),
        }
        suites = [task.partition("/")[0] for task in tasks if "/" in task]
        if len(suites) == len(tasks):
            results["suites"] = grouped_rates(suites, predictions)
        if baseline is not None:
            results["comparison"] = PairedComparison.of(predictions, baseline).to_dict()
        return results


def grouped_rates(names: list[str], outcomes: list[bool]) -> dict[str, dict[str, float]]:
    """Name -> success rate of its episodes, in the order of first appearance."""
    pairs = list(zip(names, outcomes, strict=True))
    return {
        name: SuccessRate.of(outcome for other, outcome in pairs if other == name).to_dict()
        for name in dict.fromkeys(names)
    }
