"""What the page's buttons do: from values of its fields to what is shown.

Everything of one user comes in and goes out. Only policies and episodes are shared, and nobody changes those.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..pipelines.attention_choice import AttentionChoice
from ..pipelines.attention_maps import HeatScale
from ..pipelines.attention_pictures import attention_strip, camera_overlays
from .episodes import EpisodeStore, Moment, future_frames
from .futures import CameraFuture, foresee
from .observations import checked_observation, read_picture
from .policies import LoadedPolicy, PolicyStore
from .predictions import Prediction, predict

MOST_SEEDS, MOST_STEPS, MOST_MOMENTS = 16, 50, 12


@dataclass(frozen=True)
class Given:
    """The fields of the page that make an observation and say how to decide on it.

    Attributes:
        files: by camera the file of its picture, or None.
        moment: the frame of an episode from which all fields were filled; None once a picture was changed.
        num_seeds: how many chunks, from `seed` on.
    """

    files: Mapping[str, str | None]
    instruction: str | None
    state: Sequence[Any]
    moment: Moment | None
    mode: str
    num_steps: int
    seed: int
    num_seeds: int = 1


class Session:
    """The functions behind the page.

    Args:
        policies, episodes: shared by all users.
    """

    def __init__(self, policies: PolicyStore, episodes: EpisodeStore):
        self.policies, self.episodes = policies, episodes

    def observation(self, loaded: LoadedPolicy, given: Given) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The observation, and the recorded sample where it is one of an episode.

        Pictures of an episode are the recorded ones to the last bit, whatever the page made of them.

        Raises:
            ValueError: a field is missing or does not fit.
        """
        contract = loaded.processor.contract
        if given.moment is None:
            sample = None
            images = {
                camera.name: read_picture(path, camera) if (path := given.files.get(camera.name)) else None
                for camera in contract.cameras
            }
        else:
            sample = self.episodes.sample(given.moment, contract, self.offsets(loaded))
            images = {camera.name: sample["images"][camera.name] for camera in contract.cameras}
        return checked_observation(contract, images, given.instruction, given.state), sample

    @staticmethod
    def offsets(loaded: LoadedPolicy) -> tuple[int, ...]:
        return tuple(loaded.policy.config.target_offsets)

    def predict(self, loaded: LoadedPolicy, given: Given) -> Prediction:
        """Decide on the fields; ValueError if one of them does not fit."""
        _check_number("Euler steps", given.num_steps, MOST_STEPS)
        _check_number("number of seeds", given.num_seeds, MOST_SEEDS)
        observation, sample = self.observation(loaded, given)
        recorded = None if sample is None else sample["actions"][~sample["action_is_pad"]]
        seeds = [given.seed + offset for offset in range(given.num_seeds)]
        return predict(loaded, observation, mode=given.mode, num_steps=given.num_steps, seeds=seeds, recorded=recorded)

    def foresee(self, loaded: LoadedPolicy, given: Given, num_steps: int) -> Iterator[int | list[CameraFuture]]:
        """See `futures.foresee`; the true frame is the one that the episode has so far ahead."""
        _check_number("steps of the frame", num_steps, MOST_STEPS)
        observation, sample = self.observation(loaded, given)
        true = None if sample is None else future_frames(sample)[-1]
        yield from foresee(loaded, observation, num_steps=num_steps, seed=given.seed, true=true)

    def strip(
        self, loaded: LoadedPolicy, given: Given, choice: AttentionChoice, span: str | None, opacity: float, count: int
    ) -> Iterator[int | np.ndarray]:
        """Attention at evenly spaced frames of the episode.

        Yields:
            the number of moments done, after each; last the strip, uint8 [H, W, 3].

        Raises:
            ValueError: the fields are not those of an episode, or the family has no attention to show.
        """
        _check_number("number of moments", count, MOST_MOMENTS)
        if given.moment is None:
            raise ValueError("A strip over time is of an episode: open one first.")
        contract, layout = loaded.processor.contract, loaded.processor.layout
        samples = self.episodes.episode(given.moment.dataset, given.moment.episode, contract, self.offsets(loaded))
        frames = sorted({round(frame) for frame in np.linspace(0, len(samples) - 1, count)})
        images, maps = [], []
        for done, frame in enumerate(frames, start=1):
            moment = Moment(given.moment.dataset, given.moment.episode, frame)
            sample = self.episodes.sample(moment, contract, self.offsets(loaded))
            found = predict(
                loaded, sample | {"instruction": given.instruction}, mode=given.mode, num_steps=given.num_steps,
                seeds=[given.seed],
            )  # fmt: skip
            maps.append(record_of(found).camera_maps(choice, layout, span))
            images.append(found.images)
            yield done
        scale = HeatScale.of(maps)
        rows = [list(camera_overlays(*pair, scale, opacity).values()) for pair in zip(images, maps, strict=True)]
        fps = contract.fps
        yield attention_strip(rows, [f"{frame / fps:.1f} s" if fps else f"frame {frame}" for frame in frames])


def overlays(
    prediction: Prediction, layout: Any, choice: AttentionChoice, span: str | None, opacity: float
) -> dict[str, np.ndarray]:
    """Per camera its picture under the chosen attention; ValueError if there is none to show."""
    maps = record_of(prediction).camera_maps(choice, layout, span)
    return camera_overlays(prediction.images, maps, None, opacity)


def record_of(prediction: Prediction) -> Any:
    """The prediction's attention; ValueError, with the reason, if it has none."""
    if prediction.attention is None:
        raise ValueError(prediction.why_none)
    return prediction.attention


def _check_number(what: str, value: Any, most: int) -> None:
    if value is None or not 1 <= value <= most:
        raise ValueError(f"The {what}: expected 1 to {most}, got {value}.")
