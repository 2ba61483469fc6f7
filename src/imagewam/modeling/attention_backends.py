"""Attention kernels by diffusers' names, checked before the first call needs them."""

from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

# transformers' names of attention implementations -> diffusers' names of attention backends.
ATTENTION_BACKENDS = {
    "sdpa": None,  # diffusers' own default, so that its switches keep working
    "eager": "_native_math",
    "flex_attention": "flex",
    "flash_attention_2": "flash_varlen",  # the variable-length kernels take the mask of a ragged batch
    "flash_attention_3": "_flash_varlen_3",
}


def installed_backend(name: str) -> AttentionBackendName:
    """The backend of this name; one that diffusers takes from the Hub is downloaded now.

    Raises:
        ValueError: diffusers has no such backend.
        RuntimeError: the package that it needs is not installed, or too old.
    """
    known = sorted(backend.value for backend in AttentionBackendName)
    if name not in known:
        raise ValueError(f"attention backends of diffusers are {', '.join(known)}, got {name!r}")
    backend = AttentionBackendName(name)
    # As diffusers' own `set_attention_backend` does, which would set the whole process's backend besides.
    attention_dispatch._check_attention_backend_requirements(backend)
    attention_dispatch._maybe_download_kernel_for_backend(backend)
    return backend
