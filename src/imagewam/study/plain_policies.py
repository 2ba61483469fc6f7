"""Policies without an editing model, of the same budget: what ImageWAM has to be compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from ..modeling import flow_matching as flow

TIME_SHIFT, FLOW_STEPS = 5.0, 10  # ImageWAM's
FLOW_LAYERS = 4


class PlainEncoder(nn.Module):
    """A convolutional network over the canvas, a bag of words and the state, joined in one vector.

    Args:
        width: of the vector, a multiple of 64; the last convolution has half as many channels.
    """

    def __init__(self, vocab_size: int, state_dim: int, width: int):
        super().__init__()
        channels = (3, width // 16, width // 8, width // 4, width // 2, width // 2)
        layers: list[nn.Module] = []
        for first, second in zip(channels, channels[1:], strict=False):
            layers += [nn.Conv2d(first, second, 3, stride=2, padding=1), nn.GroupNorm(4, second), nn.SiLU()]
        self.picture = nn.Sequential(*layers)
        self.place = nn.Sequential(nn.AdaptiveAvgPool2d((3, 6)), nn.Flatten(), nn.Linear(18 * channels[-1], width))
        self.words = nn.Embedding(vocab_size, width)
        self.state = nn.Linear(state_dim, width)
        self.joined = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, state: Tensor) -> Tensor:
        """`[B, 3, H, W]` in [-1, 1], `[B, L]`, `[B, L]`, `[B, state_dim]` -> `[B, width]`."""
        mask = attention_mask[..., None].to(pixel_values.dtype)
        words = (self.words(input_ids) * mask).sum(1) / mask.sum(1)
        return self.joined(self.place(self.picture(pixel_values)) + words + self.state(state))


class PlainPolicy(nn.Module, ABC):
    """Base of both: an encoder, the size of a chunk, and what `Trainer` expects of a model."""

    def __init__(self, vocab_size: int, state_dim: int, action_dim: int, horizon: int, width: int):
        super().__init__()
        self.encoder = PlainEncoder(vocab_size, state_dim, width)
        self.chunk_shape = (horizon, action_dim)

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        names = ("pixel_values", "input_ids", "attention_mask", "state")
        return self.encoder(**{name: inputs[name] for name in names})

    @abstractmethod
    def predict(self, inputs: dict[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        """Normalised chunks `[B, H, action_dim]`."""


class CloningPolicy(PlainPolicy):
    """Behaviour cloning: the chunk by regression."""

    def __init__(self, vocab_size: int, state_dim: int, action_dim: int, horizon: int, width: int):
        super().__init__(vocab_size, state_dim, action_dim, horizon, width)
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(width, horizon * action_dim))

    def forward(self, actions: Tensor, action_is_pad: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        predicted = self.head(self.encode(inputs)).unflatten(-1, self.chunk_shape)
        weight = torch.ones(len(actions), device=actions.device)
        return {"loss": flow.flow_matching_loss(predicted, actions, weight, action_is_pad)}

    @torch.no_grad()
    def predict(self, inputs: dict[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        return self.head(self.encode(inputs)).unflatten(-1, self.chunk_shape)


class FlowPolicy(PlainPolicy):
    """Flow matching of the chunk, given the encoder's vector: residual layers over noisy actions and their time."""

    def __init__(self, vocab_size: int, state_dim: int, action_dim: int, horizon: int, width: int):
        super().__init__(vocab_size, state_dim, action_dim, horizon, width)
        self.embed_time = nn.Sequential(
            Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0), TimestepEmbedding(width, width)
        )
        self.actions_in = nn.Linear(horizon * action_dim, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(FLOW_LAYERS)
        )
        self.actions_out = nn.Linear(width, horizon * action_dim)

    def forward(self, actions: Tensor, action_is_pad: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        time = flow.sample_time(len(actions), TIME_SHIFT, device=actions.device)
        noise = torch.randn_like(actions)
        velocity = self.velocity(flow.interpolate(actions, noise, time), time, self.encode(inputs))
        target, weight = flow.velocity_target(actions, noise), torch.ones_like(time)
        return {"loss": flow.flow_matching_loss(velocity, target, weight, action_is_pad)}

    def velocity(self, actions: Tensor, time: Tensor, seen: Tensor) -> Tensor:
        """Of noisy chunks `[B, H, action_dim]` at times `[B]`, given what was seen `[B, width]`."""
        hidden, condition = self.actions_in(actions.flatten(1)), seen + self.embed_time(1000 * time)
        for layer in self.layers:
            hidden = hidden + layer(hidden + condition)
        return self.actions_out(hidden).unflatten(-1, self.chunk_shape)

    @torch.no_grad()
    def predict(self, inputs: dict[str, Tensor], generators: Sequence[torch.Generator]) -> Tensor:
        seen = self.encode(inputs)
        schedule = flow.euler_schedule(FLOW_STEPS, TIME_SHIFT, device=seen.device)
        actions = randn_tensor((len(seen), *self.chunk_shape), generator=list(generators), device=seen.device)
        for t in schedule.timesteps:
            velocity = self.velocity(actions, (t / 1000).expand(len(actions)), seen)
            actions = schedule.step(velocity, t, actions, return_dict=False)[0]
        return actions
