"""The policy in the simulator, told its task, the opposite, or first the one and then the other."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ..evaluation.benchmarks import BENCHMARKS
from ..evaluation.env_worker import EnvWorker
from ..evaluation.environment import Observation
from ..evaluation.metaworld_tasks import OPPOSITES, TASK_INSTRUCTIONS
from ..evaluation.policy_predictor import PolicyPredictor
from ..evaluation.rollout import Episode, EpisodeRecord, Rollouts, run_rollouts
from ..pipelines.attention_maps import HeatScale, attention_maps, mean_attention, overlay
from .settings import DemoSettings
from .told import Told

TRACED = 2  # start positions per task of which pictures are kept; a film costs more time than playing


@dataclass(frozen=True)
class Condition:
    """What the policy was told in some episodes, and how they went. name: for tables. told: as for `Told`."""

    name: str
    told: Told
    rollouts: Rollouts

    def shown(self) -> list[EpisodeRecord]:
        """One traced episode per task: the first that succeeded, else the first."""
        shown: dict[str, EpisodeRecord] = {}
        for record in self.rollouts.records:
            if Episode(record.task, record.seed) not in self.rollouts.traces:
                continue
            if record.task not in shown or (record.success and not shown[record.task].success):
                shown[record.task] = record
        return list(shown.values())

    def heard(self, record: EpisodeRecord) -> list[Observation]:
        """What the policy saw at each plan of a traced episode, with what it was told."""
        return [self.told.heard(seen) for seen in self.rollouts.trace(record).observations]


def play(predictor: PolicyPredictor, settings: DemoSettings) -> list[Condition]:
    """All episodes, the first of each task traced; ContractMismatchError if the policy is of another robot."""
    opposite = {task: TASK_INSTRUCTIONS[OPPOSITES[task]] for task in settings.tasks if task in OPPOSITES}
    conditions = []
    with ExitStack() as stack:
        factory = BENCHMARKS["metaworld"].factory
        workers = [
            stack.enter_context(EnvWorker(factory, image_size=settings.image_size)) for _ in range(settings.workers)
        ]
        predictor.check_environment(workers[0].describe())
        for name, told, episodes in (
            ("its instruction", Told(predictor, {}), settings.episodes),
            ("the opposite's", Told(predictor, opposite), settings.opposed_episodes),
            (
                f"the opposite's for {settings.change_after} actions, then its own",
                Told(predictor, opposite, settings.change_after),
                settings.opposed_episodes,
            ),
        ):
            rollouts = run_rollouts(
                told,
                workers,
                episodes,
                replan_steps=settings.replan_steps,
                step_limit=settings.step_limit,
                traced=[episode for episode in episodes if episode.seed < TRACED],
            )
            conditions.append(Condition(name, told, rollouts))
    return conditions


def attention_views(predictor: PolicyPredictor, observations: Sequence[Observation]) -> list[list[np.ndarray]]:
    """For each observation every camera image under the attention of the actions planned from it, uint8 [H, W, 3].

    All overlays share one scale, from the mean over the image tokens of the series to their 99th percentile,
    because single tokens draw many times more than the rest.
    """
    output = predictor.predict(observations, output_attentions=True)
    layout = predictor.processor.layout
    maps = attention_maps(mean_attention(output.attentions), output.context_spans["image"], output.image_grid, layout)
    floor, top = HeatScale.of(maps)
    return [
        [overlay(camera.view(seen.images[camera.name]), views[camera.name], top, floor) for camera in layout.cameras]
        for seen, views in zip(observations, maps, strict=True)
    ]


def foreseen_views(predictor: PolicyPredictor, observations: Sequence[Observation]) -> list[list[np.ndarray]]:
    """For each observation every camera's picture that the policy foresees a horizon ahead, uint8 [H, W, 3]."""
    layout = predictor.processor.layout
    canvases = (layout.split(predictor.foresee(seen)) for seen in observations)
    return [[canvas[camera.name] for camera in layout.cameras] for canvas in canvases]
