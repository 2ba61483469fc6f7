"""Ovis-U1: editing an image as a prompt says, or making one from a prompt alone.

Ovis-U1 Technical Report (arXiv:2506.23044).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download
from PIL import Image, ImageOps
from torch import Tensor, nn
from transformers import Qwen2TokenizerFast

from ...processing.prompt import check_prompt_format, tokenize
from ..image_positions import image_ids
from ..transformers.ovis_u1 import (
    CONDITION_INDEX,
    TARGET_INDEX,
    OvisU1Transformer2DModel,
    pack_latents,
    unpack_latents,
)
from ..transformers.ovis_u1_condition import IMAGE_BEGIN_ID, IMAGE_END_ID, IMAGE_ID, OvisU1ConditionEncoder
from ..transformers.ovis_u1_vision import clamped_resize
from .inputs import check_images, check_num_steps, initial_latents, named_size

PROMPT_FORMAT = {
    "chat_template_kwargs": None,
    "system_message": None,
    "content_parts": False,
    "max_length": 512,
    "text": "<|im_start|>user\n<image>\n{prompt}<|im_end|>\n",
    "image_ids": [IMAGE_BEGIN_ID, IMAGE_ID, IMAGE_END_ID],
}
UNCONDITIONAL_PROMPT = "Generate an image."
TEXT_TO_IMAGE_PREFIX = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, and spatial relationships of "
    "the objects:"
)
_PATCH = 2
_SIZE_MULTIPLE = 32
_MAX_AREA = 1_003_520
_DEFAULT_SIZE = 1024
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class OvisU1Pipeline(DiffusionPipeline):
    """Ovis-U1 in parts, as `imagewam import` writes them.

    Args:
        transformer: predicts the velocity noise - data of image tokens.
        vae: SDXL's.
        text_encoder: reads the prompt together with the image.
        tokenizer: Qwen3's.
        scheduler: with dynamic exponential shift.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: OvisU1Transformer2DModel,
        vae: AutoencoderKL,
        text_encoder: OvisU1ConditionEncoder,
        tokenizer: Qwen2TokenizerFast,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(do_resize=False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "OvisU1Pipeline":
        """The pipeline in a folder or Hub repo that `save_pretrained` wrote.

        Args:
            kwargs: as diffusers takes them: `torch_dtype`, `revision`, components to use instead of the stored ones
                (None leaves one out), ...

        Raises:
            ValueError: it is the published checkpoint, not converted yet.
        """
        source = os.fspath(pretrained_model_name_or_path)
        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        if os.path.isdir(source):
            _check_is_pipeline(source, source)
            return super().from_pretrained(source, **kwargs)
        # diffusers downloads no repo whose parts are of classes outside of it.
        configs = ["model_index.json", "config.json"]
        _check_is_pipeline(snapshot_download(source, allow_patterns=configs, **hub_options), source)
        replaced = [f"{name}/*" for name in cls._get_signature_keys(cls)[0] if name in kwargs]
        patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
        folder = snapshot_download(source, allow_patterns=patterns, ignore_patterns=replaced, **hub_options)
        return super().from_pretrained(folder, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        image: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        text_guidance_scale: float | None = None,
        image_guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Edit images, or make new ones where there is none.

        Args:
            prompt: what to do, or what to show; a list for a batch.
            image: one for each prompt; resized and cropped around its centre to `height` x `width`.
            height, width: pixels of the result, multiples of two times the VAE's stride. By default those of the
                image, brought to multiples of 32 and an area of at most 1,003,520; 1024 x 1024 without an image.
            text_guidance_scale: s_t of v = u + s_i (w - u) + s_t (c - w), where u sees neither image nor prompt, w
                the image and c both. Default 6, without an image (w = u) 5.
            image_guidance_scale: s_i; without an image of no meaning.
            latents: noise to start from, `[B, C, H / stride, W / stride]`; drawn from `generator` by default.
            output_type: "pil", "np", "pt", or "latent" for unscaled latents of the shape of `latents`.

        Raises:
            ValueError: the numbers of prompts and images or the sizes do not fit each other, a prompt is too long, or
                there is no step to take.
        """
        check_num_steps(num_inference_steps)
        prompts, images = _as_lists(prompt, image)
        height, width = self._size(images, height, width)
        if text_guidance_scale is None:
            text_guidance_scale = 6.0 if images else 5.0
        unconditional, no_text, conditional = self._guidance_inputs(prompts, images, height, width)
        rows, columns = height // self._vae_stride, width // self._vae_stride
        shape = (len(prompts), self.vae.config.latent_channels, rows, columns)
        tokens = pack_latents(initial_latents(latents, shape, self._execution_device, generator))
        grid = (rows // _PATCH, columns // _PATCH)
        self._set_timesteps(num_inference_steps, tokens.shape[1])
        for timestep in self.progress_bar(self.scheduler.timesteps):
            times = (timestep / 1000).expand(len(prompts))
            base = self._velocity(tokens, grid, times, unconditional)
            image_only = base if no_text is None else self._velocity(tokens, grid, times, no_text)
            both = self._velocity(tokens, grid, times, conditional)
            velocity = base + image_guidance_scale * (image_only - base) + text_guidance_scale * (both - image_only)
            tokens = self.scheduler.step(velocity, timestep, tokens, return_dict=False)[0]
        result = unpack_latents(tokens, grid)
        if output_type != "latent":
            result = self.image_processor.postprocess(decode_latents(self.vae, result), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _size(self, images: list[Image.Image], height: int | None, width: int | None) -> tuple[int, int]:
        named = named_size(height, width, self._vae_stride * _PATCH)
        if named is not None:
            return named
        if images:
            limits = _SIZE_MULTIPLE, _SIZE_MULTIPLE**2, _MAX_AREA
            sizes = {clamped_resize(image.height, image.width, *limits) for image in images}
            if len(sizes) > 1:
                raise ValueError(
                    f"the images of a batch must ask for one size, got {sorted(sizes)}; name height and width"
                )
            return sizes.pop()
        return _DEFAULT_SIZE, _DEFAULT_SIZE

    @property
    def _vae_stride(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _guidance_inputs(self, prompts: list[str], images: list[Image.Image], height: int, width: int) -> list:
        """For the velocities u, w and c of `__call__`; None for w where there is no image."""
        white = torch.ones(len(prompts), 3, height, width, device=self._execution_device)
        no_prompts = [UNCONDITIONAL_PROMPT] * len(prompts)
        if images:
            rgb = (image.convert("RGB") for image in images)
            fitted = [ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC) for image in rgb]
            pixels = self.image_processor.preprocess(fitted).to(white)
            condition = pack_latents(encode_latents(self.vae, pixels))
            given = [(no_prompts, white, None), (no_prompts, pixels, condition), (prompts, pixels, condition)]
        else:
            described = [TEXT_TO_IMAGE_PREFIX + text for text in prompts]
            given = [(no_prompts, white, None), (described, white, None)]
        # The text encoder is done before the transformer begins, so offloading moves each of them once.
        encoded = [self._encode_text(texts, pixels) for texts, pixels, _ in given]
        inputs = []
        for (embeds, mask), (_, _, condition) in zip(encoded, given, strict=True):
            text, pooled = self.transformer.refine_text(embeds, mask)
            inputs.append({"text": text, "pooled": pooled, "mask": mask, "condition": condition})
        return inputs if images else [inputs[0], None, inputs[1]]

    def _encode_text(self, prompts: list[str], pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings of prompts and of the images that the text encoder sees; no mask where nothing is padded."""
        tokens = tokenize(self.tokenizer, prompts, "{instruction}", check_prompt_format(PROMPT_FORMAT))
        ids, mask = (torch.from_numpy(tokens[name]).to(pixels.device) for name in ("input_ids", "attention_mask"))
        embeds, mask = self.text_encoder(ids, mask, pixels)
        return embeds.to(self.transformer.dtype), None if mask.all() else mask

    def _set_timesteps(self, num_steps: int, num_tokens: int) -> None:
        """μ grows linearly with the number of tokens, through the scheduler's two points."""
        shift = self.scheduler.config
        along = (num_tokens - shift.base_image_seq_len) / (shift.max_image_seq_len - shift.base_image_seq_len)
        mu = shift.base_shift + along * (shift.max_shift - shift.base_shift)
        sigmas = np.linspace(1, 1 / num_steps, num_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=self._execution_device)

    def _velocity(self, tokens: Tensor, grid: tuple[int, int], times: Tensor, given: dict[str, Any]) -> Tensor:
        ids, states, condition = image_ids(grid, TARGET_INDEX, tokens.device), tokens, given["condition"]
        if condition is not None:
            states = torch.cat([tokens, condition], dim=1)
            ids = torch.cat([ids, image_ids(grid, CONDITION_INDEX, tokens.device)])
        output = self.transformer(
            hidden_states=states.to(self.transformer.dtype),
            timestep=times,
            encoder_hidden_states=given["text"],
            pooled_projections=given["pooled"],
            encoder_attention_mask=given["mask"],
            img_ids=ids,
            return_dict=False,
        )[0]
        return output[:, : tokens.shape[1]].float()


def encode_latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Mean of the VAE posterior, scaled: `[B, 3, H, W]` in [-1, 1] -> `[B, C, H / stride, W / stride]` float32.

    The published code draws from the posterior. SDXL's VAE overflows in float16, where it encodes in float32.
    """
    if vae.dtype == torch.float16 and vae.config.force_upcast:
        with _in_float32(vae):
            return encode_latents(vae, pixels)
    return vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float() * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The inverse of `encode_latents`, to pixels in float32: computed in it whatever the VAE's dtype, as published."""
    with _in_float32(vae):
        return vae.decode(latents.float() / vae.config.scaling_factor, return_dict=False)[0]


@contextmanager
def _in_float32(vae: AutoencoderKL) -> Iterator[None]:
    dtype = vae.dtype
    # The plain `to`, as diffusers' own warns about every change of dtype.
    nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        nn.Module.to(vae, dtype)


def _as_lists(
    prompt: str | list[str], image: Image.Image | list[Image.Image] | None
) -> tuple[list[str], list[Image.Image]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    images = [image] if isinstance(image, Image.Image) else list(image or [])
    if not prompts:
        raise ValueError("expected a prompt, got none")
    if image is not None and len(images) != len(prompts):
        raise ValueError(f"expected one image for each of {len(prompts)} prompts, got {len(images)} images")
    check_images(images)
    return prompts, images


def _check_is_pipeline(folder: str, source: str) -> None:
    config = os.path.join(folder, "config.json")
    if os.path.isfile(os.path.join(folder, "model_index.json")) or not os.path.isfile(config):
        return
    with open(config, encoding="utf-8") as file:
        if "llm_config" in json.load(file):
            raise ValueError(
                f"{source} is the published checkpoint of Ovis-U1, all parts in one, and no pipeline; convert it "
                f"first: imagewam import {source} --output DIR"
            )
