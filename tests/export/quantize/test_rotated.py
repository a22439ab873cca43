"""What a checkpoint with a turned residual stream shows; that its logits stay is in test_calibration.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.errors import ExportError
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

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
