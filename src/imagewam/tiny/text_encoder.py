"""Teach a tiny Qwen3 the sentences that a policy is told: next-token prediction, as its big sisters learn."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

_BATCH_SIZE, _LEARNING_RATE = 16, 2e-3
_IGNORED = -100  # transformers' label of tokens without a loss


def fit_text_encoder(
    text_encoder: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    steps: int,
    seed: int = 0,
) -> float:
    """Train `text_encoder` in place to continue `texts` in the tokenizer's chat format.

    Args:
        steps: optimiser steps; the learning rate falls to zero along a cosine.

    Returns:
        mean cross-entropy per token over the last tenth of the steps, in nats.
    """
    tokens = _tokens(tokenizer, texts)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(text_encoder.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    text_encoder.requires_grad_(True).train()
    losses = []
    for _ in tqdm(range(steps), desc="fitting the text encoder", unit="step"):
        chosen = torch.randint(len(texts), (_BATCH_SIZE,), generator=generator)
        batch = {name: values[chosen] for name, values in tokens.items()}
        labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), _IGNORED)
        loss = text_encoder(**batch, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    text_encoder.requires_grad_(False).eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Tensor]:
    """input_ids and attention_mask of all texts as user turns, `[N, L]`, padded to the longest."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    encoded = tokenizer.apply_chat_template(
        chats, tokenize=True, padding=True, return_tensors="pt", return_dict=True, add_generation_prompt=False
    )
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
