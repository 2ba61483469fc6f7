"""What a decision computes, in floating-point operations, from a policy's config alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from .decision import Decision
from .variants import Variant


@dataclass(frozen=True)
class DecisionCost:
    """Forward operations for one observation (batch 1); a multiply-add counts as two.

    Attributes:
        editing_parameters, expert_parameters: of the two networks that are trained.
        text: reading the instruction.
        vae: encoding the camera image.
        context: the editing network over instruction, state and image.
        edit: its step over the target, in denoise mode.
        action_step: one Euler step of the action expert.
        context_tokens: keys that the actions attend to.
        cache_bytes: keys and values of all layers, in bfloat16.
    """

    editing_parameters: int
    expert_parameters: int
    text: int
    vae: int
    context: int
    edit: int
    action_step: int
    context_tokens: int
    cache_bytes: int

    def decision(self, num_steps: int) -> int:
        """Both networks, with so many Euler steps; the paper's figures count them alone."""
        return self.context + self.edit + num_steps * self.action_step


def plan_cost(variant: Variant, edit_mode: str) -> DecisionCost:
    """The cost of a variant at full size, computed on the meta device."""
    decision = Decision(variant, edit_mode)
    policy = decision.policy
    stages = {
        "text": lambda: decision.prompt_embeds,
        "vae": lambda: decision.image,
        "context": lambda: decision.context,
        "edit": lambda: decision.seen,
        "action_step": lambda: decision.act(num_steps=1),
    }
    return DecisionCost(
        editing_parameters=sum(p.numel() for p in policy.backbone.transformer.parameters()),
        expert_parameters=sum(p.numel() for p in policy.action_expert.parameters()),
        **{name: _operations(stage) for name, stage in stages.items()},
        context_tokens=decision.seen.num_tokens,
        cache_bytes=sum(x.nbytes for layer in decision.seen.layers for x in layer),
    )


def _operations(stage: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops()
