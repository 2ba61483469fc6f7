"""From an instruction to token ids, in the form of prompt that the backbone's text encoder was trained with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INSTRUCTION_TEMPLATE = (
    "A video recorded from a robot's point of view executing the following instruction: {instruction}"
)

# What stands for the current image in a literal text.
IMAGE_MARK = "<image>"

_OPTIONAL_FIELDS: dict[str, Any] = {
    "text": None,
    "escape": None,
    "special_tokens": False,
    "image_ids": None,
    "padding": "longest",
    "tokenizer_2": None,
}
PROMPT_FORMAT_FIELDS = {"chat_template_kwargs", "system_message", "content_parts", "max_length", *_OPTIONAL_FIELDS}


def check_prompt_format(prompt_format: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt format with all of its fields.

    - `chat_template_kwargs`: handed to the tokenizer's chat template; None: no chat template.
    - `system_message`: text of a system turn before the user's, or None.
    - `content_parts`: whether a turn's content is a list of parts instead of a string.
    - `max_length`: most tokens that a prompt may have.
    - `text`: the prompt spelt out around `{prompt}`, where no chat template writes it; None: the prompt alone. It may
      hold one `<image>`, where a text encoder that sees the image gets it.
    - `escape`: "json" where `{prompt}` stands in a JSON string of the text, or None.
    - `special_tokens`: whether the tokenizer puts its own first and last tokens around the text.
    - `image_ids`: the token ids that stand for `<image>`.
    - `padding`: "longest" of the batch, or "max_length", for the few checkpoints to which padding means something.
    - `tokenizer_2`: format of the same prompt for a second tokenizer, or None where one reads it.
    """
    prompt_format = {**_OPTIONAL_FIELDS, **prompt_format}
    if set(prompt_format) != PROMPT_FORMAT_FIELDS:
        raise ValueError(f"expected a prompt format with {sorted(PROMPT_FORMAT_FIELDS)}, got {sorted(prompt_format)}")
    text = prompt_format["text"]
    if text is not None and (prompt_format["chat_template_kwargs"] is not None or text.count("{prompt}") != 1):
        raise ValueError(f"a literal prompt text needs '{{prompt}}' once and no chat template beside it, got {text!r}")
    if (IMAGE_MARK in (text or "")) != (prompt_format["image_ids"] is not None):
        raise ValueError(
            f"{IMAGE_MARK} in the text and image_ids need each other, got {text!r} and {prompt_format['image_ids']}"
        )
    if prompt_format["escape"] not in (None, "json") or (prompt_format["escape"] and text is None):
        raise ValueError(f"escape is 'json' beside a text, or None, got {prompt_format['escape']!r} and {text!r}")
    if prompt_format["special_tokens"] and (text is None or IMAGE_MARK in text):
        raise ValueError(f"special_tokens go around a text without {IMAGE_MARK}, got {text!r}")
    if prompt_format["padding"] not in ("longest", "max_length"):
        raise ValueError(f"padding is 'longest' or 'max_length', got {prompt_format['padding']!r}")
    if prompt_format["tokenizer_2"] is not None:
        prompt_format["tokenizer_2"] = check_prompt_format(prompt_format["tokenizer_2"])
        if prompt_format["tokenizer_2"]["tokenizer_2"] is not None:
            raise ValueError("a prompt is read by two tokenizers at most, got a format for a third")
    return prompt_format


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
    """Token ids of a batch of instructions, right padded.

    Args:
        template: with `{instruction}`.
        prompt_format: as `check_prompt_format` returns it.

    Returns:
        `input_ids`, `attention_mask`: int64 [B, L].

    Raises:
        ValueError: a prompt has more than `max_length` tokens. It is not cut: the policy would follow half a sentence.
    """
    prompts = [template.replace("{instruction}", instruction) for instruction in instructions]
    ids = [_ids(tokenizer, prompt, prompt_format) for prompt in prompts]
    lengths = [len(row) for row in ids]
    longest, max_length = max(lengths), prompt_format["max_length"]
    if longest > max_length:
        raise ValueError(
            f"an instruction has {longest} tokens with its prompt, the text encoder takes {max_length}: "
            f"{instructions[lengths.index(longest)][:80]!r}"
        )
    to_length = {"padding": "max_length", "max_length": max_length} if prompt_format["padding"] != "longest" else {}
    tokens = tokenizer.pad(
        {"input_ids": ids}, **{"padding": "longest", **to_length}, padding_side="right", return_tensors="np"
    )
    return {name: tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def _ids(tokenizer: Any, prompt: str, prompt_format: Mapping[str, Any]) -> list[int]:
    if prompt_format["chat_template_kwargs"] is not None:
        # the template writes its own special tokens; a second set would shift everything by one
        return tokenizer(_chat(tokenizer, prompt, prompt_format), add_special_tokens=False)["input_ids"]
    if prompt_format["text"] is None:
        return tokenizer(prompt)["input_ids"]
    if prompt_format["escape"] == "json":
        prompt = json.dumps(prompt, ensure_ascii=False)[1:-1]
    # Words of an instruction are never taken for the mark: the text is cut before they come in.
    parts = [part.replace("{prompt}", prompt) for part in prompt_format["text"].split(IMAGE_MARK)]
    ids, *after = (tokenizer(part, add_special_tokens=prompt_format["special_tokens"])["input_ids"] for part in parts)
    for part in after:
        ids = [*ids, *prompt_format["image_ids"], *part]
    return ids


def _chat(tokenizer: Any, text: str, prompt_format: Mapping[str, Any]) -> str:
    turns = [("system", prompt_format["system_message"]), ("user", text)]
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if prompt_format["content_parts"] else content}
        for role, content in turns
        if content is not None
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, **prompt_format["chat_template_kwargs"])
