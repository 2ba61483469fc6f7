"""Weight-only quantisation for decisions: the editing transformer's weights in 8 bits (torchao)."""

import importlib.util

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..modeling.editing_blocks import block_linears
from ..modeling.modeling_imagewam import ImageWAMForActionPrediction

# int8: 255 steps per row of a weight; fp8: e4m3, three bits of mantissa. A scale per row in either.
PRECISIONS = ("int8", "fp8")


def quantize_weights(policy: ImageWAMForActionPrediction, precision: str) -> ImageWAMForActionPrediction:
    """Keep the weights of the linear layers in the editing transformer's blocks in 8 bits, in place.

    Products are computed in the policy's own dtype, from weights that are brought back to it as they are used, so that
    the hardware needs no 8-bit products, for fp8 neither. Embedders and output of the transformer, biases, action
    expert and state encoder keep their precision. The weights get no gradients any more.

    The order is: load, `.to(dtype)`, `quantize_weights`, then `.to(device)` and `compile_for_inference`. A quantised
    policy can be moved and copied, not cast or saved.

    Args:
        precision: "int8" or "fp8".

    Returns:
        `policy`.

    Raises:
        ValueError: an unknown precision, torchao is not installed, the policy is quantised or compiled already, or its
            weights are not in memory.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"weights are quantised to {' or '.join(PRECISIONS)}, got {precision!r}")
    require_torchao()
    policy.check_not_quantized()
    if policy._static_calls is not None or any(m._compiled_call_impl is not None for m in policy.modules()):
        raise ValueError("this policy is compiled for its weights as they are: quantize_weights goes first")
    linears = set(block_linears(policy.backbone.transformer).values())
    if any(linear.weight.is_meta for linear in linears):
        raise ValueError("some weights are offloaded (device_map) or on the meta device: quantise them in memory")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config_class = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[precision]
    # torchao would else set options of the whole process, the precision of float32 products among them.
    config = config_class(set_inductor_config=False)
    quantize_(policy.backbone.transformer, config, filter_fn=lambda module, name: module in linears)
    policy.quantized_weights = precision
    return policy


def require_torchao() -> None:
    """Raise ValueError if torchao is not installed."""
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("quantize_weights needs torchao: pip install 'imagewam[quantization]'")


def weight_bytes(module: nn.Module) -> int:
    """What the parameters of `module` take, quantised ones as they lie in memory. Shared ones count once."""
    return sum(_num_bytes(p) for p in {id(p): p for p in module.parameters()}.values())


def _num_bytes(tensor: Tensor) -> int:
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    parts = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])  # numbers, scales, zero points
    return sum(part.nbytes for part in parts)
