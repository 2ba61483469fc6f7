"""Qwen2.5-VL in small: tokenizer, model, and a processor that does without a video processor."""

from collections.abc import Sequence

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from imagewam.tiny.pipeline import build_tiny_tokenizer

_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def build_tokenizer(texts: Sequence[str]) -> Qwen2TokenizerFast:
    tokenizer = build_tiny_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": _MARKS})
    return tokenizer


def build_text_encoder(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """24 wide, two layers; patches of 14 pixels, four of them one visual token."""
    start, end, image, video = tokenizer.convert_tokens_to_ids(_MARKS)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 24,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
            "initializer_range": 24**-0.5,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 24,
            "fullatt_block_indexes": [1],
            "initializer_range": 16**-0.5,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


class ImageProcessor(Qwen2VLProcessor):
    """The processor without its video half, which needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, None, chat_template)


def build_processor(tokenizer: Qwen2TokenizerFast) -> Qwen2VLProcessor:
    return ImageProcessor(Qwen2VLImageProcessorPil(), tokenizer)
