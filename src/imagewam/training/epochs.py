"""Telling a dataset and a sampler which epoch is about to begin."""

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class KnowsEpochs(Protocol):
    """What draws otherwise in every epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class TellEpoch(TrainerCallback):
    """Calls `set_epoch` of the dataset and of the sampler, where there is one, before each epoch and where a run is
    resumed. The sampler is made with the loader and set then.

    Accelerate's loaders tell a dataset in one process only, and a sampler not where several processes go on inside an
    epoch; neither learns of the epoch in which a run is resumed.
    """

    def __init__(self, dataset: KnowsEpochs | None):
        self.dataset = dataset
        self.sampler: KnowsEpochs | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # As a resumed run starts: inside the epoch that the checkpoint was written in, or at the end of it.
        for told in (self.dataset, self.sampler):
            if told is not None:
                told.set_epoch(int(state.epoch or 0))
