"""Profiles from configs and headers of many kinds."""

from __future__ import annotations

import pytest

from inferapi.adapters.model_profile import Tensor, profile, refuse_hostile
from inferapi.domain.errors import ModelInvalid, RemoteCodeRefused
from inferapi.domain.model import LayerShape, LinearShape, ModelRef

REF = ModelRef("org/name")
EMBEDDING = {"embed.weight": Tensor("BF16", (100, 64), 12_800)}


def projections(layers: int, prefix: str = "model.layers", **rows: int) -> dict[str, Tensor]:
    return {
        f"{prefix}.{index}.self_attn.{name}_proj.weight": Tensor("BF16", (out, 64), out * 128)
        for index in range(layers)
        for name, out in rows.items()
    }


def layers_of(config, tensors=EMBEDDING) -> tuple[LayerShape, ...]:
    return profile(REF, config, tensors).layers


def test_a_llama_is_read_to_the_number(llama):
    found = profile(REF, llama, EMBEDDING | {"norm.weight": Tensor("F32", (64,), 256)})
    assert found.ref == REF
    assert found.architecture == "LlamaForCausalLM"
    assert found.parameters_by_dtype == {"BF16": 6400, "F32": 64}
    assert found.stored_bytes == 12_800 + 256
    assert found.layers == (LayerShape(2, 16, 16), LayerShape(2, 16, 16))
    assert (found.hidden_size, found.intermediate_size, found.vocab_size) == (64, 128, 100)
    assert (found.context_window_tokens, found.prequantized) == (512, False)


def test_a_scalar_tensor_is_one_number(llama):
    found = profile(REF, llama, {"scale": Tensor("F32", (), 4)})
    assert found.parameters_by_dtype == {"F32": 1}


def test_grouped_queries_keep_fewer_heads_and_a_head_may_have_its_own_width(llama):
    assert layers_of(llama | {"num_key_value_heads": 1, "head_dim": 24}) == (LayerShape(1, 24, 24),) * 2


def test_without_groups_every_head_is_kept(llama):
    del llama["num_key_value_heads"]
    assert layers_of(llama) == (LayerShape(4, 16, 16),) * 2


@pytest.mark.parametrize("config", [{"multi_query": True}, {"num_kv_heads": 1}])
def test_multi_query_attention_keeps_one_head(llama, config):
    del llama["num_key_value_heads"]
    assert layers_of(llama | config) == (LayerShape(1, 16, 16),) * 2


def test_weights_know_better_than_the_config(llama):
    assert layers_of(llama, projections(2, k=48, v=40)) == (LayerShape(1, 48, 40),) * 2


def test_packed_weights_do_not_show_their_shape(llama):
    config = llama | {"quantization_config": {"quant_method": "gptq"}}
    assert layers_of(config, projections(2, k=6, v=6)) == (LayerShape(2, 16, 16),) * 2
    assert profile(REF, config, EMBEDDING).prequantized is True


def test_latent_attention_keeps_the_expanded_heads(llama):
    mla = {"kv_lora_rank": 32, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 10}
    assert layers_of(llama | mla) == (LayerShape(4, 16, 10),) * 2


def test_gpt2_calls_everything_otherwise():
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "n_positions": 1024,
        "vocab_size": 50_257,
    }
    found = profile(REF, config, EMBEDDING)
    assert found.layers == (LayerShape(12, 64, 64),) * 12
    assert (found.hidden_size, found.intermediate_size, found.context_window_tokens) == (768, 3072, 1024)


def test_opt_and_mpt_call_it_otherwise_again():
    opt = {
        "hidden_size": 64, "ffn_dim": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
        "max_position_embeddings": 2048, "vocab_size": 100,
    }  # fmt: skip
    mpt = {"d_model": 64, "n_layers": 1, "n_heads": 4, "max_sequence_length": 4096, "vocab_size": 100}
    found = [profile(REF, config, EMBEDDING) for config in (opt, mpt)]
    assert [one.layers for one in found] == [(LayerShape(4, 16, 16),)] * 2
    assert [(one.intermediate_size, one.context_window_tokens) for one in found] == [(256, 2048), (256, 4096)]


def test_sliding_layers_are_told_apart(llama):
    config = llama | {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"]}
    assert [layer.window_tokens for layer in layers_of(config)] == [128, None]


def test_a_model_that_sees_and_reads_is_profiled_by_its_text_part(llama):
    config = {"architectures": ["SomeForConditionalGeneration"], "text_config": llama, "vision_config": {}}
    found = profile(REF, config, EMBEDDING)
    assert (found.architecture, found.hidden_size, len(found.layers)) == ("SomeForConditionalGeneration", 64, 2)


def test_an_encoder_decoder_is_refused(llama):
    with pytest.raises(ModelInvalid, match="encoder-decoder"):
        profile(REF, llama | {"is_encoder_decoder": True}, EMBEDDING)


def test_weights_without_tensors_are_refused(llama):
    with pytest.raises(ModelInvalid, match="no tensors"):
        profile(REF, llama, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", "64"),
        ("hidden_size", 2**31),
        ("hidden_size", 2),  # less than a number a head
        ("num_hidden_layers", None),
        ("num_attention_heads", 0),
        ("num_attention_heads", [4]),
        ("num_key_value_heads", {}),
        ("vocab_size", None),
        ("max_position_embeddings", -1),
        ("architectures", 5),
        ("architectures", {"0": "LlamaForCausalLM"}),
        ("layer_types", 5),
        ("layer_types", {"0": "sliding_attention"}),
        ("kv_lora_rank", 32),  # and nothing else of latent attention
    ],
)
def test_a_config_that_is_none_of_a_language_model_is_refused(llama, key, value):
    with pytest.raises(ModelInvalid, match="its config is not that of a language model"):
        profile(REF, llama | {key: value}, EMBEDDING)


def test_a_config_of_absurdly_many_layers_is_refused(llama):
    """2**31 - 1 of them would take all memory of the API process."""
    with pytest.raises(ModelInvalid):
        profile(REF, llama | {"num_hidden_layers": 100_000}, EMBEDDING)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"custom_pipelines": {}}, "custom_pipelines"),
        ({"_attn_implementation_internal": "org/kernel"}, "_attn_implementation_internal"),
        ({"text_config": {"auto_map": None}}, "auto_map"),
        ({"a": [{"b": [1, {"_experts_implementation_internal": 1}]}]}, "_experts_implementation_internal"),
        ({"x" * 200 + "_internal": 1}, "x" * 60),
    ],
)
def test_a_config_that_asks_for_code_or_private_switches_is_refused_at_any_depth(llama, config, key):
    with pytest.raises(RemoteCodeRefused) as caught:
        refuse_hostile(llama | config, "org/name")
    assert caught.value.facts == {"model": "org/name", "key": key}


def test_a_config_that_merely_mentions_such_words_is_fine(llama):
    refuse_hostile(llama | {"name": "auto_map", "internal": 1, "_internal_x": "y_internal"}, "org/name")


def tensor(*shape: int) -> Tensor:
    return Tensor("BF16", shape, 2 * 64)


OUTPUT = {"lm_head.weight": tensor(100, 64)}


@pytest.mark.parametrize(
    ("config", "tensors", "tied", "parameters"),
    [
        ({}, {}, True, 6400),  # no output layer is stored: the embedding is it
        ({"tie_word_embeddings": True}, OUTPUT, True, 6400),  # stored twice, loaded once
        ({"tie_word_embeddings": False}, OUTPUT, False, 12_800),
        ({}, OUTPUT, False, 12_800),
    ],
)
def test_a_tied_output_layer_counts_once(llama, config, tensors, tied, parameters):
    found = profile(REF, llama | config, EMBEDDING | tensors)
    assert (found.ties_output, sum(found.parameters_by_dtype.values())) == (tied, parameters)


def test_masks_and_frequencies_of_old_checkpoints_are_no_parameters(llama):
    old = {
        "h.0.attn.bias": tensor(1, 1, 512, 512),
        "h.0.attn.masked_bias": tensor(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": tensor(8),
    }
    assert profile(REF, llama, EMBEDDING | old).parameters_by_dtype == {"BF16": 6400}


def test_a_bias_that_is_none_of_a_mask_is_a_parameter(llama):
    assert profile(REF, llama, EMBEDDING | {"h.0.self_attn.bias": tensor(8, 8)}).parameters_by_dtype == {"BF16": 6464}


def test_different_shapes_of_linear_layers_are_counted_and_those_of_experts_apart(llama):
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": tensor(64, 64),
        "model.layers.0.self_attn.o_proj.weight": tensor(64, 64),
        "model.layers.0.mlp.up_proj.weight": tensor(128, 64),
        "model.layers.0.mlp.experts.0.up_proj.weight": tensor(32, 64),
        "model.layers.0.mlp.experts.1.up_proj.weight": tensor(32, 64),
        "model.norm.weight": tensor(64),
    }
    found = profile(REF, llama, EMBEDDING | tensors)
    assert (found.matrix_shapes, found.expert_shapes) == (3, 1)  # with the output layer's


def test_the_weights_that_a_quantization_changes_are_matrices_of_linear_layers(llama):
    quantized = {
        "model.layers.0.self_attn.q_proj.weight": tensor(64, 48),
        "model.layers.1.self_attn.q_proj.weight": tensor(64, 48),
        "model.layers.0.mlp.gate_proj.weight": tensor(128, 64),
        "transformer.h.0.attn.c_attn.weight": tensor(64, 192),
        "model.layers.0.mlp.shared_experts.up_proj.weight": Tensor("F32", (32, 64), 4 * 32 * 64),
    }
    others = {
        "transformer.wte.weight": tensor(100, 64),
        "model.embed_positions.weight": tensor(512, 64),
        "model.layers.0.input_layernorm.weight": tensor(64),
        "model.layers.0.self_attn.q_proj.bias": tensor(64),
        "model.layers.0.mlp.gate.weight": tensor(8, 64),
        "model.layers.0.block_sparse_moe.experts.0.w1.weight": tensor(32, 64),
        "model.layers.0.mlp.experts.gate_up_proj": tensor(8, 64, 64),
        "model.layers.0.mixer.A_log": tensor(96, 8),
        "model.layers.0.mixer.conv1d.weight": tensor(96, 1, 4),
        "model.layers.0.table.weight": Tensor("I32", (64, 64), 4 * 64 * 64),
    }
    found = profile(REF, llama, EMBEDDING | OUTPUT | quantized | others)
    assert found.linears == (
        LinearShape(64, 48, 2),
        LinearShape(128, 64, 1),
        LinearShape(64, 192, 1),
        LinearShape(32, 64, 1),
    )
    assert sum(linear.parameters for linear in found.linears) == 2 * 64 * 48 + 128 * 64 + 64 * 192 + 32 * 64


@pytest.mark.parametrize(
    ("config", "tensors", "expected"),
    [
        ({}, OUTPUT, LinearShape(100, 64)),
        ({"tie_word_embeddings": True}, OUTPUT, None),
        ({}, {}, None),
        ({}, {"transformer.output_layer.weight": tensor(104, 64)}, LinearShape(104, 64)),
        ({}, OUTPUT | {"lm_head.bias": tensor(100)}, LinearShape(100, 64)),
    ],
)
def test_an_output_layer_of_its_own_is_told_apart(llama, config, tensors, expected):
    found = profile(REF, llama | config, EMBEDDING | tensors)
    assert (found.output, found.linears) == (expected, ())


def test_a_state_space_layer_keeps_a_state_and_no_tokens(llama):
    mixer = {
        "backbone.layers.0.mixer.conv1d.weight": tensor(96, 1, 4),
        "backbone.layers.0.mixer.A_log": tensor(96, 8),
        "backbone.layers.1.mixer.conv1d.weight": tensor(96, 1, 4),
        "backbone.layers.1.mixer.A_log": tensor(96, 8),
    }
    found = profile(REF, llama | {"state_size": 8}, EMBEDDING | mixer)
    assert found.layers == (LayerShape(0, 0, 0, None, 96 * 4 + 96 * 8),) * 2
    assert (found.sequential, found.scan_elements_per_token) == (True, 10 * 96 * 8)


def test_a_layer_with_both_keeps_both(llama):
    tensors = projections(1, k=32, v=32) | {
        "model.layers.0.mamba.conv1d.weight": tensor(144, 1, 4),
        "model.layers.0.mamba.A_log": tensor(8),
    }
    config = llama | {"num_hidden_layers": 1, "mamba_d_state": 8, "mamba_d_head": 16, "mamba_chunk_size": 256}
    found = profile(REF, config, EMBEDDING | tensors)
    assert found.layers == (LayerShape(1, 32, 32, None, 144 * 4 + 8 * 8 * 16),)
    assert found.scan_elements_per_token == 3 * 256 * 8 * 8 // 2


@pytest.mark.parametrize(
    ("config", "alone", "in_full"),
    [
        ({}, False, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False, False),
        ({"layer_types": ["full_attention", "linear_attention"]}, True, False),
        ({"rope_parameters": {"rope_type": "dynamic"}}, True, False),
        ({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, True, False),
        ({"rope_scaling": {"type": "yarn"}}, False, False),
        ({"alibi": True}, True, True),
        ({"model_type": "bloom"}, True, True),
        ({"attn_logit_softcapping": 50.0}, False, True),
    ],
)
def test_a_config_tells_who_runs_alone_and_who_holds_all_scores(llama, config, alone, in_full):
    found = profile(REF, llama | config, EMBEDDING)
    assert (found.sequential, found.scores_in_full) == (alone, in_full)


def test_latent_attention_that_runs_alone_keeps_the_latents(llama):
    mla = {"kv_lora_rank": 32, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 10}
    types = {"layer_types": ["full_attention", "indexed_attention"]}
    assert layers_of(llama | mla | types) == (LayerShape(1, 32, 4),) * 2
