"""The repeated blocks of an editing transformer, and the linear layers in them."""

from torch import nn


def block_classes(transformer: nn.Module) -> list[str]:
    """Class names of the blocks that diffusers says are repeated, or must stay in one piece: some networks name only
    one of the two. Empty where a network names none."""
    named = (
        *(getattr(transformer, "_no_split_modules", None) or ()),
        *(getattr(transformer, "_repeated_blocks", None) or ()),
    )
    return list(dict.fromkeys(named))


def block_linears(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Plain linear layers of the blocks, by their names in `transformer`: nearly all of its weights.

    Raises:
        ValueError: the network names no blocks, or they have no such layers.
    """
    classes = block_classes(transformer)
    blocks = [name for name, module in transformer.named_modules() if type(module).__name__ in classes]
    linears = {
        name: module
        for name, module in transformer.named_modules()
        if type(module) is nn.Linear and name.startswith(tuple(f"{block}." for block in blocks))
    }
    if not linears:
        raise ValueError(
            f"{type(transformer).__name__} has no linear layers in repeated blocks: its blocks are named {classes}"
        )
    return linears
