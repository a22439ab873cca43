"""Models with convolutions: what is folded into their weights, and what their caches hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.architecture.quantization_recipe import PRECISIONS, scheme_for
from edgelm.config import ModelConfig
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.folded import FoldedCheckpoint
from edgelm_export.exporter import export_package
from edgelm_export.kv_cache_scales import measure_scales
from edgelm_export.quantize.channel_scales import ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

CONVOLVING = replace(
    CONFIG, num_hidden_layers=3, layer_types=("conv", "full_attention", "conv"), conv_L_cache=3, conv_bias=True
)
IDS = np.random.default_rng(0).integers(3, 320, 40).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    folder = tmp_path_factory.mktemp("conv") / "checkpoint"
    return HuggingFaceCheckpoint(make_checkpoint(folder, replace(CONVOLVING, residual_multiplier=0.5)))


@pytest.fixture(scope="module")
def package(checkpoint: HuggingFaceCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conv") / "package"
    export_package(checkpoint, folder, "fp32", name="tiny")
    return folder


@pytest.mark.parametrize("way", ["folded", "smooth", "awq", "rotated"])
def test_a_transform_leaves_the_logits_as_they_are(way: str, checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    if way == "folded":
        changed: object = FoldedCheckpoint(checkpoint)
    elif way == "rotated":  # which is for models without the multiplier
        checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", CONVOLVING))
        changed = RotatedCheckpoint(checkpoint)
    else:
        recipe = PRECISIONS["int8"].rules
        scales = choose_scales(checkpoint, way, recipe, [IDS], lambda *_: None)
        assert "model.layers.0.input_layernorm" in scales.divisors
        assert "model.layers.0.conv.in_proj" in scales.multipliers
        changed = ScaledCheckpoint(checkpoint, scales)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [IDS]) for each in (checkpoint, changed))
    # float32 sums in another order; smoothing divides the head's channels besides.
    divisors = getattr(changed, "head_divisors", None)
    assert divisors is None or len(divisors) == CONFIG.hidden_size
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4 * np.abs(expected_TV).max())


def test_what_is_before_a_text_is_nothing_also_where_another_text_was(package: Path) -> None:
    session = DecoderSession(package, ModelConfig.load(package))
    fresh = session.forward(IDS[:1], session.new_cache()).copy()
    cache = session.new_cache()
    session.forward(IDS[5:20], cache)
    for id_ in IDS[20:24]:
        session.forward((id_,), cache)
    for length in (0, 1):
        cache.truncate(0)
        for id_ in IDS[:length]:
            session.forward((id_,), cache)
        step = session.forward((IDS[length],), cache).copy()
        if length == 0:
            np.testing.assert_array_equal(step, fresh)
    alone = session.new_cache()
    session.forward(IDS[:1], alone)
    np.testing.assert_array_equal(step, session.forward(IDS[1:2], alone))


def test_scales_of_an_int8_cache_are_those_of_the_layers_with_attention(package: Path) -> None:
    """A key can turn, whatever stands in the layer before its own."""
    keys_K1H, _ = measure_scales(package, [IDS])
    half = CONFIG.head_dim // 2
    np.testing.assert_array_equal(keys_K1H[..., :half], keys_K1H[..., half:])


def test_a_package_has_nothing_for_onnxruntime_genai(package: Path) -> None:
    assert not (package / "genai_config.json").exists()


def test_in_two_bits_convolutions_have_four() -> None:
    layers = {"num_hidden_layers": 4, "layer_types": ("full_attention", "conv", "conv", "conv")}
    recipe = PRECISIONS["int2"].recipe(replace(CONVOLVING, **layers))
    for module, grid in (("conv.in_proj", "int4-"), ("conv.out_proj", "int4-"), ("mlp.up_proj", "int2-")):
        assert scheme_for(recipe, f"model.layers.2.{module}.weight").startswith(grid)
