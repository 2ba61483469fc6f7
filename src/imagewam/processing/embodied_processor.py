"""A processor of one policy that drives one robot or several: it knows them all, and faces one of them."""

import copy
import os
from collections.abc import Mapping
from typing import Any, Self

from .camera_layout import CameraLayout
from .contract import ContractMismatchError, PolicyContract
from .embodiment import Embodiment, Statistics, check_one_canvas
from .stored_processor import StoredProcessor
from .training_data import TrainingData


class EmbodiedProcessor(StoredProcessor):
    """Holds an `Embodiment` per robot. What follows from one of them is that of the robot which is faced."""

    embodiment: str | None
    policy_state_dim: int
    policy_action_dim: int

    def _set_robots(
        self, robots: Mapping[str | None, Embodiment], policy_state_dim: int | None, policy_action_dim: int | None
    ) -> None:
        """Know these robots, and face the first."""
        if len(robots) > 1 and not all(robots):
            raise ValueError(f"each of several embodiments needs a name, got {list(robots)}")
        check_one_canvas(robots)
        self._robots = dict(robots)
        self.embodiment, self._robot = next(iter(robots.items()))
        states = {name: len(robot.contract.state.names) for name, robot in robots.items()}
        actions = {name: len(robot.contract.action.names) for name, robot in robots.items()}
        self.policy_state_dim = _policy_size("state", policy_state_dim, states)
        self.policy_action_dim = _policy_size("action", policy_action_dim, actions)

    @classmethod
    def join(
        cls, processors: Mapping[str, Self], policy_state_dim: int | None = None, policy_action_dim: int | None = None
    ) -> Self:
        """One processor of a policy that drives several robots, from those of each; it faces the first.

        Args:
            processors: by the name of the robot.
            policy_state_dim, policy_action_dim: sizes of the policy; by default those of the largest robot.

        Raises:
            ContractMismatchError: canvas, horizon or prompt differ; names both robots.
        """
        (name, first), *others = processors.items()
        for other_name, other in others:
            for what in ("prompt_format", "instruction_template"):
                ours, theirs = getattr(first, what), getattr(other, what)
                if ours != theirs:
                    raise ContractMismatchError(
                        f"one policy cannot serve {name!r} and {other_name!r}: the {what} is {ours!r} of {name!r}, "
                        f"{theirs!r} of {other_name!r}"
                    )
        joined = copy.copy(first)
        robots = {name: processor._robot for name, processor in processors.items()}
        joined._set_robots(robots, policy_state_dim, policy_action_dim)
        return joined

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, embodiment: str | None = None, **kwargs: Any
    ) -> Self:
        """Load from a folder, a Hub repo or, by name, from a policy that comes with the package.

        A local folder needs no network, the tokenizer in it included.

        Args:
            embodiment: the robot to face, where the policy drives several; by default the one that was faced when
                the processor was saved.
            kwargs: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`, `force_download`.
        """
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs).for_embodiment(embodiment)

    def for_embodiment(self, name: str | None) -> Self:
        """This processor, facing another robot; itself for None.

        Raises:
            ContractMismatchError: it knows no such robot.
        """
        if name in (None, self.embodiment):
            return self
        if name not in self._robots:
            known = (
                f"it knows {', '.join(map(repr, self.embodiments))}" if self.embodiments else "its robot has no name"
            )
            raise ContractMismatchError(f"this processor knows no embodiment {name!r}: {known}")
        other = copy.copy(self)
        other._set_robots({name: self._robots[name], **self._robots}, self.policy_state_dim, self.policy_action_dim)
        return other

    @property
    def embodiments(self) -> tuple[str, ...]:
        """Names of the robots that this processor knows, the one that it faces first; none where it has no name."""
        return tuple(name for name in self._robots if name is not None)

    @property
    def contract(self) -> PolicyContract:
        return self._robot.contract

    @property
    def statistics(self) -> dict[str, dict]:
        """Those of the training data.

        Raises:
            ValueError: there are none yet, see `has_statistics`.
        """
        self.check_has_statistics()
        return self._robot.statistics

    @property
    def has_statistics(self) -> bool:
        """Whether it can normalise and decode; not so beside a starting checkpoint, which has no training data."""
        return self._robot.statistics is not None

    def check_has_statistics(self) -> None:
        """Raise ValueError if it has none; says how they come about."""
        self._robot.check_has_statistics()

    def with_statistics(
        self,
        statistics: Statistics,
        contract: PolicyContract | None = None,
        training_data: TrainingData | None = None,
    ) -> Self:
        """This processor with the statistics of the data that the policy is going to be trained on.

        Args:
            contract: completed with what only the data tell, such as the frame rate; by default as it is.
            training_data: what they were computed from, see `imagewam.data.training_data_of`.

        Raises:
            ValueError: it has statistics already, or they do not match the contract.
            ContractMismatchError: the robot of the contract has more dimensions than the policy.
        """
        if self.has_statistics:
            raise ValueError(
                f"this processor has the statistics {self.contract.statistics_hash[:12]}, with which its policy was "
                "trained: others take a processor of their own"
            )
        completed = copy.copy(self)
        robot = Embodiment(contract or self.contract, statistics, training_data)
        robots = {**self._robots, self.embodiment: robot}
        completed._set_robots(robots, self.policy_state_dim, self.policy_action_dim)
        return completed

    @property
    def training_data(self) -> TrainingData | None:
        """What the statistics were computed from, where it was recorded."""
        return self._robot.training_data

    @property
    def layout(self) -> CameraLayout:
        return self._robot.layout

    @property
    def pads_actions(self) -> bool:
        """Whether batches say which action dimensions are padding: with several robots, or fewer dimensions."""
        return len(self._robots) > 1 or self.policy_action_dim > len(self.contract.action.names)

    def check_statistics(
        self,
        statistics: Statistics,
        dataset: Mapping[str, str | None] | None = None,
        training_data: TrainingData | None = None,
    ) -> None:
        """Make sure that a dataset's statistics are those that this policy was trained with.

        Args:
            dataset: `{"repo", "revision"}` that they belong to, for the error message.
            training_data: what they were computed from; compared where the policy's own was recorded.

        Raises:
            ContractMismatchError: they are not, or the data are others; names both sides, whether data or numbers
                differ, and the first numbers that do.
        """
        self._robot.check_statistics(statistics, dataset, training_data)

    def embodiments_to_dict(self) -> dict[str, Any]:
        """The robots as plain JSON values; names, other robots and sizes only where there is something to say."""
        content = self._robot.to_dict()
        if self.embodiment is not None:
            content["embodiment"] = self.embodiment
        if others := {name: robot.to_dict() for name, robot in self._robots.items() if name != self.embodiment}:
            content["other_embodiments"] = others
        sizes = {"policy_state_dim": self.policy_state_dim, "policy_action_dim": self.policy_action_dim}
        own_sizes = [len(self.contract.state.names), len(self.contract.action.names)]
        return content | (sizes if others or list(sizes.values()) != own_sizes else {})


def _policy_size(what: str, size: int | None, robots: Mapping[str | None, int]) -> int:
    """The policy's number of state or action dimensions."""
    size = max(robots.values()) if size is None else size
    for name, own_size in robots.items():
        if own_size > size:
            robot = "the robot" if name is None else repr(name)
            raise ContractMismatchError(f"{robot} has {own_size} {what} dimensions, the policy takes {size}")
    return size
