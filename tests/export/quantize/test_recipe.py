from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import make_checkpoint

from edgelm.architecture.quantization_recipe import (
    PRECISIONS,
    Precision,
    Rule,
    precision_named,
    read_recipe,
    scheme_for,
)
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.exporter import export_package
from edgelm_export.quantize.stored import quantize
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

CONFIG = ModelConfig(
    model_type="llama", vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=5,
    num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=8,
)  # fmt: skip
TOML = """
name = "mine"
transforms = ["smooth"]
perplexity_bound = 1.2

[[rules]]
pattern = "embed_tokens|lm_head"
scheme = "int8-block64"

[[rules]]
pattern = '\\.{last}\\.'
scheme = "fp16"

[[rules]]
pattern = "."
scheme = "int4-block32-asymmetric-gptq"
"""


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_has_a_scheme_for_every_tensor(name: str) -> None:
    recipe = PRECISIONS[name].recipe(CONFIG)
    for tensor in CONFIG.tensor_shapes():
        parse_scheme(scheme_for(recipe, tensor))
    assert "{" not in str([rule.pattern for rule in recipe])


def test_an_unknown_precision_names_those_that_there_are() -> None:
    with pytest.raises(
        ExportError, match=r"No precision 'int3'\. There are: fp32, fp16, bf16, int8, int8-wide, int4, int2"
    ):
        precision_named("int3")


def test_a_recipe_file_is_read_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    recipe = read_recipe(tmp_path / "mine.toml")
    assert (recipe.name, recipe.transforms, recipe.perplexity_bound) == ("mine", ("smooth",), 1.2)
    rules = recipe.recipe(CONFIG)
    assert scheme_for(rules, "model.embed_tokens.weight") == "int8-block64"
    assert scheme_for(rules, "model.layers.4.mlp.up_proj.weight") == "fp16"
    assert scheme_for(rules, "model.layers.3.mlp.up_proj.weight") == "int4-block32-asymmetric-gptq"
    assert recipe.rows(CONFIG)[:2] == (
        {"transform": "smooth"},
        {"pattern": "embed_tokens|lm_head", "scheme": "int8-block64"},
    )


def test_a_json_recipe_is_named_for_its_file_and_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "small.JSON").write_text(json.dumps({"rules": [{"pattern": ".", "scheme": "int8-block32"}]}))
    recipe = read_recipe(tmp_path / "small.JSON")
    assert (recipe.name, recipe.perplexity_bound, recipe.needs_calibration) == ("small", 1.5, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rules = 3", r"mine\.toml: rules is 3; it must be a list\."),
        ('transforms = "awq"\nrules = [0]', r"transforms is 'awq'; it must be a list\."),
        ("= nonsense", r"mine\.toml cannot be read as a recipe"),
        ("name = \"x\"", r"A recipe has a list `rules`, each with a `pattern` and a `scheme`\."),
        ("bits = 4\n" + TOML, r"no 'bits'; it has name, rules, transforms, kv_cache, operators, prefill_graph, "),
        ("[[rules]]\npattern = \".\"", r"A rule has a `pattern` and a `scheme`, nothing else: {'pattern': '.'}"),
        ("[[rules]]\npattern = 1\nscheme = \"fp32\"", r"A rule's `pattern` and `scheme` are texts"),
        ("[[rules]]\npattern = \"(\"\nscheme = \"fp32\"", r"The pattern '\(' is no regular expression"),
        (TOML.replace("smooth", "polish"), r"No transform is called 'polish'\. There are: rotate, smooth, awq\."),
        (TOML.replace("1.2", "0.9"), r"perplexity_bound is 0\.9; it must be 1 or more\."),
        (TOML.replace("1.2", "true"), r"perplexity_bound is True; it must be a number\."),
        (TOML.replace("mine", ""), r"name is ''; a recipe's name has a character or more"),
    ],
)  # fmt: skip
def test_a_recipe_file_that_is_none_is_refused_with_the_reason(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(ExportError, match=message):
        read_recipe(tmp_path / "mine.toml")


def test_a_tensor_without_a_rule_is_an_error_that_says_how_to_end_a_recipe() -> None:
    with pytest.raises(ExportError, match=r"No rule of the recipe matches lm_head\.weight\. End it with a rule"):
        scheme_for((Rule(pattern="mlp", scheme="fp32"),), "lm_head.weight")


@pytest.mark.parametrize(
    ("pattern", "scheme", "calibrated"),
    [
        (".", "int8-block64", "int8-block64-gptq"),
        (".", "int4-block32-asymmetric", "int4-block32-asymmetric-gptq"),
        (".", "int4-block64", "int4-block64-asymmetric-gptq"),
        ("embed_tokens|lm_head", "int4-block64", "int4-block64-gptq"),  # its rows are gathered from a symmetric grid
        (r"^model\.embed_tokens\.weight$", "int6-block32-rounded", "int6-block32-gptq"),
        (".", "fp16", "fp16"),
    ],
)
def test_calibration_means_gptq_for_integers_and_zero_points_where_they_are_few(
    pattern: str, scheme: str, calibrated: str
) -> None:
    precision = Precision(rules=(Rule(pattern=pattern, scheme=scheme),)).calibrated()
    assert [rule.scheme for rule in precision.rules] == [calibrated]
    assert precision.needs_calibration == (scheme != "fp16")


def test_what_tames_activations_is_tried_in_order_and_never_on_floats() -> None:
    plain = Precision(rules=(Rule(pattern=".", scheme="int8-block64"),))
    assert [precision.transforms for precision in plain.tamed()] == [("smooth",), ("rotate", "smooth")]
    assert [precision.transforms for precision in PRECISIONS["int8"].tamed()] == [("rotate", "smooth"), ()]
    wide = PRECISIONS["int8-wide"]
    assert wide.tamed() == [PRECISIONS["int8"], *PRECISIONS["int8"].tamed()]
    assert PRECISIONS["fp16"].tamed() == []


@pytest.mark.parametrize(
    ("changes", "smoothed"),
    [
        ({}, True),
        ({"norm": "rms_offset", "norm_placement": "both"}, True),
        ({"norm": "layer"}, True),
        ({"norm_placement": "post"}, False),
        ({"norm": "rms_plain"}, False),
        ({"mlp_gated": False}, False),
        ({"num_experts": 2, "num_experts_per_tok": 1}, False),
        ({"position": "relative"}, False),
    ],
)
def test_a_preset_smooths_where_every_projection_has_a_place_for_it(changes: dict[str, Any], smoothed: bool) -> None:
    config = dataclasses.replace(CONFIG, **changes)
    for name in ("int8", "int8-wide"):
        fitting = PRECISIONS[name].for_model(config)
        assert fitting.needs_calibration == smoothed
        assert fitting.rules == (PRECISIONS[name].rules if smoothed else PRECISIONS["int8"].rules)
        preset = PRECISIONS[name]
        cached, gptq, standard = (
            each.for_model(config)
            for each in (preset.with_int8_cache(), preset.calibrated(), preset.with_standard_operators())
        )
        assert (cached.kv_cache, standard.operators) == ("int8", "standard")
        assert gptq.calibrates


def test_a_note_says_which_rules_of_a_recipe_have_no_effect(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    patterns = (
        "embed_tokens|lm_head", "lm_heads", r"layers\.{last}\.", "q_proj", "norm", r"layers\.\d+\.", "up_proj", "."
    )  # fmt: skip
    rules = tuple(Rule(pattern=pattern, scheme="fp32") for pattern in patterns)
    manifest = export_package(checkpoint, tmp_path / "package", Precision(rules=rules))
    assert manifest.notes == (
        "The rule for 'lm_heads' has no effect: no tensor of this model matches it.",
        "The rule for 'norm' has no effect: what it matches is float32 in any package.",
        "The rule for 'up_proj' has no effect: rules before it take all tensors that match it.",
    )


@pytest.mark.parametrize("scheme", ["int4-block32-asymmetric", "int2-block64"])
def test_an_embedding_on_a_grid_that_cannot_be_gathered_from_is_refused(tmp_path: Path, scheme: str) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    with pytest.raises(ExportError, match=rf"The embedding cannot be {scheme}: .* a rule of its own"):
        quantize(checkpoint, "model.embed_tokens.weight", scheme)


def test_weights_beyond_the_range_of_fp16_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    tensor = checkpoint.tensor
    monkeypatch.setattr(checkpoint, "tensor", lambda name: tensor(name) * np.float32(1e6))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ExportError, match=r"up_proj\.weight has weights beyond fp16's 65504"):
        quantize(checkpoint, name, "fp16")
    assert np.isfinite(quantize(checkpoint, name, "bf16").astype(np.float32)).all()
