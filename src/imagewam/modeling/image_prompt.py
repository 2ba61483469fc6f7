"""Prompts with an image in them: what stands in front of it, and how much of that the network never sees."""

from torch import Tensor

from ..processing.prompt import IMAGE_MARK
from .qwen2_5_vl import IMAGE_ID
from .qwen3_vl import begin_of_user_turn


def check_image_comes_first(text: str | None) -> str:
    """A prompt format's text, in which all prompts are the same up to the image.

    Raises:
        ValueError: it has no `<image>`, or one behind the instruction.
    """
    before, mark, _ = (text or "").partition(IMAGE_MARK)
    if not mark or "{prompt}" in before:
        raise ValueError(f"the prompt format needs {IMAGE_MARK} in front of {{prompt}}, got {text!r}")
    return text


def num_dropped_states(input_ids: Tensor, text: str, pipeline_text: str, num_pipeline_states: int) -> int:
    """How many states of prompts `[B, L]` go before the network sees the rest.

    Args:
        text: the prompt format's.
        pipeline_text: what the pipeline drops: a text that begins with it loses as much as the pipeline's. Any other
            loses the turns in front of the image's.
        num_pipeline_states: the states that the pipeline drops.

    Raises:
        ValueError: the rows differ up to the image, or the image would be dropped too.
    """
    start, at = begin_of_user_turn(input_ids)
    if text.startswith(pipeline_text):
        start = num_pipeline_states
    if at < start:
        raise ValueError(
            f"the first {start} states of a prompt are dropped: expected the image's id {IMAGE_ID} behind them, "
            f"got it in place {at}; is the prompt another than {text!r}?"
        )
    return start
