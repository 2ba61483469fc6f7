"""Cache options of `imagewam train` and `imagewam cache`, and the caches that they ask for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.frame_cache import CachedFrames
from ..data.lerobot_dataset import LeRobotDataset
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction
from ..processing.contract import PolicyContract
from ..processing_imagewam import ImageWAMProcessor
from ..training.instruction_cache import InstructionCache, check_releasable, instruction_texts
from .data_options import DataOptions
from .options import option


@dataclass
class CacheOptions:
    """What is decoded or encoded once and kept on disk."""

    _argument_group_name = "caches"

    cache_frames: bool = option("Decode and resize all frames once, and read them from disk.", False)
    cache_instructions: bool = option("Encode all instructions once; training does not load the text encoder.", False)
    cache_dir: str | None = option("Folder for caches, that of precompute too; default: in the cache of `datasets`.")
    cache_workers: int = option("Processes that decode frames for the cache.", 1)

    def frames(self, dataset: LeRobotDataset, contract: PolicyContract) -> CachedFrames | None:
        """The dataset's frames as the contract's cameras, if they are to be cached."""
        if not self.cache_frames:
            return None
        return CachedFrames(dataset, contract.cameras, self.cache_dir, self.cache_workers)

    def instructions(
        self,
        policy: ImageWAMForActionPrediction,
        processor: ImageWAMProcessor,
        datasets: Sequence[LeRobotDataset],
        dtype: torch.dtype,
    ) -> InstructionCache | None:
        """The datasets' instructions, if they are to be cached.

        Args:
            policy: lies where its text encoder may compute; `release_text_encoder` lets go of that afterwards.
            dtype: what the text encoder computes in.

        Raises:
            ValueError: the text encoder could not be loaded again, so that training would have to keep it.
        """
        if not self.cache_instructions:
            return None
        check_releasable(policy)  # before hours of encoding
        return InstructionCache(policy, processor, instruction_texts(datasets), self.cache_dir, dtype)


def check_caches(data: DataOptions, caches: CacheOptions) -> None:
    """Raise ValueError where a run could not train with the caches that are asked for."""
    if not data.precompute:
        return
    if caches.cache_frames or caches.cache_instructions:
        raise ValueError("precompute keeps frames and instructions already: give it, or cache_frames and others")
    data.check_precomputable()
