"""From an instruction to token ids, in the form of prompt that the backbone's text encoder was trained with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INSTRUCTION_TEMPLATE = (
    "A video recorded from a robot's point of view executing the following instruction: {instruction}"
)

PROMPT_FORMAT_FIELDS = {"chat_template_kwargs", "system_message", "content_parts", "max_length"}


def check_prompt_format(prompt_format: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt format with all of its fields.

    - `chat_template_kwargs`: handed to the tokenizer's chat template; None: raw text, no chat template.
    - `system_message`: text of a system turn before the user's, or None.
    - `content_parts`: whether a turn's content is a list of parts instead of a string.
    - `max_length`: most tokens that a prompt may have.
    """
    if set(prompt_format) != PROMPT_FORMAT_FIELDS:
        raise ValueError(f"expected a prompt format with {sorted(PROMPT_FORMAT_FIELDS)}, got {sorted(prompt_format)}")
    return dict(prompt_format)


def check_template(template: str) -> str:
    """An instruction template with its one place for the instruction."""
    if template.count("{instruction}") != 1:
        raise ValueError(f"the instruction template needs '{{instruction}}' exactly once, got {template!r}")
    return template


def check_instruction(instruction: str) -> str:
    """A text that says something; an empty one would train or run a policy without a task."""
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"expected an instruction as non-empty text, got {instruction!r}")
    return instruction


def tokenize(
    tokenizer: Any, instructions: Sequence[str], template: str, prompt_format: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Token ids of a batch of instructions, right padded to the longest.

    Returns:
        `input_ids`, `attention_mask`: int64 [B, L].

    Raises:
        ValueError: a prompt has more than `max_length` tokens. It is not cut: the policy would follow half a sentence.
    """
    texts = [template.replace("{instruction}", instruction) for instruction in instructions]
    is_chat = prompt_format["chat_template_kwargs"] is not None
    if is_chat:
        texts = [_chat(tokenizer, text, prompt_format) for text in texts]
    # a chat template writes its own special tokens; a second set would shift everything by one
    tokens = tokenizer(
        text=texts, add_special_tokens=not is_chat, padding="longest", padding_side="right", return_tensors="np"
    )
    lengths = tokens["attention_mask"].sum(axis=1)
    if lengths.max() > prompt_format["max_length"]:
        raise ValueError(
            f"an instruction has {lengths.max()} tokens with its prompt, the text encoder takes "
            f"{prompt_format['max_length']}: {instructions[lengths.argmax()][:80]!r}"
        )
    return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def _chat(tokenizer: Any, text: str, prompt_format: Mapping[str, Any]) -> str:
    turns = [("system", prompt_format["system_message"]), ("user", text)]
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if prompt_format["content_parts"] else content}
        for role, content in turns
        if content is not None
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, **prompt_format["chat_template_kwargs"])
