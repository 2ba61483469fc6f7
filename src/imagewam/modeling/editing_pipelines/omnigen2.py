"""OmniGen2: editing images as a prompt says, combining several, or making one from a prompt alone.

OmniGen2 (arXiv:2506.18871).
"""

import json
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLTextModel

from ...processing.prompt import check_prompt_format, tokenize
from ..transformers.omnigen2 import OmniGen2Transformer2DModel, PackedImages, pack_images, unpatchify
from .inputs import check_images, check_num_steps, initial_latents, named_size

PROMPT_FORMAT = {
    "chat_template_kwargs": None,
    "system_message": None,
    "content_parts": False,
    "max_length": 1024,
    "text": (
        "<|im_start|>system\nYou are a helpful assistant that generates high-quality images based on user "
        "instructions.<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
    ),
}
# Folders of the released repo that hold what we call by diffusers' names; a folder of ours has the name itself.
_RELEASED_FOLDERS = {"text_encoder": "mllm", "tokenizer": "processor"}
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_DEFAULT_SIZE = 1024
# Latent pixels (per side) at which the schedule is not shifted.
_UNSHIFTED_SIDE = 40


class OmniGen2Pipeline(DiffusionPipeline):
    """OmniGen2 in parts; the language model reads the prompt alone, images go in through the VAE.

    Args:
        transformer: predicts the velocity data - noise of image tokens.
        vae: FLUX.1's.
        text_encoder: the language model of Qwen2.5-VL.
        tokenizer: Qwen2.5-VL's.
        scheduler: with dynamic linear shift.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(
        self,
        transformer: OmniGen2Transformer2DModel,
        vae: AutoencoderKL,
        text_encoder: Qwen2_5_VLTextModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.image_processor = VaeImageProcessor(resample="lanczos")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, torch_dtype: torch.dtype | None = None, **kwargs: Any
    ) -> "OmniGen2Pipeline":
        """The pipeline in a folder or Hub repo, of the released layout or of `save_pretrained`'s.

        The released repo holds a whole Qwen2.5-VL (`mllm/`), of which the language model is loaded, and names classes
        of code that lies beside the weights; none of that code is run.

        Args:
            torch_dtype: None: float32, and for the text encoder the type it is stored in.
            kwargs: `revision` and the like of `snapshot_download`, and components to use instead of the stored ones;
                None leaves one out.

        Raises:
            ValueError: an unknown component, or stored weights that lack some of a component's.
            FileNotFoundError: a component's folder is not there.
        """
        hub_options = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
        parts = dict(kwargs)
        unknown = sorted(set(parts) - set(_LOADERS) - {"scheduler"})
        if unknown:
            raise ValueError(f"{cls.__name__} has no components {unknown}; it has {[*_LOADERS, 'scheduler']}")
        source = os.fspath(pretrained_model_name_or_path)
        missing = [name for name in _LOADERS if name not in parts]
        if not os.path.isdir(source):
            folders = {name for part in missing for name in (part, _RELEASED_FOLDERS.get(part, part))} | {"scheduler"}
            patterns = ["model_index.json", *(f"{name}/*" for name in sorted(folders))]
            source = snapshot_download(source, allow_patterns=patterns, ignore_patterns=["*.py"], **hub_options)
        for name in missing:
            parts[name] = _LOADERS[name](_folder_of(source, name), torch_dtype)
        if "scheduler" not in parts:
            parts["scheduler"] = _load_scheduler(source)
        pipeline = cls(**parts)
        pipeline.register_to_config(_name_or_path=os.fspath(pretrained_model_name_or_path))
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        input_images: Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]] | None = None,
        negative_prompt: str | list[str] = "",
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        text_guidance_scale: float = 4.0,
        image_guidance_scale: float = 2.0,
        cfg_range: tuple[float, float] = (0.0, 1.0),
        max_pixels: int = 1024 * 1024,
        max_input_image_side_length: int | None = None,
        align_res: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_embeds_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds_mask: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict] | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Edit images, or make new ones where there are none.

        Args:
            prompt: what to do, or what to show; a list for a batch. Or else `prompt_embeds`.
            input_images: reference images of one prompt, or one list of them (it may be empty) for each prompt.
            negative_prompt: what the guidance leads away from.
            height, width: pixels of the result, multiples of two times the VAE's stride. By default 1024 x 1024.
            text_guidance_scale: s_t of v = u + s_i (r - u) + s_t (c - r), where c sees prompt and images, r the images
                with the negative prompt, u the negative prompt alone. With s_i <= 1, or without images, r = u;
                s_t <= 1 leaves c alone.
            image_guidance_scale: s_i.
            cfg_range: part of the steps, from 0 to 1, in which there is guidance; outside of it v = c.
            max_pixels: larger references are shrunk to this area (Lanczos), all of them to whole tokens.
            max_input_image_side_length: references with a longer side are shrunk to this many pixels on it. None: no
                limit. (The released code has one; its default is not known here.)
            align_res: with one reference per prompt, the result has its size unless height and width are given.
            latents: noise to start from, `[B, C, height / stride, width / stride]`; by default from `generator`.
            prompt_embeds, prompt_embeds_mask: `[B, L, D]` and `[B, L]` as `encode_prompt` returns them.
            negative_prompt_embeds, negative_prompt_embeds_mask: the same, in place of `negative_prompt`.
            output_type: "pil", "np", "pt", or "latent" for the unscaled latents.
            callback_on_step_end: called with the pipeline, the step, its timestep and `{"latents": ...}`; goes on with
                the latents that it returns in a dict.

        Raises:
            ValueError: the numbers of prompts and images or the sizes do not fit each other, a sample has too many
                references, or there is no step to take.
        """
        check_num_steps(num_inference_steps)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        batch_size = _batch_size(prompts, prompt_embeds)
        images = _per_prompt(input_images, batch_size)
        if negative_prompt_embeds is not None:
            negative_prompt = None
        elif isinstance(negative_prompt, str):
            negative_prompt = [negative_prompt] * batch_size
        num_negative = _batch_size(negative_prompt, negative_prompt_embeds)
        if num_negative != batch_size:
            raise ValueError(f"expected a negative prompt for each of {batch_size} prompts, got {num_negative}")
        references = self._references(images, max_pixels, max_input_image_side_length)
        height, width = self._size(references if align_res else [], height, width)
        stride = self._token_stride // self.transformer.config.patch_size
        shape = (batch_size, self.transformer.config.in_channels, height // stride, width // stride)
        latents = initial_latents(latents, shape, self._execution_device, generator)
        both = self._condition(*self._text(prompts, prompt_embeds, prompt_embeds_mask), references)
        text_only = image_only = None
        if text_guidance_scale > 1:
            negative = self._text(negative_prompt, negative_prompt_embeds, negative_prompt_embeds_mask)
            text_only = self._condition(*negative, [[]] * batch_size)
            if any(references) and image_guidance_scale > 1:
                image_only = self._condition(*negative, references)

        mu = (latents.shape[2] * latents.shape[3]) ** 0.5 / _UNSHIFTED_SIDE
        sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        self.scheduler.set_timesteps(sigmas=sigmas, mu=mu, device=latents.device)
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            time = 1 - (timestep / 1000).expand(batch_size)
            velocity = self._velocity(latents, time, both)
            if text_only is not None and cfg_range[0] <= step / num_inference_steps <= cfg_range[1]:
                base = self._velocity(latents, time, text_only)
                middle = base
                if image_only is not None:
                    middle = self._velocity(latents, time, image_only)
                velocity = base + image_guidance_scale * (middle - base) + text_guidance_scale * (velocity - middle)
            # The network predicts data - noise, the scheduler steps along noise - data.
            latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)
        result = latents
        if output_type != "latent":
            latents = latents / self.vae.config.scaling_factor + self.vae.config.shift_factor
            result = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
            result = self.image_processor.postprocess(result.float(), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states of the language model `[B, L, D]`, and their mask `[B, L]`: right padded.

        Raises:
            ValueError: a prompt is longer than the language model was shown.
        """
        tokens = tokenize(self.tokenizer, prompts, "{instruction}", check_prompt_format(PROMPT_FORMAT))
        ids, mask = (torch.from_numpy(tokens[n]).to(self._execution_device) for n in ("input_ids", "attention_mask"))
        embeds = self.text_encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return embeds, mask.bool()

    def _text(
        self, prompts: Sequence[str] | None, embeds: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings for the network; no mask where nothing is padded."""
        if embeds is None:
            embeds, mask = self.encode_prompt(prompts)
        mask = None if mask is None or mask.all() else mask.to(self._execution_device, torch.bool)
        return embeds.to(self._execution_device, self.transformer.dtype), mask

    @property
    def _token_stride(self) -> int:
        """Pixels per token."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) * self.transformer.config.patch_size

    def _references(
        self, images: list[list[Image.Image]], max_pixels: int, max_side: int | None
    ) -> list[list[Tensor]]:
        """Every sample's references as latents `[C, h, w]`: means of the VAE posterior. (The released code draws.)"""
        return [[self._reference(image, max_pixels, max_side) for image in sample] for sample in images]

    def _reference(self, image: Image.Image, max_pixels: int, max_side: int | None) -> Tensor:
        scale = min(1.0, (max_pixels / (image.width * image.height)) ** 0.5)
        if max_side is not None:
            # Exact: a float may leave the longest side a little below the limit, which costs it a token.
            scale = min(scale, Fraction(max_side, max(image.size)))
        stride = self._token_stride
        size = [int(side * scale) // stride * stride for side in (image.height, image.width)]
        if min(size) == 0:
            raise ValueError(f"a reference of {image.width} x {image.height} is smaller than a token of {stride}")
        pixels = self.image_processor.preprocess(image.convert("RGB"), *size)
        vae = self.vae
        latents = vae.encode(pixels.to(self._execution_device, vae.dtype)).latent_dist.mode()[0]
        return (latents.float() - vae.config.shift_factor) * vae.config.scaling_factor

    def _size(self, references: list[list[Tensor]], height: int | None, width: int | None) -> tuple[int, int]:
        named = named_size(height, width, self._token_stride)
        if named is not None:
            return named
        if references and all(len(sample) == 1 for sample in references):
            stride = self._token_stride // self.transformer.config.patch_size
            sizes = {(image.shape[1] * stride, image.shape[2] * stride) for (image,) in references}
            if len(sizes) > 1:
                raise ValueError(f"the references ask for results of {sorted(sizes)}; name one height and width")
            return sizes.pop()
        return _DEFAULT_SIZE, _DEFAULT_SIZE

    def _condition(self, embeds: Tensor, mask: Tensor | None, references: list[list[Tensor]]) -> "_Condition":
        """What the network needs of texts and references: the same at every step."""
        lengths = torch.full(embeds.shape[:1], embeds.shape[1], device=embeds.device)
        if mask is not None:
            lengths = mask.sum(dim=1)
        packed = None
        if any(references):
            packed = pack_images(references, lengths, self.transformer.config.patch_size)
        return _Condition(embeds, mask, packed, lengths if packed is None else packed.end)

    def _velocity(self, latents: Tensor, time: Tensor, condition: "_Condition") -> Tensor:
        """Data - noise, `[B, C, H, W]` float32."""
        dtype, patch = self.transformer.dtype, self.transformer.config.patch_size
        target = pack_images([[image] for image in latents], condition.end, patch)
        references = condition.references
        output = self.transformer(
            hidden_states=target.tokens.to(dtype),
            timestep=time,
            encoder_hidden_states=condition.prompt_embeds,
            img_ids=target.ids,
            encoder_attention_mask=condition.prompt_mask,
            ref_hidden_states=None if references is None else references.tokens.to(dtype),
            ref_ids=None if references is None else references.ids,
            ref_index=None if references is None else references.index,
            return_dict=False,
        )[0]
        return unpatchify(output, (latents.shape[2] // patch, latents.shape[3] // patch), patch).float()


class _Condition(NamedTuple):
    """Text `[B, L, D]` with mask, references, and where the target stands `[B]`."""

    prompt_embeds: Tensor
    prompt_mask: Tensor | None
    references: PackedImages | None
    end: Tensor


def default_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The released schedule: σ' = m σ / (1 + (m - 1) σ), with m from the size of the image."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")


def _load_scheduler(source: str) -> FlowMatchEulerDiscreteScheduler:
    """Ours as it was saved; the released layout has code beside the weights, which does as `default_scheduler`."""
    config = json.loads(Path(_folder_of(source, "scheduler"), "scheduler_config.json").read_text(encoding="utf-8"))
    if config.get("time_shift_type") is None:  # not written by diffusers' own class
        return default_scheduler()
    return FlowMatchEulerDiscreteScheduler.from_config(config)


def _load_whole(model_class: type, folder: str, **kwargs: Any) -> nn.Module:
    """The model with all of its weights; the libraries would fill in random ones, with a warning.

    Raises:
        ValueError: some are missing.
    """
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} weights of {model_class.__name__}, among them {missing[0]}")
    return model


_LOADERS = {
    "transformer": lambda folder, dtype: _load_whole(OmniGen2Transformer2DModel, folder, torch_dtype=dtype),
    "vae": lambda folder, dtype: _load_whole(AutoencoderKL, folder, torch_dtype=dtype),
    "text_encoder": lambda folder, dtype: _load_whole(Qwen2_5_VLTextModel, folder, dtype=dtype),
    "tokenizer": lambda folder, dtype: AutoTokenizer.from_pretrained(folder),
}


def _folder_of(source: str, part: str) -> str:
    """The part's folder, of our layout or the released one.

    Raises:
        FileNotFoundError: neither is there.
    """
    names = [part, *filter(None, [_RELEASED_FOLDERS.get(part)])]
    for name in names:
        if Path(source, name).is_dir():
            return os.path.join(source, name)
    raise FileNotFoundError(f"{source} has no folder {' or '.join(names)}: it is no OmniGen2 pipeline")


def _batch_size(prompts: Sequence[str] | None, embeds: Tensor | None) -> int:
    if (prompts is None) == (embeds is None):
        raise ValueError(f"expected a prompt or its embeddings, got {'neither' if prompts is None else 'both'}")
    size = len(embeds if prompts is None else prompts)
    if size == 0:
        raise ValueError("expected a prompt, got none")
    return size


def _per_prompt(images: Any, num_prompts: int) -> list[list[Image.Image]]:
    """One list of references for each prompt."""
    if images is None:
        return [[] for _ in range(num_prompts)]
    images = [images] if isinstance(images, Image.Image) else list(images)
    if all(isinstance(image, Image.Image) for image in images) and images:
        images = [images]
    images = [list(sample) for sample in images]
    if len(images) != num_prompts:
        raise ValueError(f"expected one list of images for each of {num_prompts} prompts, got {len(images)}")
    check_images(image for sample in images for image in sample)
    return images
