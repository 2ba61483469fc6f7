"""QLoRA: the editing transformer's frozen weights in 4 bits (bitsandbytes), under adapters in full precision."""

import importlib.util

import torch
from torch import nn

from ..modeling.editing_blocks import block_linears
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction


def quantize_editing(policy: ImageWAMForActionPrediction, compute_dtype: torch.dtype, device: torch.device) -> None:
    """Replace the linear layers of the editing transformer's blocks, one by one, by nf4 ones on `device`.

    All else keeps its precision: embedders and output of the transformer, action expert and state encoder. It is done
    to a policy in memory, not while one is loaded: the action expert starts from the unquantised weights.

    Args:
        compute_dtype: of the matrix products.

    Raises:
        ValueError: bitsandbytes is not installed, the weights are quantised already, or the network has no blocks.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantize_editing needs bitsandbytes: pip install 'imagewam[quantization]'")
    policy.check_not_quantized()
    transformer = policy.backbone.transformer
    for name, linear in block_linears(transformer).items():
        transformer.set_submodule(name, _quantized(linear, compute_dtype).to(device))
    policy.quantized_weights = "nf4"
    # peft looks here for the kind of adapter layer that it needs.
    policy.is_loaded_in_4bit = True


def _quantized(linear: nn.Linear, compute_dtype: torch.dtype) -> nn.Linear:
    """A layer that bitsandbytes quantises when it is moved to its device; its scales are quantised in turn."""
    import bitsandbytes as bnb

    size = linear.in_features, linear.out_features, linear.bias is not None
    quantized = bnb.nn.Linear4bit(*size, compute_dtype=compute_dtype, quant_type="nf4", device="meta")
    quantized.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4", module=quantized)
    quantized.bias = linear.bias
    return quantized.requires_grad_(False)
