"""The family hands to FLUX.1's network what the Kontext pipeline hands to it, and reads instructions twice."""

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from imagewam import ImageWAMConfig, ImageWAMForActionPrediction, ImageWAMProcessor
from imagewam.data.collator import ImageWAMCollator
from imagewam.modeling.action_expert import AttentionGeometry, Flux1ActionExpert
from imagewam.modeling.backbones.flux_kontext import FluxKontextBackbone
from imagewam.processing.camera_layout import CameraSpec
from imagewam.processing.contract import ActionSpec, PolicyContract, StateSpec
from imagewam.training.precomputed import PrecomputedCollator
from tiny_families import FAMILIES

INSTRUCTIONS = ["open the drawer", "push the red button on the wall"]
HORIZON = 3
# As the pipeline reads an instruction: 512 tokens, none of them hidden.
PADDED = {"tokenizer_2": {**FluxKontextBackbone.default_prompt_format["tokenizer_2"], "padding": "max_length"}}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = FAMILIES["flux-kontext"].pipeline(INSTRUCTIONS)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_policy(pipeline, **backbone_options):
    torch.manual_seed(1)
    arguments = {"action_dim": 2, "state_dim": 1, "action_horizon": HORIZON, "action_hidden_size": 24}
    return ImageWAMForActionPrediction.from_editing_pipeline(
        pipeline, **arguments, backbone_options=backbone_options
    ).eval()


@pytest.fixture(scope="module")
def policy(pipeline):
    return make_policy(pipeline)


def make_processor(policy):
    numbers = {"mean": [0.0], "std": [1.0]}
    contract = PolicyContract(
        cameras=(CameraSpec("front", 32, 64),),
        layout="single",
        state=StateSpec(("a",), "mean_std"),
        action=ActionSpec(("a", "b"), "mean_std"),
        fps=10,
        horizon=HORIZON,
    )
    statistics = {"state": numbers, "action": {name: values * 2 for name, values in numbers.items()}}
    return ImageWAMProcessor.for_policy(policy, contract, statistics, instruction_template="{instruction}")


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (32, 64, 3), dtype=np.uint8)


def observation(policy, instructions=INSTRUCTIONS[:1]):
    count = len(instructions)
    images = [{"front": image(seed)} for seed in range(count)]
    return make_processor(policy)(images=images, instruction=instructions, state=[[0.5]] * count, return_tensors="pt")


def token_ids(batch):
    return {name: batch[name] for name in ("input_ids", "attention_mask", "input_ids_2", "attention_mask_2")}


def record_calls(pipeline, **options):
    """Keyword arguments of every call that a real edit makes."""
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    pipeline(
        image=Image.fromarray(image()),
        prompt=INSTRUCTIONS[0],
        height=32,
        width=64,
        max_area=32 * 64,
        _auto_resize=False,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    )
    hook.remove()
    return calls


@pytest.mark.parametrize("guidance", [{}, {"guidance_scale": 2.0}], ids=["default", "chosen"])
@torch.no_grad()
def test_hands_over_what_the_pipeline_hands_over(pipeline, guidance):
    policy = make_policy(pipeline, prompt_format=PADDED, **guidance)
    backbone, batch = policy.backbone, observation(policy)
    prompt_embeds, mask = backbone.encode_instruction(**token_ids(batch))
    assert mask is None and prompt_embeds.shape[1] == 512
    pooled = backbone.encode_pooled_instruction(**token_ids(batch))
    latents, grid = backbone.encode_image(batch["pixel_values"])
    num_target = latents.shape[1]
    calls = record_calls(pipeline, **guidance)
    for recorded in calls:
        time = recorded["timestep"]
        context = backbone.context_call(prompt_embeds, None, latents, grid, time, pooled).kwargs
        noisy = recorded["hidden_states"][:, :num_target]
        cache = backbone.encode_context(prompt_embeds, None, latents, grid, time, pooled_prompt_embeds=pooled)
        target = backbone.target_call(noisy, time, cache).kwargs
        # The pipeline's image stream is [target, reference]; ours are two calls.
        torch.testing.assert_close(
            recorded["hidden_states"], torch.cat([noisy, context["hidden_states"]], dim=1), atol=1e-5, rtol=0
        )
        assert torch.equal(recorded["img_ids"], torch.cat([target["img_ids"], context["img_ids"]]))
        assert torch.equal(recorded["txt_ids"], context["txt_ids"]) and target["txt_ids"].shape == (0, 3)
        torch.testing.assert_close(recorded["encoder_hidden_states"], context["encoder_hidden_states"])
        assert target["encoder_hidden_states"].shape[1] == 0
        for call in (context, target):
            torch.testing.assert_close(recorded["pooled_projections"], call["pooled_projections"])
            assert torch.equal(recorded["guidance"], call["guidance"]) and torch.equal(call["timestep"], time)
            assert set(recorded) - {"joint_attention_kwargs", "return_dict"} == set(call)
    times = [call["timestep"].item() for call in calls]
    assert times[0] == 1 > times[1] > 0  # 1 is noise
    assert calls[0]["guidance"] == guidance.get("guidance_scale", 3.5)


@torch.no_grad()
def test_padding_is_hidden_by_default(pipeline, policy):
    batch = observation(policy, INSTRUCTIONS)
    embeds, mask = policy.backbone.encode_instruction(**token_ids(batch))
    pooled = policy.backbone.encode_pooled_instruction(**token_ids(batch))
    assert torch.equal(mask, batch["attention_mask_2"]) and not mask.all()
    assert not batch["attention_mask"].all()
    for row, instruction in enumerate(INSTRUCTIONS):
        ids = pipeline.tokenizer_2(instruction, return_tensors="pt").input_ids
        alone = pipeline.text_encoder_2(ids).last_hidden_state[0]
        torch.testing.assert_close(embeds[row, : ids.shape[1]], alone, atol=1e-5, rtol=1e-5)
        expected = pipeline._get_clip_prompt_embeds(instruction)
        torch.testing.assert_close(pooled[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-2)


@torch.no_grad()
def test_codes_images_as_the_pipeline_does(pipeline, policy):
    pixels = observation(policy)["pixel_values"]
    latents, grid = policy.backbone.encode_image(pixels)
    expected = pipeline._encode_vae_image(pixels, generator=None)
    assert grid == (4, 8) == tuple(size // 2 for size in expected.shape[-2:])
    assert torch.equal(latents, pipeline._pack_latents(expected, 1, 4, 8, 16))
    decoded = pipeline.vae.decode(expected / 0.3611 + 0.1159).sample
    torch.testing.assert_close(policy.backbone.decode_image(latents, grid), decoded, atol=2e-5, rtol=0)
    with pytest.raises(ValueError, match="multiples of 8, got 32 x 60"):
        policy.backbone.encode_image(torch.zeros(1, 3, 32, 60))


@torch.no_grad()
def test_a_network_without_guidance_gets_none(pipeline):
    network = {**pipeline.transformer.config, "guidance_embeds": False}
    config = ImageWAMConfig(backbone={"family": "flux-kontext", "transformer": network}, action_hidden_size=24)
    backbone = ImageWAMForActionPrediction(config).backbone
    text, pooled, latents, time = torch.zeros(1, 3, 24), torch.zeros(1, 16), torch.zeros(1, 8, 16), torch.ones(1)
    assert backbone.context_call(text, None, latents, (2, 4), time, pooled).kwargs["guidance"] is None
    context = backbone.encode_context(text, None, latents, (2, 4), time, pooled_prompt_embeds=pooled)
    assert backbone.predict_velocity(latents, time, context)[0].shape == latents.shape


def test_actions_stand_behind_each_other_on_an_image_index_of_their_own(policy):
    found = policy.backbone.action_rotary_emb(3, torch.device("cpu"))
    ids = torch.tensor([[2, 0, 0], [2, 1, 0], [2, 2, 0]])
    for table, expected in zip(found, policy.backbone.transformer.pos_embed(ids), strict=True):
        assert torch.equal(table, expected)


@torch.no_grad()
def test_the_target_is_modulated_by_the_pooled_text(policy):
    batch = observation(policy)
    context = policy.encode_context(**batch)
    noise = torch.randn(1, 32, 16, generator=torch.Generator().manual_seed(0))
    found, _ = policy.backbone.predict_velocity(noise, torch.ones(1), context)
    context.pooled = -context.pooled
    assert not torch.allclose(policy.backbone.predict_velocity(noise, torch.ones(1), context)[0], found, atol=1e-3)


def test_both_readings_of_an_instruction_are_needed(policy):
    batch = observation(policy)
    with pytest.raises(ValueError, match="needs input_ids_2 with attention_mask_2 and input_ids with"):
        policy.predict_action(**{**batch, "input_ids_2": None})
    with pytest.raises(ValueError, match=r"pooled_prompt_embeds must be \[1, 16\], got \[1, 15\]"):
        policy.predict_action(**batch, pooled_prompt_embeds=torch.zeros(1, 15))
    observed = {name: batch[name] for name in ("pixel_values", "state")}
    with pytest.raises(ValueError, match="or prompt_embeds with pooled_prompt_embeds"):
        policy.predict_action(**observed, prompt_embeds=torch.zeros(1, 4, 24))
    with pytest.raises(ValueError, match="needs input_ids_2 .* or prompt_embeds"):
        policy.predict_action(**observed, pooled_prompt_embeds=torch.zeros(1, 16))


def test_other_families_refuse_what_they_do_not_read():
    pipeline = FAMILIES["flux2-klein"].pipeline(INSTRUCTIONS)
    policy = ImageWAMForActionPrediction.from_editing_pipeline(pipeline, state_dim=0, action_hidden_size=24)
    inputs = {"pixel_values": torch.zeros(1, 3, 16, 16), "input_ids": torch.zeros(1, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="flux2-klein has one tokenizer, got input_ids_2"):
        policy.predict_action(**inputs, input_ids_2=inputs["input_ids"])
    with pytest.raises(ValueError, match="flux2-klein takes no pooled_prompt_embeds"):
        policy.predict_action(**inputs, pooled_prompt_embeds=torch.zeros(1, 16))


def test_a_saved_checkpoint_carries_both_tokenizers(policy, tmp_path):
    processor = make_processor(policy)
    policy.save_pretrained(tmp_path / "policy", save_frozen=True)
    processor.save_pretrained(tmp_path / "policy", save_frozen=True)
    (tmp_path / "policy").rename(tmp_path / "moved")
    loaded = ImageWAMForActionPrediction.from_pretrained(tmp_path / "moved")
    again = ImageWAMProcessor.from_pretrained(tmp_path / "moved")
    folders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
    assert sorted(path.name for path in (tmp_path / "moved" / "frozen").iterdir()) == list(folders)
    sample = {"images": {"front": image()}, "instruction": INSTRUCTIONS[1], "state": [0.5], "return_tensors": "pt"}
    before, after = processor(**sample), again(**sample)
    assert set(before) == set(after) == set(again.model_input_names)
    assert all(torch.equal(before[name], after[name]) for name in before)
    noise = {"latents": torch.zeros(1, HORIZON, 2), "image_noise": torch.zeros(1, 32, 16)}
    assert torch.equal(
        loaded.predict_action(**after, **noise).actions, policy.predict_action(**before, **noise).actions
    )


class Episodes:
    """Two episodes of two frames in memory, each with an instruction of its own."""

    episode_lengths = {0: 2, 1: 2}
    tasks = dict(enumerate(INSTRUCTIONS))
    root = fingerprint = "episodes in memory"

    def frames_identity(self, camera, episode):
        return f"{camera} {episode}"

    def frames(self, camera, episode, indices):
        return [image(10 * episode + index) for index in indices]

    def values(self, key, episode):
        return np.zeros((2, 1), dtype=np.float32)

    def sample(self, episode):
        return {
            "images": {"front": image(10 * episode)},
            "target_images": {"front": image(10 * episode + 1)},
            "state": np.zeros(1, dtype=np.float32),
            "actions": np.ones((HORIZON, 2), dtype=np.float32),
            "action_is_pad": np.zeros(HORIZON, dtype=bool),
            "instruction": INSTRUCTIONS[episode],
            "episode_index": episode,
            "frame_index": 0,
        }


@torch.no_grad()
def test_precomputed_batches_are_as_plain_ones(policy, tmp_path):
    processor, episodes = make_processor(policy), Episodes()
    samples = [episodes.sample(0), episodes.sample(1)]
    plain = ImageWAMCollator(processor)(samples)
    precomputed = PrecomputedCollator(policy, processor, [episodes], tmp_path)(samples)
    assert precomputed["pooled_prompt_embeds"].shape == (2, 16) and "input_ids_2" not in precomputed
    generator = torch.Generator().manual_seed(0)
    draws = {
        "image_time": torch.tensor([0.1, 0.7]),
        "action_time": torch.tensor([0.9, 0.3]),
        "image_noise": torch.randn(2, 32, 16, generator=generator),
        "action_noise": torch.randn(2, HORIZON, 2, generator=generator),
    }
    expected, found = policy(**plain, **draws), policy(**precomputed, **draws)
    torch.testing.assert_close(found.action_velocity, expected.action_velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.image_velocity, expected.image_velocity, atol=1e-5, rtol=0)


def test_the_action_expert_is_made_of_the_image_branch_of_diffusers_blocks(pipeline):
    """Parameter for parameter, under diffusers' names."""
    network = FluxTransformer2DModel.from_config(pipeline.transformer.config)
    expert = make_policy(pipeline).action_expert
    own = {name for name, _ in expert.named_parameters() if "transformer_blocks." in name}
    text_only = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added", "_context")
    image_branch = {
        name
        for name, _ in network.named_parameters()
        if "transformer_blocks." in name and not any(part in name for part in text_only)
    }
    assert own == image_branch


def test_the_action_expert_refuses_layers_in_another_order():
    double, single = AttentionGeometry(2, 2, 16, "double"), AttentionGeometry(2, 2, 16, "single")
    with pytest.raises(ValueError, match=r"needs layers \['double'\], repeated, then single ones, got \['single'\]"):
        Flux1ActionExpert([single, double], 2, 24, 2.0)


def test_full_size_parameter_counts():
    with torch.device("meta"):
        policy = ImageWAMForActionPrediction(ImageWAMConfig(backbone={"family": "flux-kontext", "transformer": {}}))
    counts = [sum(p.numel() for p in m.parameters()) for m in (policy.backbone.transformer, policy.action_expert)]
    assert counts == [11_901_408_320, 1_438_963_975]
