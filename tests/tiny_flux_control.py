"""FLUX.1 Control in small: Kontext's parts around a transformer whose tokens hold two images."""

from collections.abc import Sequence

import torch
from diffusers import FluxControlPipeline

import tiny_flux_kontext


def pipeline(texts: Sequence[str], seed: int = 0) -> FluxControlPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token. The VAE's posterior has next to no width, because
    the pipeline draws from it."""
    parts = tiny_flux_kontext.pipeline(texts, seed).components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = parts["transformer"]
        config = {name: value for name, value in network.config.items() if not name.startswith("_")}
        tokens = {"in_channels": 2 * network.config.in_channels, "out_channels": network.config.in_channels}
        parts["transformer"] = type(network)(**{**config, **tokens}).eval()
    way_out = parts["vae"].encoder.conv_out
    torch.nn.init.constant_(way_out.weight[way_out.out_channels // 2 :].detach(), 0)
    torch.nn.init.constant_(way_out.bias[way_out.out_channels // 2 :].detach(), -30)
    names = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    return FluxControlPipeline(**{name: parts[name] for name in names})
