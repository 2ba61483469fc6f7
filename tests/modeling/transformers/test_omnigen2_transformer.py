import json

import pytest
import torch
from safetensors import safe_open

from imagewam.modeling.kv_cache import KVTap
from imagewam.modeling.transformers import omnigen2
from imagewam.modeling.transformers.omnigen2 import (
    OmniGen2Transformer2DModel,
    image_ids,
    pack_images,
    patchify,
    unpatchify,
)

CASES = ["t2i", "edit1", "edit_ragged", "mixed_none"]
NUM_TEXT, REFERENCE_GRID, TARGET_GRID = 5, (2, 3), (3, 4)


@pytest.fixture(scope="module")
def published(shared_dir):
    """The published network at tiny size: ours with its weights, and what the original computes."""
    with safe_open(shared_dir / "fixtures" / "omnigen2_tiny" / "reference.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        config = json.loads(file.metadata()["config"])
    model = OmniGen2Transformer2DModel(**config)
    weights = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    model.load_state_dict(weights)
    return model.eval(), tensors


def published_inputs(tensors, case):
    """The original's lists of images, packed; and the packed target."""
    mask = tensors[f"{case}.mask"]
    lengths = mask.sum(dim=1)
    samples = [f"{case}.ref.{row}." for row in range(len(mask))]
    images = [[tensors[name] for name in sorted(tensors) if name.startswith(sample)] for sample in samples]
    references = pack_images(images, lengths, 2) if any(images) else None
    offset = lengths if references is None else references.end
    target = pack_images([[tensors[f"{case}.x.{row}"]] for row in range(len(mask))], offset, 2)
    inputs = {
        "hidden_states": target.tokens,
        "timestep": tensors[f"{case}.t"],
        "encoder_hidden_states": tensors[f"{case}.text"],
        "encoder_attention_mask": mask,
        "img_ids": target.ids,
    }
    if target.index is not None:
        inputs["hidden_mask"] = target.index >= 0
    if references is not None:
        inputs |= {"ref_hidden_states": references.tokens, "ref_ids": references.ids, "ref_index": references.index}
    return inputs


def images_of(sample, tensors, case, kind="out"):
    """Pairs of each sample's image, cut out of the tokens and as the original computed it."""
    for row, tokens in enumerate(sample):
        expected = tensors[f"{case}.{kind}.{row}"]
        grid = (expected.shape[1] // 2, expected.shape[2] // 2)
        yield unpatchify(tokens[None, : grid[0] * grid[1]], grid, 2)[0], expected


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_computes_what_the_published_network_computes(published, case):
    model, tensors = published
    gap = _gap(model(**published_inputs(tensors, case)).sample, tensors, case, "out")
    print(f"{case}, float32: largest error {gap:.1e}")
    assert gap <= 5e-6


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_it_can_be(published, case):
    """The original rounds the time to bfloat16: with a rounded time we compute what it does, otherwise better."""
    model, tensors = published
    half = OmniGen2Transformer2DModel.from_config(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    inputs = published_inputs({name: half_if_float(x) for name, x in tensors.items()}, case)
    as_published = half(**inputs).sample
    assert as_published.dtype == torch.bfloat16
    ours = half(**inputs | {"timestep": tensors[f"{case}.t"]}).sample
    gaps = {
        "bfloat16 against the original in bfloat16": _gap(as_published, tensors, case, "out_bf16"),
        "bfloat16 with the time in float32 against float32": _gap(ours, tensors, case, "out"),
    }
    print(case, gaps)
    assert max(gaps.values()) < 0.1


def half_if_float(tensor):
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _gap(sample, tensors, case, kind):
    pairs = images_of(sample, tensors, case, kind)
    return max((found.float() - expected.float()).abs().max().item() for found, expected in pairs)


def test_every_released_weight_has_its_place_at_full_size(shared_dir):
    expected = json.loads((shared_dir / "fixtures" / "omnigen2_tiny" / "full_size_keys.json").read_text())
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel()
    assert len(expected) == 582
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_967_161_400


@pytest.fixture
def model():
    torch.manual_seed(0)
    return OmniGen2Transformer2DModel(
        in_channels=4,
        hidden_size=72,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=6,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        text_feat_dim=24,
    ).eval()


@pytest.fixture
def parts():
    """Text `[2, 5, 24]`, a reference image and a target per sample, as latents."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"text": (2, NUM_TEXT, 24), "reference": (2, 4, 4, 6), "target": (2, 4, 6, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def inputs(parts):
    """A call without any padding."""
    return call(parts["text"], [[image] for image in parts["reference"]], parts["target"])


def call(text, references, targets, mask=None):
    lengths = torch.full((len(text),), text.shape[1]) if mask is None else mask.sum(dim=1)
    packed = pack_images(references, lengths, 2)
    target = pack_images([[image] for image in targets], packed.end, 2)
    return {
        "hidden_states": target.tokens,
        "timestep": torch.tensor([0.3, 0.8])[: len(text)],
        "encoder_hidden_states": text,
        "img_ids": target.ids,
        "encoder_attention_mask": mask,
        "ref_hidden_states": packed.tokens,
        "ref_ids": packed.ids,
        "ref_index": packed.index,
    }


@torch.no_grad()
def test_a_sharded_folder_of_the_released_layout_is_loaded_whole(model, inputs, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*.safetensors"))) > 1
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "OmniGen2Transformer2DModel"
    loaded, report = OmniGen2Transformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(loaded(**inputs).sample, model(**inputs).sample, atol=1e-5, rtol=0)


@pytest.fixture
def attention_calls(monkeypatch):
    """Queries, keys and masks of every attention, in order."""
    calls, dispatch = [], omnigen2.dispatch_attention_fn

    def spy(query, key, value, attn_mask=None, **kwargs):
        assert kwargs["enable_gqa"]
        calls.append((query, key, attn_mask))
        return dispatch(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(omnigen2, "dispatch_attention_fn", spy)
    return calls


@torch.no_grad()
def test_attention_sees_tokens_by_heads_and_no_mask_without_padding(model, inputs, attention_calls):
    model(**inputs)
    lengths = {"text": NUM_TEXT, "reference": 6, "target": 12}
    assert [query.shape for query, _, _ in attention_calls] == [
        (2, length, 6, 12) for length in (*lengths.values(), sum(lengths.values()), sum(lengths.values()))
    ]
    assert all(key.shape == (*query.shape[:2], 2, 12) for query, key, _ in attention_calls)
    assert all(mask is None for _, _, mask in attention_calls)


@torch.no_grad()
def test_the_joint_stack_takes_as_many_text_tokens_as_the_mask_has_and_from_the_front(model, inputs, attention_calls):
    """A mask with a hole: the refiner hides the hole, the stack the last token, which loses its position too."""
    mask = torch.ones(2, NUM_TEXT, dtype=torch.bool)
    mask[1, 1] = False
    model(**inputs | {"encoder_attention_mask": mask})
    _, _, refiner_mask = attention_calls[0]
    assert torch.equal(refiner_mask, mask[:, None, None])
    query, key, joint_mask = attention_calls[-1]
    expected = torch.ones(2, query.shape[1], dtype=torch.bool)
    expected[1, NUM_TEXT - 1] = False
    assert torch.equal(joint_mask, expected[:, None, None])
    for states in (query, key):
        assert not states[1, NUM_TEXT - 1].any()
        assert states[1, : NUM_TEXT - 1].any(dim=-1).all() and states[0].any(dim=-1).all()


@torch.no_grad()
def test_padding_counts_as_nothing(model, parts):
    """Samples of other lengths of text, references and targets than their neighbours give what they give alone."""
    mask = torch.arange(NUM_TEXT) < torch.tensor([[NUM_TEXT], [3]])
    small = parts["reference"][1, :, :2]
    references = [[parts["reference"][0], small], [small.flip(-1)]]
    targets = [parts["target"][0], parts["target"][1, :, :2]]
    batch = call(parts["text"], references, targets, mask)
    target = pack_images([[image] for image in targets], batch["img_ids"][:, 0, 0], 2)
    for filler in (0.0, 7.0):
        batch["encoder_hidden_states"] = parts["text"].masked_fill(~mask[..., None], filler)
        for name, index in (("hidden_states", target.index), ("ref_hidden_states", batch["ref_index"])):
            batch[name] = batch[name].masked_fill(index[..., None] < 0, filler)
        found = model(**batch, hidden_mask=target.index >= 0).sample
        for row, length in enumerate((NUM_TEXT, 3)):
            alone = call(parts["text"][row : row + 1, :length], references[row : row + 1], targets[row : row + 1])
            expected = model(**alone | {"timestep": batch["timestep"][row : row + 1]}).sample[0]
            torch.testing.assert_close(found[row, : len(expected)], expected, atol=2e-6, rtol=0)
    unmasked = model(**batch).sample
    assert (unmasked[1, :4] - found[1, :4]).abs().max() > 1e-3


@torch.no_grad()
def test_a_mask_without_padding_changes_nothing(model, inputs):
    masks = {
        "encoder_attention_mask": torch.ones(2, NUM_TEXT, dtype=torch.long),
        "hidden_mask": torch.ones(2, 12, dtype=torch.bool),
        "ref_index": torch.zeros(2, 6, dtype=torch.long),
    }
    torch.testing.assert_close(model(**inputs | masks).sample, model(**inputs).sample, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_order_of_the_references_matters_and_each_is_refined_alone(model, parts):
    first, second = parts["reference"][0], parts["reference"][1]
    refined = []
    handle = model.ref_image_refiner[-1].register_forward_hook(lambda *args: refined.append(args[-1]))
    outputs = [
        model(**call(parts["text"][:1], [images], parts["target"][:1])).sample
        for images in ([first, second], [second, first], [first, second.flip(-1)], [first])
    ]
    handle.remove()
    for other in outputs[1:]:
        assert (other - outputs[0]).abs().max() > 1e-3
    for states in refined[2:]:
        torch.testing.assert_close(states[:, :6], refined[0][:, :6], atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_time_is_not_rounded_to_the_type_of_the_weights(model):
    half = model.to(torch.bfloat16)
    times = torch.tensor([0.37, 0.3701])  # both 0.3691 in bfloat16
    temb, _ = half.time_caption_embed(times, torch.zeros(2, 0, 24, dtype=torch.bfloat16))
    assert temb.dtype == torch.bfloat16
    assert (temb[0] - temb[1]).abs().max() > 1e-3


def is_joint_attention(name, module):
    return name.startswith("layers.")


def two_passes(model, tap, inputs):
    """Context = text and reference; then the target with the context's keys and values in front."""
    nothing = {"hidden_states": inputs["hidden_states"][:, :0], "img_ids": inputs["img_ids"][:, :0]}
    mask = inputs["encoder_attention_mask"]
    key_mask = None
    if mask is not None:
        seen = torch.arange(mask.shape[1]) < mask.sum(dim=1, keepdim=True)
        key_mask = torch.nn.functional.pad(seen, (0, inputs["ref_hidden_states"].shape[1]), value=True)
    with tap.capture(key_mask=key_mask) as cache:
        assert model(**inputs | nothing).sample.shape == (2, 0, 16)
    no_text = inputs["encoder_hidden_states"][:, :0]
    target = {name: inputs[name] for name in ("hidden_states", "img_ids", "timestep")}
    with tap.prefix(cache):
        return model(**target, encoder_hidden_states=no_text).sample, cache


@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@torch.no_grad()
def test_two_passes_equal_one_pass_whose_context_is_blind_to_the_target(model, parts, monkeypatch, ragged):
    mask = torch.arange(NUM_TEXT) < torch.tensor([[NUM_TEXT], [3]]) if ragged else None
    inputs = call(parts["text"], [[image] for image in parts["reference"]], parts["target"], mask)
    output, cache = two_passes(model, KVTap(model, select=is_joint_attention), inputs)
    assert [layer.key.shape for layer in cache.layers] == [(2, NUM_TEXT + 6, 2, 12)] * 2
    open_output = model(**inputs).sample
    num_context = NUM_TEXT + 6
    dispatch = omnigen2.dispatch_attention_fn

    def blind_context(query, key, value, attn_mask=None, **kwargs):
        if key.shape[1] == num_context + 12:
            is_context = torch.arange(key.shape[1]) < num_context
            blind = ~is_context[:, None] | is_context
            attn_mask = blind if attn_mask is None else attn_mask & blind
        return dispatch(query, key, value, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(omnigen2, "dispatch_attention_fn", blind_context)
    torch.testing.assert_close(output, model(**inputs).sample, atol=2e-6, rtol=0)
    assert (output - open_output).abs().max() > 1e-4


def gradients(model, run):
    model.zero_grad()
    run().square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_changes_no_gradient(model, inputs):
    plain = gradients(model, lambda: model(**inputs).sample)
    calls = []
    model.enable_gradient_checkpointing()
    checkpoint = model._gradient_checkpointing_func
    model._gradient_checkpointing_func = lambda *args: calls.append(args[0]) or checkpoint(*args)
    checkpointed = gradients(model, lambda: model(**inputs).sample)
    assert calls == [*model.context_refiner, *model.ref_image_refiner, *model.noise_refiner, *model.layers]
    assert plain.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


def test_gradients_through_two_passes_survive_checkpointing(model, inputs):
    tap = KVTap(model, select=is_joint_attention)
    plain = gradients(model, lambda: two_passes(model, tap, inputs)[0])
    tap.enable_gradient_checkpointing()
    checkpointed = gradients(model, lambda: two_passes(model, tap, inputs)[0])
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in plain.items())


def test_each_attention_has_a_processor_of_its_own(model):
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    assert len({id(processor) for processor in processors}) == len(processors) == 5


def test_latents_are_patched_with_the_channel_fastest():
    latents = torch.randn(2, 4, 6, 8)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 12, 16)
    assert torch.equal(tokens[:, 4 * 1 + 2].view(2, 2, 2, 4), latents[:, :, 2:4, 4:6].permute(0, 2, 3, 1))
    assert torch.equal(unpatchify(tokens, (3, 4), 2), latents)
    with pytest.raises(RuntimeError):
        patchify(latents[..., 1:], 2)


def test_images_stand_behind_the_larger_side_of_the_one_before():
    images = [[torch.ones(4, 4, 6), torch.full((4, 8, 2), 2.0)], []]
    packed = pack_images(images, torch.tensor([5, 2]), 2)
    assert packed.tokens.shape == (2, 10, 16) and packed.ids.shape == (2, 10, 3)
    assert packed.ids[0, :, 0].tolist() == [5] * 6 + [8] * 4
    assert torch.equal(packed.ids[:1, :6], image_ids((2, 3), torch.tensor([5])))
    assert packed.ids[0, 6:, 1:].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
    assert packed.index.tolist() == [[0] * 6 + [1] * 4, [-1] * 10]
    assert packed.end.tolist() == [12, 2]
    assert torch.equal(packed.tokens[0, :, 0], torch.tensor([1.0] * 6 + [2.0] * 4))


def test_one_image_each_of_one_size_needs_no_index():
    packed = pack_images([[torch.ones(4, 4, 6)], [torch.ones(4, 6, 4)]], torch.tensor([5, 2]), 2)
    assert packed.index is None and packed.end.tolist() == [8, 5]


def test_image_ids_count_rows_and_columns():
    assert image_ids((2, 2), torch.tensor([3, 7])).tolist() == [
        [[offset, row, column] for row in range(2) for column in range(2)] for offset in (3, 7)
    ]


def test_arguments_that_do_not_fit_are_errors(model, inputs, parts):
    six = [[parts["reference"][0]] * 6, [parts["reference"][1]]]
    with pytest.raises(ValueError, match="may have 5 references, got 6"):
        call(parts["text"], six, parts["target"])
    with pytest.raises(ValueError, match="must add up to the 120 of a head"):
        OmniGen2Transformer2DModel(axes_dim_rope=(32, 32, 32))
