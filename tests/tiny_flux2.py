"""FLUX.2 [klein] in small."""

import torch

from imagewam.modeling.backbones.flux2 import image_ids, text_ids
from imagewam.tiny.pipeline import build_tiny_pipeline


def pipeline(texts):
    return build_tiny_pipeline(texts, num_layers=1, num_single_layers=2, heads=2, head_dim=16, text_width=16)


def joint_call(network, text, mask, image, target, grid, time):
    return {
        "hidden_states": torch.cat([image, target], dim=1),
        "encoder_hidden_states": text,
        "timestep": time,
        "img_ids": torch.cat([image_ids(grid, index, "cpu") for index in (10, 0)]),
        "txt_ids": text_ids(text.shape[1], "cpu"),
    }
