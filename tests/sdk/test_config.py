"""ModelConfig: one validation, one list of tensors, one section of config.json."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgelm.config import SECTION, ModelConfig, RopeScaling
from edgelm.errors import ConfigError

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=100,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
LARGE = {
    "norm": "layer",
    "norm_eps": 1e-6,
    "position": "learned",
    "rope_theta": 5e5,
    "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    "hidden_act": "gelu",
    "mlp_gated": False,
    "mlp_bias": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "qk_norm": True,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_ids": (2, 7),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number of 1 or more."),
        ({"hidden_size": -1}, "hidden_size is -1; it must be a whole number of 1 or more."),
        ({"intermediate_size": 1.5}, "intermediate_size is 1.5; it must be a whole number of 1 or more."),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; it must be a whole number of 1 or more."),
        ({"num_attention_heads": "4"}, "num_attention_heads is '4'; it must be a whole number of 1 or more."),
        ({"num_key_value_heads": None}, "num_key_value_heads is None; it must be a whole number of 1 or more."),
        ({"head_dim": 0}, "head_dim is 0; it must be a whole number of 1 or more."),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; it must be a whole number of 1 or more."),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads (4) is not a multiple of num_key_value_heads (3).",
        ),
        ({"head_dim": 7}, "head_dim is 7; rope needs an even one."),
        ({"norm": "batch"}, "norm is 'batch'; supported: rms, layer."),
        ({"position": "alibi"}, "position is 'alibi'; supported: rope, learned, sinusoidal, none."),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; supported: silu, gelu, gelu_pytorch_tanh, relu."),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be a number above 0."),
        ({"norm_eps": math.nan}, "norm_eps is nan; it must be a number above 0."),
        ({"rope_theta": math.inf}, "rope_theta is inf; it must be a number above 1."),
        ({"rope_theta": 1.0}, "rope_theta is 1.0; it must be a number above 1."),
        ({"mlp_gated": "false"}, "mlp_gated is 'false'; it must be true or false."),
        ({"qk_norm": 1}, "qk_norm is 1; it must be true or false."),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false."),
        (
            {"eos_token_ids": (2, -1)},
            "bos_token_id is None and eos_token_ids are (2, -1); token ids are whole numbers of 0 or more.",
        ),
        (
            {"bos_token_id": "<s>"},
            "bos_token_id is '<s>' and eos_token_ids are (); token ids are whole numbers of 0 or more.",
        ),
    ],
)
def test_a_field_outside_its_range_is_an_error_that_names_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **changes)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "dynamic"}, "rope_type is 'dynamic'; supported: default, linear, llama3, yarn."),
        ({"rope_type": "linear", "factor": 0.5}, "The rope factor is 0.5; it must be 1.0 or more."),
        ({"rope_type": "linear", "factor": math.nan}, "The rope factor is nan; it must be 1.0 or more."),
        ({"rope_type": "llama3"}, "rope_type 'llama3' needs original_max_position_embeddings."),
        ({"rope_type": "yarn"}, "rope_type 'yarn' needs original_max_position_embeddings."),
        (
            {"low_freq_factor": 4.0},
            "low_freq_factor is 4.0 and high_freq_factor is 4.0; both must be above 0, and the first below the second.",
        ),
        (
            {"beta_slow": 0.0},
            "beta_slow is 0.0 and beta_fast is 32.0; both must be above 0, and the first below the second.",
        ),
        ({"attention_factor": 0.0}, "attention_factor is 0.0; it must be above 0."),
    ],
)
def test_a_rope_scaling_outside_its_range_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RopeScaling(**fields)
    assert str(caught.value) == message


def test_an_odd_head_dim_is_fine_where_nothing_rotates() -> None:
    assert replace(CONFIG, head_dim=7, position="learned").head_dim == 7


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_a_config_is_what_it_was_after_a_way_through_json(changes: dict[str, Any]) -> None:
    config = replace(CONFIG, **changes)

    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_fields_with_a_default_may_be_absent() -> None:
    values = {name: value for name, value in CONFIG.to_dict().items() if value != LARGE.get(name)}
    for name in LARGE:
        values.pop(name, None)

    assert ModelConfig.from_dict(values) == CONFIG


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_sise": 16}, "hidden_sise"),
        ({"rope_scaling": {"faktor": 2.0}}, "faktor"),
        ({"rope_scaling": [1]}, "RopeScaling"),
        ({"eos_token_ids": 2}, "int"),
        ({"norm_eps": "small"}, "str"),
    ],
)
def test_an_unknown_or_mistyped_field_is_an_error(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(
        ConfigError, match=r"The 'edgelm' section of config\.json does not fit this version: "
    ) as caught:
        ModelConfig.from_dict(CONFIG.to_dict() | changes)
    assert named in str(caught.value)


def test_a_missing_field_is_an_error_that_names_it() -> None:
    values = CONFIG.to_dict()
    del values["head_dim"]

    with pytest.raises(ConfigError, match=r"does not fit this version: .*'head_dim'"):
        ModelConfig.from_dict(values)


def test_a_config_loads_from_its_section_beside_other_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", SECTION: CONFIG.to_dict()}))

    assert ModelConfig.load(tmp_path) == CONFIG
    assert ModelConfig.load(str(tmp_path)) == CONFIG


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000], ids=["cut off", "not UTF-8", "too deep"])
def test_a_config_file_that_is_not_json_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: "):
        ModelConfig.load(tmp_path)


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: .*No such file"):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "llama"}', "[]", '{"edgelm": 3}'])
def test_a_config_that_edgelm_did_not_write_says_how_to_import_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=r"has no 'edgelm' section.*edgelm import .* -o checkpoint/"):
        ModelConfig.load(tmp_path)


def test_tensor_shapes_lists_a_llama_by_its_names() -> None:
    config = replace(CONFIG, num_hidden_layers=1)

    assert config.tensor_shapes() == {
        "model.embed_tokens.weight": (100, 16),
        "model.layers.0.input_layernorm.weight": (16,),
        "model.layers.0.self_attn.q_proj.weight": (32, 16),
        "model.layers.0.self_attn.k_proj.weight": (16, 16),
        "model.layers.0.self_attn.v_proj.weight": (16, 16),
        "model.layers.0.self_attn.o_proj.weight": (16, 32),
        "model.layers.0.post_attention_layernorm.weight": (16,),
        "model.layers.0.mlp.gate_proj.weight": (32, 16),
        "model.layers.0.mlp.up_proj.weight": (32, 16),
        "model.layers.0.mlp.down_proj.weight": (16, 32),
        "model.norm.weight": (16,),
        "lm_head.weight": (100, 16),
    }


def test_each_feature_adds_or_removes_its_tensors() -> None:
    def names(**changes: Any) -> set[str]:
        return set(replace(CONFIG, num_hidden_layers=1, **changes).tensor_shapes())

    plain, layer = names(), "model.layers.0"
    assert plain - names(tie_word_embeddings=True) == {"lm_head.weight"}
    assert plain - names(mlp_gated=False) == {f"{layer}.mlp.gate_proj.weight"}
    assert names(position="learned") - plain == {"model.embed_positions.weight"}
    assert names(position="sinusoidal") == names(position="none") == plain
    assert names(attention_bias=True) - plain == {f"{layer}.self_attn.{name}_proj.bias" for name in "qkv"}
    assert names(attention_output_bias=True) - plain == {f"{layer}.self_attn.o_proj.bias"}
    assert names(mlp_bias=True) - plain == {f"{layer}.mlp.{name}_proj.bias" for name in ("gate", "up", "down")}
    assert names(qk_norm=True) - plain == {f"{layer}.self_attn.{name}_norm.weight" for name in "qk"}
    assert names(qk_norm=True, norm="layer") - names(norm="layer") == {
        f"{layer}.self_attn.{name}_norm.{kind}" for name in "qk" for kind in ("weight", "bias")
    }
    assert names(norm="layer") - plain == {
        f"{layer}.input_layernorm.bias",
        f"{layer}.post_attention_layernorm.bias",
        "model.norm.bias",
    }
