"""A small real tokenizer, contract and statistics for the processor's tests."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from imagewam import processing_imagewam
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, PolicyContract, StateSpec

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_TEMPLATE = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}{{ message.content[0].text }}{% endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif -%}"""
CHAT_FORMAT = {
    "chat_template_kwargs": {"add_generation_prompt": True, "enable_thinking": False},
    "system_message": None,
    "content_parts": False,
    "max_length": 64,
}
CAMERAS = (CameraSpec("agentview", 16, 16), CameraSpec("wrist", 16, 32, rotate_180=True))
STATE_NAMES = ("x", "y", "gripper")
ACTION_NAMES = ("dx", "dgripper")
HORIZON = 4


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    corpus = ["put the bowl on the plate", "open the drawer", processing_imagewam.INSTRUCTION_TEMPLATE]
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE
    )


def contract(**changes) -> PolicyContract:
    fields = {
        "cameras": CAMERAS,
        "layout": "horizontal",
        "state": StateSpec(STATE_NAMES),
        "action": ActionSpec(ACTION_NAMES, normalization="mean_std"),
        "fps": 10,
        "horizon": HORIZON,
        "dataset": {"repo": "someone/drawers", "revision": "abc"},
    }
    return PolicyContract(**{**fields, **changes})


def statistics() -> dict:
    return {
        "state": {"min": [-1.0, 0.0, 0.0], "max": [1.0, 10.0, 0.04], "count": 100},
        "action": {"mean": [0.1, 0.5], "std": [0.2, 2.0], "count": 100},
    }


def processor(**changes) -> processing_imagewam.ImageWAMProcessor:
    fields = {"contract": contract(), "statistics": statistics(), "prompt_format": CHAT_FORMAT}
    return processing_imagewam.ImageWAMProcessor(**{**fields, **changes})


def observation(seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    return {
        "images": {name: random.integers(0, 256, (24, 32, 3), dtype=np.uint8) for name in ("agentview", "wrist")},
        "instruction": ("open the drawer", "put the bowl on the plate", "open")[seed % 3],
        "state": random.uniform([-1, 0, 0], [1, 10, 0.04]).astype(np.float32),
    }
