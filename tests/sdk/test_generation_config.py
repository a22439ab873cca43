"""GenerationConfig: every field checked once, and a model author's defaults read from generation_config.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgelm
from edgelm.decoding.sampling import FILTERS, PROCESSORS
from edgelm.errors import ConfigError
from edgelm.generation_config import OF_CHANCE, RANGES, GenerationConfig
from edgelm.server.sampling_fields import SAMPLING
from edgelm.testing import tiny_model_path


def test_the_defaults_are_greedy_without_any_processor() -> None:
    config = GenerationConfig()

    assert config.temperature == 0.0
    assert (config.top_k, config.top_p, config.min_p, config.typical_p) == (0, 1.0, 0.0, 1.0)
    assert (config.repetition_penalty, config.presence_penalty, config.frequency_penalty) == (1.0, 0.0, 0.0)
    assert config.max_new_tokens is config.seed is config.logprobs is None


def test_every_number_has_a_range_and_every_row_of_the_sampler_a_field_that_requests_have() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
    numbers = {name for name, default in defaults.items() if type(default) in (int, float)}
    assert numbers | {"seed", "logprobs", "max_new_tokens", "context_shift"} == set(RANGES)
    assert set(PROCESSORS) | set(FILTERS) <= set(defaults)
    assert set(PROCESSORS) | set(FILTERS) <= set(SAMPLING) - {"min_tokens"} | {"min_new_tokens"}  # vLLM's name of it


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("max_new_tokens", 1, 2**31),
        ("min_new_tokens", 0, 2**31),
        ("context_shift", 0, 2**31),
        ("temperature", 0.0, 100.0),
        ("top_k", 0, 2**31),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("typical_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 100.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("no_repeat_ngram_size", 0, 100),
        ("encoder_no_repeat_ngram_size", 0, 100),
        ("seed", 0, 2**63),
        ("logprobs", 0, 100),
        ("num_beams", 1, 64),
        ("length_penalty", -10.0, 10.0),
        ("dry_multiplier", 0.0, 100.0),
        ("dry_base", 1.0, 4.0),
        ("dry_allowed_length", 1, 1000),
        ("xtc_probability", 0.0, 1.0),
        ("xtc_threshold", 0.001, 1.0),
        ("top_n_sigma", 0.0, 100.0),
        ("mirostat_tau", 0.0, 100.0),
        ("mirostat_eta", 0.0, 1.0),
    ],
)
def test_a_number_outside_its_range_is_an_error(name: str, low: float, high: float) -> None:
    for value in (low - 1, high * 2 + 1, 10**400, math.nan, math.inf, True, "1", [1]):
        with pytest.raises(ConfigError) as caught:
            GenerationConfig(**{name: value})
        assert str(caught.value) == f"{name} is {value!r}; it must be a number from {low} to {high}."
    others = {"temperature": 1.0} if name in OF_CHANCE else {}
    assert getattr(GenerationConfig(**{name: high, **others}), name) == high


@pytest.mark.parametrize("name", ["ignore_eos", "token_healing", "exact_speculation"])
def test_what_is_neither_true_nor_false_is_an_error(name: str) -> None:
    for value in ("no", "", None, 2, []):
        with pytest.raises(ConfigError) as caught:
            GenerationConfig(**{name: value})
        assert str(caught.value) == f"{name} is {value!r}; it must be True or False."
    assert getattr(GenerationConfig(**{name: np.True_}), name)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("prefill_graph", lambda value: edgelm.SessionOptions(prefill_graph=value)),
        ("strict", lambda value: edgelm.Constraint.json_schema({}, strict=value)),
        ("answers", lambda value: edgelm.PrefixCache(edgelm.load(tiny_model_path()).config, answers=value)),
    ],
)
def test_a_no_is_not_taken_for_true_elsewhere_either(name: str, takes: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'no'; it must be True or False"):
        takes("no")


@pytest.mark.parametrize("read", [GenerationConfig.load, edgelm.ModelConfig.load, edgelm.Tokenizer.load])
def test_a_name_that_no_folder_can_have_is_an_error_of_edgelm(read, tmp_path):
    with pytest.raises(edgelm.EdgeLMError, match=r"Cannot read .*\.json: .*File name too long"):
        read(tmp_path / ("x" * 300))


@pytest.mark.parametrize("read", [GenerationConfig.load, edgelm.ModelConfig.load, edgelm.Tokenizer.load])
def test_a_folder_that_is_no_path_is_an_error(read: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match="None is no path"):
        read(None)


def test_a_repetition_penalty_that_makes_logits_infinite_is_an_error() -> None:
    assert GenerationConfig(repetition_penalty=0.01).repetition_penalty == 0.01
    for value in (0.0, 1e-40, 0.009):
        with pytest.raises(ConfigError, match=rf"repetition_penalty is {value}; it must be a number from 0\.01 to 100"):
            GenerationConfig(repetition_penalty=value)


@pytest.mark.parametrize(
    "name",
    [
        "max_new_tokens",
        "min_new_tokens",
        "context_shift",
        "top_k",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "seed",
        "logprobs",
        "dry_allowed_length",
        "num_beams",
    ],
)
def test_a_count_that_is_not_whole_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 1\.5; it must be a whole number\."):
        GenerationConfig(**{name: 1.5})


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "presence_penalty"])
def test_none_is_no_number_where_there_is_a_neutral_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is None"):
        GenerationConfig(**{name: None})


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_zero_is_an_error_where_nothing_would_be_left(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} is 0\.0; it must be above 0\."):
        GenerationConfig(**{name: 0.0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ("",)}, "stop is ('',); each stop must be a text of at least one character."),
        ({"stop": (3,)}, "stop is (3,); each stop must be a text of at least one character."),
        ({"stop": None}, "stop is None; it must be a text or a list of texts, [] for none."),
        ({"stop": {}}, "stop is {}; it must be a text or a list of texts, [] for none."),
        ({"dry_breakers": {}}, "dry_breakers is {}; it must be a text or a list of texts, [] for none."),
        ({"stop_token_ids": 5}, "stop_token_ids is 5; it must be a list, [] for none."),
        ({"stop_token_ids": b"x"}, "stop_token_ids is b'x'; it must be a list, [] for none."),
        ({"stop_token_ids": (-1,)}, "stop_token_ids is (-1,); token ids are whole numbers of 0 or more."),
        ({"stop_token_ids": ("a",)}, "stop_token_ids is ('a',); token ids are whole numbers of 0 or more."),
        ({"logit_bias": [1]}, "logit_bias is [1]; it must map token ids to numbers."),
        (
            {"logit_bias": {5: math.inf}},
            "logit_bias has 5: inf; it must map token ids to numbers from -1e+09 to 1e+09.",
        ),
        (
            {"logit_bias": {5: 10**400}},
            f"logit_bias has 5: {10**400}; it must map token ids to numbers from -1e+09 to 1e+09.",
        ),
        (
            {"logit_bias": {"5": 1.0}},
            "logit_bias has '5': 1.0; it must map token ids to numbers from -1e+09 to 1e+09.",
        ),
        ({"logit_bias": {5: "1"}}, "logit_bias has 5: '1'; it must map token ids to numbers from -1e+09 to 1e+09."),
    ],
)
def test_lists_and_biases_are_checked_too(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**fields)
    assert str(caught.value) == message


def test_one_stop_text_and_a_list_of_them_become_a_tuple() -> None:
    assert GenerationConfig(stop="END").stop == ("END",)
    assert GenerationConfig(stop=["a", "b"], stop_token_ids=[0, 2]).stop == ("a", "b")


def test_what_becomes_of_a_mapping_that_was_given_changes_no_settings() -> None:
    biases, options = {7: 1.0}, {"device_id": "1"}
    config, session_options = GenerationConfig(logit_bias=biases), edgelm.SessionOptions(provider_options=options)
    biases[7] = float("nan")
    options.clear()
    assert config.logit_bias == {7: 1.0}
    assert session_options.provider_options == {"device_id": "1"}


def test_settings_are_keys_of_a_dictionary() -> None:
    answers = {GenerationConfig(logit_bias={7: 1.0}): "a", edgelm.SessionOptions(): "b", edgelm.EngineOptions(): "c"}
    assert answers[GenerationConfig(logit_bias={7: 1.0})] == "a"
    assert GenerationConfig(logit_bias={7: 2.0}) not in answers


def test_numbers_of_numpy_are_numbers() -> None:
    config = GenerationConfig(seed=np.int64(3), temperature=np.float32(0.5), logit_bias={np.int64(7): np.float32(-1.0)})

    assert config.logit_bias == {7: -1.0}


def test_replace_changes_one_field_and_checks_it() -> None:
    config = GenerationConfig(seed=1).replace(temperature=0.5)

    assert (config.seed, config.temperature) == (1, 0.5)
    with pytest.raises(ConfigError, match="temperature is -1"):
        config.replace(temperature=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("name", OF_CHANCE)
def test_what_needs_chance_is_an_error_where_no_token_is_drawn(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**{name: 1.0})
    assert str(caught.value) == (
        f"{name} is 1.0, and temperature is 0, at which the likeliest token is chosen, and none drawn. "
        f"Set a temperature above 0, or leave {name} out."
    )
    with pytest.raises(ConfigError, match=f"num_beams is 2, and {name} is 1.0; beam search chooses every token itself"):
        GenerationConfig(**{name: 1.0, "num_beams": 2})
    author = GenerationConfig(**{name: 1.0, "temperature": 0.7})
    assert author.replace(temperature=0) == GenerationConfig(temperature=0)
    excluding = GenerationConfig(xtc_probability=1.0, sampler=lambda logits_V, random: 0)  # at any temperature
    assert excluding.replace(temperature=0) == excluding
    with pytest.raises(ConfigError, match=f"{name} is 0.5, and temperature is 0"):
        author.replace(**{"temperature": 0, name: 0.5})


def test_mirostat_chooses_no_token_beside_a_sampler() -> None:
    with pytest.raises(ConfigError, match="mirostat_tau is 5, and there is a sampler, which chooses in its place"):
        GenerationConfig(mirostat_tau=5, temperature=1.0, sampler=lambda logits_V, random: 0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, GenerationConfig()),
        ({"do_sample": False, "temperature": 0.6, "xtc_probability": 0.5}, GenerationConfig()),
        ({"bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4"}, GenerationConfig()),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, GenerationConfig(top_p=0.9)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50},
            GenerationConfig(temperature=0.6, top_p=0.9, top_k=50),
        ),
        ({"do_sample": True}, GenerationConfig(temperature=1.0)),
        ({"temperature": 0.6}, GenerationConfig(temperature=0.6)),
        ({"top_k": None, "repetition_penalty": 1.1, "max_new_tokens": 20}, GenerationConfig(repetition_penalty=1.1)),
        ({"stop_strings": ["User:", "\n\n"]}, GenerationConfig(stop=["User:", "\n\n"])),
        ({"stop_strings": "User:", "stop": ["Me:"]}, GenerationConfig(stop=["Me:"])),
        ({"stop_strings": None}, GenerationConfig()),
        ({"suppress_tokens": [3, 5]}, GenerationConfig(logit_bias={3: -1e9, 5: -1e9})),
        ({"suppress_tokens": None}, GenerationConfig()),
        ({"num_beams": 4, "length_penalty": 2.0, "context_shift": 4}, GenerationConfig()),
        ({"adapter": "mine", "speculation": "prompt_lookup", "exact_speculation": True}, GenerationConfig()),
        (
            {"constraint": {}, "processors": ["x"], "sampler": "x", "visible_control_tokens": ["<s>"]},
            GenerationConfig(),
        ),
        ({"begins_text": True}, GenerationConfig()),
        (
            {"no_repeat_ngram_size": 3, "min_new_tokens": 9, "min_length": 56},
            GenerationConfig(no_repeat_ngram_size=3, min_new_tokens=9),
        ),
    ],
)
def test_the_authors_defaults_are_read_from_the_folder(
    values: dict[str, Any], expected: GenerationConfig, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))

    assert GenerationConfig.load(tmp_path) == expected


@pytest.mark.parametrize(
    ("values", "least"),
    [
        ({"min_length": 56}, 54),
        ({"min_length": 1}, 0),
        ({"min_length": 56, "min_new_tokens": 9}, 8),
        ({"min_length": 56, "min_new_tokens": 0}, 0),
        ({"min_length": None, "min_new_tokens": None}, 0),
    ],
)
def test_behind_what_a_decoder_begins_with_the_least_length_is_that_of_the_answer(
    values: dict[str, Any], least: int, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert GenerationConfig.load(tmp_path, decoder_prompt=2) == GenerationConfig(min_new_tokens=least)


def test_a_least_length_that_is_no_whole_number_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"min_length": "long"}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: min_length is 'long'; it must be a whole number"):
        GenerationConfig.load(tmp_path, decoder_prompt=1)


def test_a_folder_without_the_file_has_the_neutral_defaults(tmp_path: Path) -> None:
    assert GenerationConfig.load(tmp_path) == GenerationConfig()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["cut off", "a list", "too deep"])
def test_a_file_that_is_not_a_json_object_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)

    with pytest.raises(ConfigError, match=r"Cannot read .*generation_config\.json: "):
        GenerationConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"top_p": 2}', "top_p is 2; it must be a number"),
        ('{"suppress_tokens": [1, -1]}', r"suppress_tokens is \[1, -1\]; it must be a list of token ids"),
    ],
)
def test_a_value_outside_its_range_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)

    with pytest.raises(ConfigError, match=rf"generation_config\.json: {message}"):
        GenerationConfig.load(tmp_path)
