"""Names of the published Ovis-U1 weights, and what they are called in the port."""

from collections.abc import Iterable

from ..modeling.transformers.ovis_u1 import OvisU1Transformer2DModel

# Published parameter -> the port's parameters that its rows are split into, in order.
KeyMap = dict[str, tuple[str, ...]]

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_DECODER = {
    "img_in": ("x_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "txt_in.input_embedder": ("context_refiner.proj_in",),
    "txt_in.c_embedder.linear_1": ("context_refiner.context_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_refiner.context_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_REFINER_BLOCK = {
    "norm1": ("norm1",),
    "norm2": ("norm2",),
    "self_attn_qkv": _QKV,
    "self_attn_proj": ("attn.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm_out.linear",),
}
_DOUBLE_BLOCK = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_self_attn.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "img_self_attn.proj": ("attn2.to_out.0",),
    "img_self_attn.norm.query_norm": ("attn2.norm_q",),
    "img_self_attn.norm.key_norm": ("attn2.norm_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE_BLOCK = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
# Published name of a list of blocks -> name in the port, and what a block holds.
DECODER_BLOCKS = {
    "txt_in.individual_token_refiner.blocks": ("context_refiner.token_refiner.refiner_blocks", _REFINER_BLOCK),
    "double_blocks": ("transformer_blocks", _DOUBLE_BLOCK),
    "single_blocks": ("single_transformer_blocks", _SINGLE_BLOCK),
}
# Published prefix -> prefix in the condition encoder.
_CONDITION_ENCODER = {
    "llm.model.": "language_model.",
    "visual_tokenizer.backbone.preprocessor.patchifier.proj.": "visual_tokenizer.patch_embed.",
    "visual_tokenizer.backbone.preprocessor.patchifier.norm.": "visual_tokenizer.patch_norm.",
    "visual_tokenizer.backbone.preprocessor.pos_embed": "visual_tokenizer.pos_embed",
    "visual_tokenizer.backbone.trunk.blocks.": "visual_tokenizer.blocks.",
    "visual_tokenizer.head.": "visual_tokenizer.head.",
    "vte.": "visual_embeddings.",
}


def decoder_key_map(model: OvisU1Transformer2DModel) -> KeyMap:
    """Every published parameter below `visual_generator.backbone.`."""
    modules = dict(_DECODER)
    for blocks, (port_blocks, block) in DECODER_BLOCKS.items():
        for index in range(len(model.get_submodule(port_blocks))):
            for name, ports in block.items():
                modules[f"{blocks}.{index}.{name}"] = tuple(f"{port_blocks}.{index}.{port}" for port in ports)
    key_map = {"txt_in.cls_token": ("context_refiner.summary_token",)}
    for name, ports in modules.items():
        for parameter, _ in model.get_submodule(ports[0]).named_parameters():
            published = "scale" if name.endswith(("query_norm", "key_norm")) else parameter
            key_map[f"{name}.{published}"] = tuple(f"{port}.{parameter}" for port in ports)
    return key_map


def condition_encoder_key_map(ports: Iterable[str]) -> KeyMap:
    """Published names of the condition encoder's parameters `ports`; nothing is split."""
    prefixes = {port: published for published, port in _CONDITION_ENCODER.items()}
    key_map = {}
    for port in ports:
        prefix = next(prefix for prefix in prefixes if port.startswith(prefix))
        key_map[prefixes[prefix] + port.removeprefix(prefix)] = (port,)
    return key_map
