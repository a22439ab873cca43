"""What a checkpoint with a turned residual stream shows; that its logits stay is in test_calibration.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from unchecked_export import export_unchecked

import edgelm
from edgelm.architecture.quantization_recipe import Precision, Rule
from edgelm.errors import ConfigError, ExportError
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

Save = Callable[..., Any]


def test_a_turned_weight_is_on_no_grid_and_of_no_type_of_its_source(
    tmp_path: Path, save_llama: Save, write_gguf: Save
) -> None:
    source = GGUFCheckpoint(write_gguf(tmp_path / "tiny.gguf", save_llama(tmp_path / "hf"), "Q4_0"))
    rotated, name = RotatedCheckpoint(source), "model.layers.0.mlp.up_proj.weight"
    assert source.quantized_blocks(name) is not None
    assert rotated.quantized_blocks(name) is None
    assert (source.stored_type(name), rotated.stored_type(name)) == ("Q4_0", "F32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "rms_offset"}, "it has rms_offset norms, placed pre, rope positions"),
        ({"position": "sinusoidal"}, "it has rms norms, placed pre, sinusoidal positions"),
        ({"norm_placement": "shared", "parallel_residual": True}, "it has rms norms, placed shared, rope positions"),
        ({"norm_placement": "both"}, "post_feedforward_layernorm, .*pre_feedforward_layernorm"),
        ({"embedding_norm": True}, "rope positions, model.embed_norm"),
        ({"attention_sinks": True}, "rope positions, self_attn\\."),
    ],
)
def test_each_part_that_a_turn_would_change_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", replace(CONFIG, **changes)))
    with pytest.raises(ExportError, match=rf"cannot be rotated: .*{message}"):
        RotatedCheckpoint(checkpoint)


def test_a_turned_package_embeds_by_its_values_alone(tmp_path: Path) -> None:
    rotated = Precision(rules=(Rule(pattern=".", scheme="fp32"),), transforms=("rotate",))
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_unchecked(checkpoint, tmp_path / "plain", "fp32")
    export_unchecked(checkpoint, tmp_path / "rotated", rotated)
    export_unchecked(PackageCheckpoint(tmp_path / "rotated"), tmp_path / "made of it", "fp32")
    expected = edgelm.load(tmp_path / "plain").embed(["The sea"])
    for name in ("rotated", "made of it"):
        model = edgelm.load(tmp_path / name)
        # Sums in another order, 2e-7 measured. "last" would give two texts a cosine of -0.17 that have -0.28.
        np.testing.assert_allclose(model.embed(["The sea"]), expected, rtol=0, atol=1e-5)
        for pooling in ("mean", "last"):
            with pytest.raises(ConfigError, match=rf"'{pooling}', and {name} has rotated weights, .* Take 'values'"):
                model.embed(["The sea"], pooling=pooling)
