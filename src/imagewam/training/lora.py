"""Low-rank adapters (peft) on the editing transformer, and the whole policy that they make in the end."""

from transformers import PreTrainedModel

from ..modeling.modeling_imagewam import ImageWAMForActionPrediction


def add_adapters(policy: ImageWAMForActionPrediction, rank: int) -> PreTrainedModel:
    """The policy as a `PeftModel` whose editing transformer is frozen but for adapters of this rank.

    Checkpoints of its training hold adapters, action expert and state encoder.
    """
    from peft import get_peft_model

    return get_peft_model(policy, policy.lora_config(r=rank, lora_alpha=rank))


def merge_adapters(model: PreTrainedModel) -> ImageWAMForActionPrediction:
    """A policy without adapters that computes what `model` does; a policy that has none is returned as it is."""
    return model if isinstance(model, ImageWAMForActionPrediction) else model.merge_and_unload()
