"""OmniGen (v1) in small."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from diffusers.utils import is_torchvision_available

from imagewam.modeling.transformers.omnigen2 import unpatchify
from imagewam.tiny.pipeline import build_tiny_tokenizer

# One token each, so that five of them stand in front of the image.
_PHRASES = ["<|user|>", "Generate an image according to the following instructions", "<img>", "</img>", "<|end|>"]
_PHRASES += ["<|assistant|>", "<|diffusion|>"]
IMAGE_POSITION = 5


class ImageTransforms:
    """The four functions of torchvision, which nothing else here needs, that OmniGen's pipeline reads images with."""

    @staticmethod
    def Compose(functions: list[Callable]) -> Callable:
        def run(image):
            for function in functions:
                image = function(image)
            return image

        return run

    @staticmethod
    def Lambda(function: Callable) -> Callable:
        return function

    @staticmethod
    def ToTensor() -> Callable:
        return lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    @staticmethod
    def Normalize(mean: list[float], std: list[float], inplace: bool) -> Callable:
        return lambda image: (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


if not is_torchvision_available():
    processor_omnigen.transforms = ImageTransforms
    pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor

# The joint call's own mask hides the target from the context.
JOINT_ORDER = None


def pipeline(texts: Sequence[str], seed: int = 0, vae_channels: tuple[int, ...] = (8, 16, 16)) -> OmniGenPipeline:
    """Random weights drawn from `seed`; 8 x 8 pixels are one token of the transformer, twice that with a fourth level
    of VAE channels, as the pipeline's own processor takes for granted."""
    tokenizer = build_tiny_tokenizer(texts)
    tokenizer.add_tokens(_PHRASES, special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=320,
            num_layers=3,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=len(tokenizer),
            rope_scaling={"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [2.0] * 8},
            pos_embed_max_size=16,
            time_step_dim=16,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            block_out_channels=vae_channels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.13025,
        )
    return OmniGenPipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=vae.eval(),
        tokenizer=tokenizer,
    )


def joint_call(network, text, mask, image, target, grid, time):
    """One sequence [text, image, time, target] in the order of its keys, with the mask that OmniGen was trained with:
    every token in its place in [text before the image, image, text behind it, time, target]."""
    (batch, num_text), num_image = text.shape[:2], image.shape[1]
    length = num_text + 2 * num_image + 1
    mask = torch.ones(batch, num_text, dtype=torch.bool) if mask is None else mask
    places, allowed = torch.zeros(batch, length, dtype=torch.long), torch.zeros(batch, length, length)
    for row in range(batch):
        words = mask[row].nonzero().flatten().tolist()
        images = list(range(num_text, num_text + num_image))
        targets = list(range(num_text + num_image, length))
        sequence = words[:IMAGE_POSITION] + images + words[IMAGE_POSITION:] + targets
        for place, token in enumerate(sequence):
            places[row, token] = place
            allowed[row, token, sequence[: place + 1]] = 1
        for group in (images, targets[1:]):
            allowed[row, group[0] : group[-1] + 1, group] = 1
        padding = [index for index in range(num_text) if index not in words]
        allowed[row, padding] = 1
    return {
        "hidden_states": unpatchify(target, grid, 2),
        "timestep": 1 - time,
        "input_ids": torch.cat([text, torch.zeros(batch, num_image, text.shape[-1])], dim=1),
        "input_img_latents": list(unpatchify(image, grid, 2).split(1)),
        "input_image_sizes": {row: [[num_text, num_text + num_image]] for row in range(batch)},
        "attention_mask": allowed,
        "position_ids": places,
    }
