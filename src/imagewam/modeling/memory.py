"""Where loaded weights lie in memory."""

from torch import nn

_ALIGNMENT = 64


def align_weights(module: nn.Module) -> nn.Module:
    """Copy weights that a file was mapped to at odd addresses into memory of torch's own.

    CPU kernels round differently on unaligned memory, so without this a loaded policy differs from the saved one in
    the last bit.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()
    return module
