"""Linear layers in front of an attention of which only keys and values are read: they make nothing else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

# What diffusers' networks call projections beside those of keys and values: in the attention, and beside it in a block
# whose MLP runs in parallel.
_OF_QUERIES = ("to_q", "add_q_proj")
_OF_PARALLEL_MLP = ("proj_mlp",)
_NO_COLUMNS = slice(0)


def unread_projections(network: nn.Module, attention: str) -> dict[nn.Module, slice]:
    """The layers beside the attention module of this name that become neither keys nor values, with no columns."""
    places = {attention: _OF_QUERIES, attention.rpartition(".")[0]: _OF_PARALLEL_MLP}
    modules = [getattr(network.get_submodule(place), name, None) for place, names in places.items() for name in names]
    return {module: _NO_COLUMNS for module in modules if module is not None}


@contextmanager
def reading_only(columns: Mapping[nn.Module, slice]) -> Iterator[None]:
    """Inside the block, linear layers compute these columns of their output alone; the others are zeros.

    Layers that are more than plain ones (adapters, quantised weights, weights that are elsewhere) compute all columns.
    """
    plain = {module: part for module, part in columns.items() if _is_plain(module)}
    for module, part in plain.items():
        module.forward = partial(_columns, module, part)
    try:
        yield
    finally:
        for module in plain:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module)


def _columns(linear: nn.Linear, part: slice, tokens: Tensor) -> Tensor:
    output = tokens.new_zeros(*tokens.shape[:-1], linear.out_features)
    if linear.weight[part].numel():
        bias = None if linear.bias is None else linear.bias[part]
        output[..., part] = nn.functional.linear(tokens, linear.weight[part], bias)
    return output
