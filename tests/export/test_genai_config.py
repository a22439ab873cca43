"""genai_config.json of models unlike the tiny one; that onnxruntime-genai opens it is in test_genai.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from make_tiny_model import CONFIG, make_checkpoint

from edgelm.package.package_check import _GENAI_KEYS
from edgelm_export.exporter import export_package
from edgelm_export.genai_config import genai_config
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


def test_sizes_are_those_of_the_config_and_heads_may_be_wider_than_their_share() -> None:
    config = replace(CONFIG, num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=300)
    written = genai_config(config, shares_cache=False)
    decoder, sizes = written["model"]["decoder"], ("hidden_size", "num_hidden_layers")
    assert {key: decoder[key] for key in sizes} == {key: getattr(config, key) for key in sizes}
    assert (decoder["num_attention_heads"], decoder["num_key_value_heads"], decoder["head_size"]) == (4, 2, 32)
    assert written["model"]["context_length"] == written["search"]["max_length"] == 300
    assert written["search"] == {"do_sample": False, "max_length": 300, "past_present_share_buffer": False}


def test_where_all_layers_have_the_heads_of_those_that_see_all_tokens_these_count() -> None:
    own = {"global_head_dim": 32, "num_global_key_value_heads": 1, "attention_multiplier": 0.25}
    config = replace(CONFIG, rope_local_theta=1e4, **own)
    decoder = genai_config(config, shares_cache=False)["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (32, 1)


def test_where_layers_have_other_numbers_of_heads_there_is_none(tmp_path: Path) -> None:
    """Also where they keep keys and values of the same shapes."""
    windows = {"layer_types": ("full_attention", "sliding_attention"), "sliding_window": 8}
    config = replace(CONFIG, num_global_attention_heads=1, **windows)
    export_package(
        HuggingFaceCheckpoint(make_checkpoint(tmp_path / "ckpt", config)), tmp_path / "pkg", "fp32", name="x"
    )
    assert not (tmp_path / "pkg/genai_config.json").exists()


def test_a_model_may_have_no_begin_token_and_one_end_token_several_or_none() -> None:
    for ends, eos, pad in (((5,), 5, 5), ((7, 5), [7, 5], 7), ((), [], 0)):
        model = genai_config(replace(CONFIG, bos_token_id=None, eos_token_ids=ends), shares_cache=True)["model"]
        assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (0, eos, pad)


def test_a_packages_check_takes_the_keys_that_are_written_and_no_others() -> None:
    def keys(value: object) -> set[str]:
        return set(value).union(*map(keys, value.values())) if isinstance(value, dict) else set()

    assert keys(genai_config(CONFIG, shares_cache=True)) == _GENAI_KEYS
