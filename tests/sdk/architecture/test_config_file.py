"""ModelConfig on disk: a section of config.json, and its way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_configs import CONFIG, EXPERTS, LARGE, LONGROPE

from edgelm.architecture.multipliers import Multipliers
from edgelm.config import SECTION, ModelConfig
from edgelm.errors import ConfigError


@pytest.mark.parametrize(
    "changes", [{}, LARGE, {"rope_scaling": LONGROPE}, EXPERTS, {"multipliers": Multipliers(ssm_x=2.0)}]
)
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
        ({"multipliers": {"ssm_y": 2.0}}, "ssm_y"),
    ],
)
def test_an_unknown_field_is_an_error(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(
        ConfigError, match=r"The 'edgelm' section of config\.json does not fit this version: "
    ) as caught:
        ModelConfig.from_dict(CONFIG.to_dict() | changes)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_ids": 2}, "eos_token_ids is 2; it must be a list."),
        ({"layer_types": 2}, "layer_types is 2; it must be a list."),
        ({"norm_eps": "small"}, "norm_eps is 'small'; it must be a number."),
        ({"rope_theta": True}, "rope_theta is True; it must be a number."),
        ({"final_logit_softcapping": [30.0]}, "final_logit_softcapping is [30.0]; it must be a number."),
        ({"model_type": 3}, "model_type is 3; it must be a text."),
        ({"qk_norm": 1}, "qk_norm is 1; it must be true or false."),
        ({"rope_scaling": [1]}, "rope_scaling is [1]; it must be a dictionary."),
        ({"multipliers": None}, "multipliers is None; it must be a dictionary."),
        ({"encoder": 2}, "encoder is 2; it must be a dictionary."),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_its_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(CONFIG.to_dict() | changes)
    assert str(caught.value) == message


def test_a_missing_field_is_an_error_that_names_it() -> None:
    values = CONFIG.to_dict()
    del values["head_dim"]

    with pytest.raises(ConfigError, match=r"does not fit this version: .*'head_dim'"):
        ModelConfig.from_dict(values)


def test_a_config_loads_from_its_section_beside_other_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", SECTION: CONFIG.to_dict()}))

    assert ModelConfig.load(tmp_path) == CONFIG
    assert ModelConfig.load(str(tmp_path)) == CONFIG


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=["cut off", "no object", "not UTF-8", "too deep"]
)
def test_a_config_file_that_is_not_json_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: "):
        ModelConfig.load(tmp_path)


def test_a_missing_config_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*config\.json: .*No such file"):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "llama"}', '{"edgelm": 3}'])
def test_a_config_that_edgelm_did_not_write_says_how_to_import_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(ConfigError, match=r"has no 'edgelm' section.*edgelm import .* -o checkpoint/"):
        ModelConfig.load(tmp_path)
