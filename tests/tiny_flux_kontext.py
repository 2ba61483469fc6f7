"""FLUX.1 Kontext in small."""

import json
import string
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from imagewam.modeling.backbones.flux_kontext import REFERENCE_INDEX, TARGET_INDEX
from imagewam.modeling.image_positions import image_ids
from imagewam.processing.prompt import INSTRUCTION_TEMPLATE


def clip_tokenizer(texts: Sequence[str]) -> CLIPTokenizer:
    """Merges learnt from the texts, every byte besides; the two special tokens come last, as in CLIP's own."""
    learner = CLIPTokenizer().backend_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(_prompts(texts), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocab = {word: i for i, word in enumerate([*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5_tokenizer(texts: Sequence[str]) -> T5Tokenizer:
    """Every word of the texts is a piece, and every ASCII letter besides.

    Training would give another vocabulary in every run.
    """
    words = dict.fromkeys(f"▁{word}" for prompt in _prompts(texts) for word in prompt.split())
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(word, -3.0) for word in words]
    pieces += [(letter, -9.0) for letter in ("▁", *string.ascii_letters, *string.punctuation)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _prompts(texts: Sequence[str]) -> list[str]:
    return [INSTRUCTION_TEMPLATE.format(instruction=text) for text in texts]


def pipeline(texts: Sequence[str], seed: int = 0) -> FluxKontextPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer."""
    tokenizer, tokenizer_2 = clip_tokenizer(texts), t5_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
                initializer_factor=10.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2),
                d_model=24,
                d_kv=12,
                d_ff=48,
                num_layers=2,
                num_heads=2,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
        )
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(8, 12, 12),
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 16, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )


def joint_call(network, text, mask, image, target, grid, time, pooled_prompt_embeds):
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": text,
        "pooled_projections": pooled_prompt_embeds,
        "timestep": time,
        "guidance": torch.full_like(time, 3.5),
        "img_ids": torch.cat([image_ids(grid, index) for index in (REFERENCE_INDEX, TARGET_INDEX)]),
        "txt_ids": torch.zeros(text.shape[1], 3),
    }
