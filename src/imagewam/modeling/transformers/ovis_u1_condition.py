"""What the image decoder of Ovis-U1 is conditioned on: Qwen3's hidden states over words and soft visual words.

Ovis-U1 Technical Report (arXiv:2506.23044); soft visual words: Ovis (arXiv:2405.20797).
"""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3Model
from transformers import initialization as init

from .ovis_u1_vision import OvisU1VisionConfig, OvisU1VisualTokenizer

# Token ids of no text: the image, and what says that one begins and ends.
IMAGE_BEGIN_ID, IMAGE_ID, IMAGE_END_ID = -301, -300, -302
_PLACEHOLDERS = [IMAGE_BEGIN_ID, IMAGE_ID, IMAGE_END_ID]

# The last rows of the table of visual embeddings are no visual words.
_NUM_RESERVED = 4

_QWEN3_1_7B: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}


@strict
class OvisU1ConditionConfig(PreTrainedConfig):
    r"""
    Configuration of [`OvisU1ConditionEncoder`]; the defaults are those of Ovis-U1-3B.

    Args:
        text_config (`Qwen3Config`), vision_config (`OvisU1VisionConfig`):
            The parts, as configs or dicts.
        visual_vocab_size (`int`):
            Rows of the table of visual embeddings, the 4 that are no visual words included.
    """

    model_type = "ovis_u1_condition"
    sub_configs = {"text_config": Qwen3Config, "vision_config": OvisU1VisionConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    visual_vocab_size: int = 65536
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = _QWEN3_1_7B
        if isinstance(self.text_config, dict):
            self.text_config = Qwen3Config(**self.text_config)
        if self.vision_config is None or isinstance(self.vision_config, dict):
            self.vision_config = OvisU1VisionConfig(**(self.vision_config or {}))
        super().__post_init__(**kwargs)


class OvisU1ConditionEncoder(PreTrainedModel):
    """A prompt with at most one image -> condition embeddings of the image decoder."""

    config_class = OvisU1ConditionConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Qwen3DecoderLayer", "OvisU1VisionBlock"]

    def __init__(self, config: OvisU1ConditionConfig):
        super().__init__(config)
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.visual_tokenizer = OvisU1VisualTokenizer(config.vision_config, config.visual_vocab_size - _NUM_RESERVED)
        self.visual_embeddings = nn.Embedding(config.visual_vocab_size, config.text_config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OvisU1VisualTokenizer):
            init.normal_(module.pos_embed, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Last and second to last hidden state of every token, side by side; the last one after the final norm.

        Args:
            input_ids: `[B, L]` int64, with `IMAGE_BEGIN_ID`, `IMAGE_ID`, `IMAGE_END_ID` where a prompt has its image.
            attention_mask: `[B, L]`, 1 or True for tokens, padding is on the right; None where nothing is padded.
            pixel_values: `[B, 3, H, W]` in [-1, 1], the image of each prompt; None where none of them has one.

        Returns:
            Conditions `[B, L', 2 * hidden_size]` and their mask `[B, L']` bool, None if none was given. `IMAGE_ID` is
            replaced by all visual tokens of the image, so with an image L' = L - 1 + visual tokens.

        Raises:
            ValueError: shapes do not fit each other; and, where the ids (or the mask) lie on the CPU, the prompts and
                the images do not fit each other, or padding is not on the right. Looking at them on another device
                would make every call wait for it.
        """
        mask = None if attention_mask is None else attention_mask.bool()
        _check_inputs(input_ids, mask, pixel_values)
        if pixel_values is None:
            embeds = self.language_model.embed_tokens(input_ids)
        else:
            words = self.visual_tokenizer(pixel_values)
            embeds = self.embed(_spread(input_ids, input_ids, words.shape[1]), words)
            mask = None if mask is None else _spread(mask, input_ids, words.shape[1])
        output = self.language_model(
            inputs_embeds=embeds, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        return torch.cat([output.hidden_states[-1], output.hidden_states[-2]], dim=-1), mask

    def embed(self, input_ids: Tensor, words: Tensor) -> Tensor:
        """Input embeddings `[B, L', hidden_size]` of prompts with one image each.

        Args:
            input_ids: `[B, L']`, with `IMAGE_ID` once for every visual token.
            words: `[B, N, visual words]`, probabilities from the visual tokenizer.
        """
        table, num_words = self.visual_embeddings.weight, words.shape[-1]
        embeds = self.language_model.embed_tokens(input_ids.clamp(min=0))
        embeds = embeds.masked_scatter((input_ids == IMAGE_ID)[..., None], words.to(table.dtype) @ table[:num_words])
        # As published, the marks take the rows from one before the reserved ones on. So the first mark shares its row
        # with the last visual word, and the last row of the table is never used.
        embeds = torch.where((input_ids == IMAGE_BEGIN_ID)[..., None], table[num_words - 1], embeds)
        return torch.where((input_ids == IMAGE_END_ID)[..., None], table[num_words], embeds)


def _spread(values: Tensor, input_ids: Tensor, num_tokens: int) -> Tensor:
    """Values of tokens `[B, L]`, with that of the image repeated for each of its visual tokens: `[B, L']`."""
    at = (input_ids == IMAGE_ID).int().argmax(dim=1, keepdim=True)
    place = torch.arange(input_ids.shape[1] - 1 + num_tokens, device=input_ids.device)
    source = torch.maximum(torch.minimum(place, at), place - num_tokens + 1)
    return values.gather(1, source)


def _check_inputs(input_ids: Tensor, mask: Tensor | None, pixel_values: Tensor | None) -> None:
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(f"expected a mask of shape {tuple(input_ids.shape)}, got {tuple(mask.shape)}")
    if pixel_values is not None and (pixel_values.ndim != 4 or len(pixel_values) != len(input_ids)):
        raise ValueError(f"expected pixel_values [{len(input_ids)}, 3, H, W], got {list(pixel_values.shape)}")
    if mask is not None and mask.device.type == "cpu" and (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("expected padding on the right, got an attention_mask with tokens behind padding")
    if input_ids.device.type == "cpu":
        _check_placeholders(input_ids, pixel_values is not None)


def _check_placeholders(input_ids: Tensor, has_pixels: bool) -> None:
    marks = [row[row < 0].tolist() for row in input_ids]
    with_image = [row == _PLACEHOLDERS for row in marks]
    if any(row and not image for row, image in zip(marks, with_image, strict=True)):
        raise ValueError(f"a prompt has no image or one, written {_PLACEHOLDERS}; got the negative ids {marks}")
    if any(with_image) and not all(with_image):
        raise ValueError(
            f"a batch holds prompts with an image or prompts without, not both; got {sum(with_image)} prompts of "
            f"{len(with_image)} with an image"
        )
    if any(with_image) and not has_pixels:
        raise ValueError("the prompts have an image placeholder, but pixel_values is None")
    if has_pixels and not any(with_image):
        raise ValueError(f"expected prompts with the image placeholder {_PLACEHOLDERS} for pixel_values, got none")
