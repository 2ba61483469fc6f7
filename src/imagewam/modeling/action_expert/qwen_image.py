"""The action expert with Qwen-Image's blocks: FLUX.1's double blocks under other names."""

from .flux1 import Flux1ActionExpert

_RENAMED_PARTS = {".norm1.linear.": ".img_mod.1.", ".ff.": ".img_mlp."}


class QwenImageActionExpert(Flux1ActionExpert):
    """Double layers only. Parameter names are those of FLUX.1."""

    def source_of(self, name: str) -> str | None:
        origin = super().source_of(name)
        for own, editing in _RENAMED_PARTS.items():
            origin = origin and origin.replace(own, editing)
        return origin
