"""A tiny `Flux2KleinPipeline` of real components: for tests, and as the base of policies trained from scratch.

The transformer, VAE and text encoder start random. `fit_vae` (vae.py) teaches the VAE to code pictures, and
`fit_text_encoder` (text_encoder.py) the text encoder to continue sentences.
"""

from collections.abc import Iterable

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..processing.prompt import INSTRUCTION_TEMPLATE

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# FLUX.2 klein reads the hidden states 9, 18 and 27: a text encoder with fewer layers needs the option `text_layers`.
_TEXT_LAYERS = 28


def build_tiny_pipeline(
    texts: Iterable[str],
    *,
    heads: int = 4,
    head_dim: int = 32,
    num_layers: int = 2,
    num_single_layers: int = 3,
    text_width: int = 32,
    text_layers: int = _TEXT_LAYERS,
    vae_channels: tuple[int, ...] = (8, 16, 32),
    latent_channels: int = 8,
    seed: int = 0,
) -> Flux2KleinPipeline:
    """FLUX.2 [klein] in small, with random weights drawn from `seed`.

    Args:
        texts: instructions that the tokenizer's vocabulary is learnt from; every byte is covered besides.
        heads, head_dim, num_layers, num_single_layers: the transformer, `heads * head_dim` wide.
        text_width, text_layers: of the text encoder; instruction embeddings are three times as wide.
        vae_channels: one entry per resolution; n entries make a VAE of stride 2^(n-1), tokens of stride 2^n.
        latent_channels: of the VAE; tokens have four times as many.
    """
    tokenizer = build_tiny_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = Flux2Transformer2DModel(
            in_channels=4 * latent_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=head_dim,
            num_attention_heads=heads,
            joint_attention_dim=3 * text_width,
            axes_dims_rope=(head_dim // 4,) * 4,
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            block_out_channels=vae_channels,
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=text_layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=1024,
                initializer_range=text_width**-0.5,  # words stay far apart without any training
                tie_word_embeddings=True,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def build_tiny_tokenizer(texts: Iterable[str]) -> Qwen2TokenizerFast:
    """Byte-level BPE of at most 512 tokens, with Qwen3's chat format; common words are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=_SPECIAL_TOKENS, initial_alphabet=alphabet)
    prompts = [f"user\nassistant\n\n{INSTRUCTION_TEMPLATE.format(instruction=text)}" for text in texts]
    tokenizer.train_from_iterator(prompts, trainer)
    wrapped = Qwen2TokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped
