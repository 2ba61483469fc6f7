"""The action expert with LongCat-Image's blocks, which are FLUX.1's."""

from .flux1 import Flux1ActionExpert


class LongCatImageActionExpert(Flux1ActionExpert):
    renamed_weights = {"timestep_embedder.": "time_embed.timestep_embedder."}
