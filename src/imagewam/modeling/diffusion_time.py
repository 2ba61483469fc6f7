"""Between this package's flow (z = (1 - t) x + t ε) and networks trained on a diffusion schedule.

A diffusion network saw √ᾱ x + √(1-ᾱ) ε at its step k. Both are the same mixture up to a factor, so every time has a
step of the same signal-to-noise ratio; a prediction of noise then also tells the velocity ε - x.
"""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor

# What of a pipeline's scheduler tells the noise of every training step.
SCHEDULE_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


@dataclass(frozen=True)
class DiffusionSchedule:
    """The steps of one diffusion training as times of the flow.

    Times before the cleanest and beyond the noisiest step are treated as those steps, as pipelines do when they begin
    with pure noise.

    Attributes:
        times: `[K]` rising, t of every training step.
        prediction_type: "epsilon" or "v_prediction". An error of a predicted ε counts 1 / (1 - t) times in the
            velocity.
    """

    times: Tensor
    prediction_type: str

    @classmethod
    def from_config(cls, config: dict) -> "DiffusionSchedule":
        """The schedule of a diffusers scheduler's config.

        Raises:
            ValueError: it tells no velocity: another prediction type, or ε predicted where no image is left.
        """
        with torch.device("cpu"):
            alphas_cumprod = DDPMScheduler.from_config(config).alphas_cumprod.double()
        prediction_type = config.get("prediction_type", "epsilon")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is 'epsilon' or 'v_prediction', got {prediction_type!r}")
        if prediction_type == "epsilon" and not alphas_cumprod[-1] > 0:
            raise ValueError("a predicted ε tells no velocity at a step without signal: expected 'v_prediction'")
        signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        return cls((noise / (signal + noise)).float(), prediction_type)

    def step(self, timestep: Tensor) -> Tensor:
        """`[B]` times -> `[B]` steps k of the same signal-to-noise ratio, linear between two."""
        times = self.times.to(timestep.device)
        time = timestep.float().clamp(times[0], times[-1])
        above = torch.searchsorted(times, time).clamp(1, len(times) - 1)
        below = above - 1
        return below + (time - times[below]) / (times[above] - times[below])

    def scaled(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """z_t `[B, N, C]` with the variance that the network saw."""
        return noisy / _norm(timestep)[:, None, None]

    def velocity(self, output: Tensor, noisy: Tensor, timestep: Tensor) -> Tensor:
        """ε - x from the network's output for `scaled(noisy, timestep)`, both `[B, N, C]`."""
        scaled, output = self.scaled(noisy.float(), timestep), output.float()
        time = timestep.float().clamp(self.times[0].item(), self.times[-1].item())
        signal, noise = ((x / _norm(time))[:, None, None] for x in (1 - time, time))
        if self.prediction_type == "epsilon":
            return output - (scaled - noise * output) / signal
        return (noise * scaled + signal * output) - (signal * scaled - noise * output)


def _norm(timestep: Tensor) -> Tensor:
    """Standard deviation of z_t for data of variance 1."""
    return (timestep.float() ** 2 + (1 - timestep.float()) ** 2).sqrt()
