"""What a decision computes, in floating-point operations, from a policy's config alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from .decision import NUM_TEXT_TOKENS, Decision
from .variants import Variant


@dataclass(frozen=True)
class DecisionCost:
    """Forward operations for one observation (batch 1); a multiply-add counts as two.

    Attributes:
        editing_parameters, expert_parameters: of the two networks that are trained.
        text: reading the instruction.
        vae: encoding the camera image.
        context: the editing network over instruction, state and image.
        edit: one pass of it over the noisy target; 0 in prefix mode, which has none.
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
    edit_mode: str

    def decision(self, num_steps: int) -> int:
        """Both networks, with so many Euler steps of the actions, and of the target where it is denoised beside or
        before them; the paper's figures count these networks alone."""
        passes = {"prefix": 0, "denoise": 1, "joint": num_steps, "imagine": num_steps + 1}[self.edit_mode]
        return self.context + passes * self.edit + num_steps * self.action_step


def plan_cost(variant: Variant, edit_mode: str, num_text_tokens: int = NUM_TEXT_TOKENS) -> DecisionCost:
    """The cost of a variant at full size, computed on the meta device."""
    decision = Decision(variant, edit_mode, num_text_tokens=num_text_tokens)
    policy = decision.policy
    stages = {
        "text": lambda: decision.prompt_embeds,
        "vae": lambda: decision.image,
        "context": lambda: decision.context,
        "edit": lambda: decision.seen,
    }
    operations = {name: _operations(stage) for name, stage in stages.items()}
    passes = {"prefix": 0, "denoise": 1, "joint": 1, "imagine": 2}[edit_mode]
    operations["action_step"] = _operations(lambda: decision.act(num_steps=1)) - passes * operations["edit"]
    return DecisionCost(
        editing_parameters=sum(p.numel() for p in policy.backbone.transformer.parameters()),
        expert_parameters=sum(p.numel() for p in policy.action_expert.parameters()),
        **operations,
        context_tokens=decision.seen.num_tokens,
        cache_bytes=sum(x.nbytes for layer in decision.seen.layers for x in layer),
        edit_mode=edit_mode,
    )


def _operations(stage: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        stage()
    return counter.get_total_flops()
