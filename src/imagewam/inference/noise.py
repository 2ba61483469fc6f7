"""Noise that belongs to one decision of one robot, whoever decides beside it."""

import numpy as np
import torch


def noise_generator(*numbers: int) -> torch.Generator:
    """A source of noise that is named by numbers >= 0, such as (seed, robot, decision).

    It lies on the CPU, so that the same numbers mean the same noise on every device.
    """
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))
