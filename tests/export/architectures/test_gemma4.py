"""Gemma 4, and what its layers have of their own: heads, keys, features beside the residual stream, and experts."""

from __future__ import annotations

import dataclasses
import json
import re
import tracemalloc
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from config_values import SIZES
from family_models import GEMMA4, GEMMA4_EXPERTS, MODELS
from make_tiny_model import make_checkpoint
from mlx_folder import pack_folder
from model_features import FEATURES, config_with
from package_logits import distance, distance_to_source, logits_of
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, PreTrainedModel
from unchecked_export import export_unchecked

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ExportError, PackageError
from edgelm.runtime.session import DecoderSession
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gemma4 import GEMMA4 as ROW
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks
from edgelm_export.checkpoints.tensor_map import PER_LAYER_EMBEDDING
from edgelm_export.exporter import export_package
from edgelm_export.quantize import portions
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.channel_scales import ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.sources import open_checkpoint

SaveModel = Callable[..., PreTrainedModel]

IDS = np.random.default_rng(0).integers(3, 320, 60).tolist()
KEYS_AS_VALUES = next(
    changes for name, (_, changes) in MODELS.items() if name.startswith("gemma4_text, keys as values")
)
VALUES = SIZES | GEMMA4 | {"model_type": "gemma4_text", "hidden_size": 64}


# Two layers: of their table, each token's row is a block of 64.
TABLE = GEMMA4 | {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_kv_shared_layers": 0,
}
KINDS = {"shared keys, features": GEMMA4, "keys as values": KEYS_AS_VALUES, "experts": GEMMA4_EXPERTS}


@pytest.fixture(params=["shared keys, features", "keys as values"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, save_model: SaveModel) -> HuggingFaceCheckpoint:
    save_model("gemma4_text", tmp_path / "hf", **KINDS[request.param])
    return HuggingFaceCheckpoint(tmp_path / "hf")


@pytest.mark.parametrize("way", ["smooth", "awq"])
def test_a_transform_leaves_the_logits_as_they_are(way: str, checkpoint: HuggingFaceCheckpoint) -> None:
    scales = choose_scales(checkpoint, way, PRECISIONS["int8"].rules, [IDS, IDS[:20]], lambda *_: None)
    assert "model.layers.0.mlp.up_proj" in scales.divisors
    assert not any(name.endswith("v_proj") for name in scales.divisors)
    changed = ScaledCheckpoint(checkpoint, scales)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [IDS]) for each in (checkpoint, changed))
    # Float32 sums in another order.
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4 * np.abs(expected_TV).max())


def test_a_rotation_is_refused(checkpoint: HuggingFaceCheckpoint) -> None:
    with pytest.raises(ExportError, match="A gemma4_text model cannot be rotated"):
        RotatedCheckpoint(checkpoint)


# Relative to the logits of random weights. Seen: 0.049, 0.22 and 0.0017.
@pytest.mark.parametrize("checkpoint", KINDS, indirect=True)
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.1), ("int4, calibrated", 0.4), ("fp16", 0.005)])
def test_a_quantized_package_stays_near_its_source(
    precision: str, bound: float, checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    path = tmp_path / "hf/model.safetensors"
    # Scores of heads of such a norm are as large as their size: with its square root, each token looks at one alone.
    save_file({name: x * (0.2 if "q_norm" in name else 1) for name, x in load_file(path).items()}, path)
    chosen, options = PRECISIONS[precision.split(",")[0]], None
    if "calibrated" in precision:
        chosen, options = chosen.calibrated(), CalibrationOptions(max_tokens=128)
    export_unchecked(checkpoint, tmp_path / "package", chosen, calibration=options)
    assert distance_to_source(tmp_path / "package", checkpoint, IDS) < bound
    # What layers keep differs, of which onnxruntime-genai has no description.
    assert not (tmp_path / "package/genai_config.json").exists()


@pytest.mark.parametrize(("quantization", "bound"), [("F32", 1e-5), ("Q8_0", 0.06), ("Q4_0", 0.06), ("Q4_1", 0.06)])
def test_the_factors_of_experts_go_into_the_grid_that_a_file_has(
    quantization: str, bound: float, tmp_path: Path, save_model: SaveModel, write_gguf: Callable[..., Path]
) -> None:
    # All are chosen, since where two are nearly alike, rounded activations choose another one.
    model = save_model("gemma4_text", tmp_path / "hf", **GEMMA4_EXPERTS | {"top_k_experts": 6})
    for name, parameter in model.named_parameters():
        if name.endswith("per_expert_scale"):
            parameter.data = torch.linspace(-2, 2, len(parameter))
        if "q_norm" in name:  # as above
            parameter.data *= 0.2
    path = write_gguf(tmp_path / "tiny.gguf", model, quantization, architecture="gemma4")
    with GGUFCheckpoint(path) as checkpoint:
        (expected_TV,) = reference_logits(checkpoint, [IDS])
        export_unchecked(checkpoint, tmp_path / "package", "keep")
    off = distance(logits_of(tmp_path / "package", IDS), expected_TV)
    # The operator rounds activations to 8 bits in its products. Measured: 0.028, and 7e-7 in F32.
    assert off < bound


def test_features_of_layers_are_looked_up_in_a_table_that_stays_packed(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("gemma4_text", tmp_path / "hf", **TABLE)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "int8")
    graph = onnx.load(tmp_path / "package/model.onnx", load_external_data=False).graph
    table = "model.embed_tokens_per_layer.weight"
    assert [node.op_type for node in graph.node if table in node.input] == ["GatherBlockQuantized"]
    (stored,) = (tensor for tensor in graph.initializer if tensor.name == table)
    assert (stored.data_type, list(stored.dims)) == (onnx.TensorProto.UINT8, [320, 1, 64])


def test_a_table_with_zero_points_in_its_file_is_kept_in_8_bits(
    tmp_path: Path, save_model: SaveModel, write_gguf: Callable[..., Path]
) -> None:
    model = save_model("gemma4_text", tmp_path / "hf", **TABLE)
    path = write_gguf(tmp_path / "tiny.gguf", model, "Q4_1", architecture="gemma4")
    with GGUFCheckpoint(path) as checkpoint:
        export_unchecked(checkpoint, tmp_path / "package", "keep")
    graph = onnx.load(tmp_path / "package/model.onnx", load_external_data=False).graph
    lookups = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    assert [next(each.i for each in node.attribute if each.name == "bits") for node in lookups] == [8, 8]


def in_one_scheme(scheme: str) -> Precision:
    return Precision(name=scheme, rules=(Rule(pattern=".", scheme=scheme),))


@pytest.mark.parametrize(
    ("source", "precision"),
    [
        *(("folder", precision) for precision in ("int8", "fp16", "keep")),
        *((source, "keep") for source in ("Q4_1", "Q8_0", "Q5_0", "mlx", "fp32 package", "int6 package")),
        ("Q4_1", "int8"),
    ],
)
def test_a_table_of_features_is_never_read_as_a_whole(
    source: str, precision: str, tmp_path: Path, save_model: SaveModel, write_gguf: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = save_model("gemma4_text", tmp_path / "hf", **TABLE)
    path = tmp_path / "hf"
    if source.startswith("Q"):
        path = write_gguf(tmp_path / "tiny.gguf", model, source, architecture="gemma4")
    if source == "mlx":
        pack_folder(path, {"bits": 4, "group_size": 32})
    if source.endswith("package"):
        path = tmp_path / "package"
        stored = "fp32" if source == "fp32 package" else in_one_scheme("int6-block32-rounded")
        export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), path, stored)
    with open_checkpoint(path) as checkpoint:
        whole, read, blocks = checkpoint.tensor(PER_LAYER_EMBEDDING), checkpoint.tensor, checkpoint.quantized_blocks
        chosen = dataclasses.replace(PRECISIONS[precision], perplexity_bound=10.0)
        stored = []
        # At once, and in portions of 50 rows; the check behind these reads rows of it too.
        for weights, export in ((whole.size, export_unchecked), (50 * whole.shape[1], export_package)):
            monkeypatch.setattr(portions, "_WEIGHTS_AT_ONCE", weights)
            export(checkpoint, tmp_path / f"{weights}", chosen)
            stored.append((tmp_path / f"{weights}/model.onnx.data").read_bytes())

            def refused(name: str) -> np.ndarray:
                assert name != PER_LAYER_EMBEDDING
                return read(name)

            def refused_blocks(name: str, rows: slice = slice(None)) -> QuantizedBlocks | None:
                assert name != PER_LAYER_EMBEDDING or len(range(len(whole))[rows]) <= 50
                return blocks(name, rows)

            monkeypatch.setattr(checkpoint, "tensor", refused)
            monkeypatch.setattr(checkpoint, "quantized_blocks", refused_blocks)
        assert stored[0] == stored[1]
        with PackageCheckpoint(tmp_path / f"{weights}") as package:
            is_exact = precision == "keep" and source in ("folder", "Q8_0", "fp32 package", "int6 package")
            assert np.array_equal(package.tensor(PER_LAYER_EMBEDDING), whole) or not is_exact
        np.testing.assert_array_equal(checkpoint.rows(PER_LAYER_EMBEDDING, 7, 9), whole[7:9])


@pytest.mark.parametrize("source", ["mlx", "int8", "int6", "int8 in operators of the standard"])
def test_rows_of_a_packed_table_are_read_without_the_others(source: str, tmp_path: Path, save_model: SaveModel) -> None:
    """Each token of a text reads one, and the table is the largest part of a model."""
    path = tmp_path / "hf"
    save_model("gemma4_text", path, **GEMMA4)
    if source == "mlx":
        pack_folder(path, {"bits": 4, "group_size": 32})
    else:
        precision = in_one_scheme(f"{source[:4]}-block32-rounded")
        precision = precision.with_standard_operators() if "standard" in source else precision
        path = tmp_path / "package"
        export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), path, precision)
    with open_checkpoint(path) as checkpoint:
        whole = checkpoint.tensor(PER_LAYER_EMBEDDING)
        tracemalloc.start()
        rows = checkpoint.rows(PER_LAYER_EMBEDDING, 7, 9)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_array_equal(rows, whole[7:9])
    assert peak < whole.size / 2


def test_a_base_whose_keys_are_values_takes_no_adapter(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("gemma4_text", tmp_path / "hf", **KEYS_AS_VALUES)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    with pytest.raises(ExportError, match="is a model whose keys are values too, which takes no adapters beside it"):
        export_adapter(tmp_path / "adapter", tmp_path / "package", tmp_path / "exported")


def test_a_graph_and_a_config_of_other_heads_are_refused(tmp_path: Path) -> None:
    config = config_with(FEATURES["keys and values of earlier layers, with wider feed-forwards"])
    folder = make_checkpoint(tmp_path / "checkpoint", config)
    export_unchecked(HuggingFaceCheckpoint(folder), tmp_path / "package", "fp32")
    path = tmp_path / "package"
    others = {
        "has layers with different kv heads, and the model's config has others": {
            "global_head_dim": 32, "attention_multiplier": 0.25, "rope_local_theta": 1e4,
        },
        "has 6 keys and values that it gives again; by the model's config they are 0": {
            "num_hidden_layers": 2, "num_kv_shared_layers": 0, "layer_types": config.layer_types[:2],
        },
    }  # fmt: skip
    for message, changes in others.items():
        with pytest.raises(PackageError, match=re.escape(message)):
            DecoderSession(path, dataclasses.replace(config, **changes))


def test_what_a_folder_has_of_layers_without_keys_is_left_out(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("gemma4_text", tmp_path / "hf", **TABLE)
    path = tmp_path / "hf/model.safetensors"
    tensors = load_file(path)
    own = {
        name: tensor for name, tensor in tensors.items() if ".layers.1.self_attn.k" in name or "1.self_attn.v" in name
    }
    save_file(tensors | {name.replace(".1.", ".4."): tensor for name, tensor in own.items()}, path)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    assert "model.layers.4.self_attn.k_proj.weight" not in checkpoint.config.tensor_shapes()
    save_file({name: tensor for name, tensor in tensors.items() if name not in own}, path)
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.1\.self_attn\.k_proj\.weight, "):
        HuggingFaceCheckpoint(tmp_path / "hf")


@pytest.mark.parametrize("changes", [GEMMA4, KEYS_AS_VALUES])
def test_both_ways_to_write_the_heads_of_layers_are_read(
    changes: dict[str, Any], tmp_path: Path, save_model: SaveModel
) -> None:
    """transformers writes them layer by layer; those of the first release say global_head_dim."""
    save_model("gemma4_text", tmp_path / "hf", **changes)
    values = json.loads((tmp_path / "hf/config.json").read_text())
    own = values.pop("per_layer_config")
    assert set(own) == {str(i) for i, kind in enumerate(changes["layer_types"]) if kind == "full_attention"}
    old = {key: changes[key] for key in ("global_head_dim", "num_global_key_value_heads") if key in changes}
    new, first = (ROW.to_model_config(values | more) for more in ({"per_layer_config": own}, old))
    assert new == first
    assert new.global_head_dim == changes["global_head_dim"]


def test_layers_are_known_by_numbers_of_as_many_digits_as_the_last_one_has() -> None:
    """So transformers writes them: "05" where there are more than ten."""
    theirs = AutoConfig.for_model("gemma4_text", num_hidden_layers=12).to_dict()
    assert theirs["per_layer_config"] == {"05": {"head_dim": 512}, "11": {"head_dim": 512}}
    assert ROW.to_model_config(theirs).global_head_dim == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_moe_block": True}, "num_experts is None; it must be a whole number"),
        (
            {"enable_moe_block": True, "num_experts": 0, "top_k_experts": 1},
            "num_experts is 0; a model of this family has experts",
        ),
        (
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": "x"},
            "moe_intermediate_size is 'x'; it must be a whole",
        ),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'; supported is causal"),
        ({"vocab_size_per_layer_input": 400}, "vocab_size_per_layer_input is 400; it must be vocab_size, 320."),
        ({"per_layer_config": 3}, "per_layer_config is 3; supported are a head_dim and num_key_value_heads that all"),
        ({"per_layer_config": {"2": {"head_dim": 32}}}, r"layers of full_attention have \(2, 5\), and no other has"),
        ({"per_layer_config": {"2": 3, "5": 3}}, "per_layer_config is .*supported are a head_dim"),
        ({"per_layer_config": {"2": {"mlp": 1}, "5": {"mlp": 1}}}, "per_layer_config is .*supported are a head_dim"),
        ({"per_layer_config": {"2": {"head_dim": "x"}, "5": {"head_dim": "x"}}}, "head_dim is 'x'; it must be a whole"),
        ({"rope_parameters": {"rope_type": "default"}}, "it must have settings for full_attention and sliding_att"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "the layers that see all have rope type 'yarn'; supported: default, proportional",
        ),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
            "the layers with a window have rope type 'linear'; supported is default alone",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ROW.to_model_config(VALUES | changes)


def test_null_is_the_default_and_the_last_layer_sees_all() -> None:
    listed = ["sliding_attention"] * 6
    config = ROW.to_model_config(VALUES | {"layer_types": listed, "sliding_window": None, "num_kv_shared_layers": 0})
    assert config.layer_types == (*listed[:5], "full_attention")
    assert listed == ["sliding_attention"] * 6
    assert config.sliding_window == 512
    assert (
        ROW.to_model_config(VALUES | {"use_bidirectional_attention": "vision", "eos_token_id": None}).eos_token_ids
        == ()
    )
    default = {"rope_type": "default", "partial_rotary_factor": 0.25, "rope_theta": 1e5}
    whole = ROW.to_model_config(VALUES | {"rope_parameters": {"full_attention": default, "sliding_attention": None}})
    assert (whole.partial_rotary_factor, whole.turning_dim("global"), whole.rope_theta) == (1.0, 32, 1e5)
    assert whole.rope_local_theta == 1e4


def gguf_header(**changes: Any) -> GGUFHeader:
    """Describe a file of three layers, of which the last looks at the keys and values of the second."""
    metadata = {
        "block_count": 3, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96,
        "attention.head_count": 4, "attention.head_count_kv": array("i", [2, 1, 1]), "attention.key_length": 32,
        "attention.value_length": 32, "attention.key_length_swa": 16, "attention.value_length_swa": 16,
        "rope.dimension_count": 32, "rope.dimension_count_swa": 16, "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 9, "attention.sliding_window_pattern": [True, False, False],
        "attention.shared_kv_layers": 1,
    }  # fmt: skip
    factors = changes.pop("factors", [1.0] * 4 + [1e30] * 12)
    said = metadata | changes
    return GGUFHeader(
        metadata={"general.architecture": "gemma4", **{f"gemma4.{key}": value for key, value in said.items()}},
        shapes={"token_embd.weight": (320, 64)},
        rope_factors={} if factors is None else {"rope_freqs.weight": np.array(factors, np.float32)},
    )


def config_of_gguf(**changes: Any) -> ModelConfig:
    assert ROW.gguf is not None
    return ROW.to_model_config(ROW.gguf.to_hf_config(gguf_header(**changes)))


def test_a_gguf_header_tells_layers_apart() -> None:
    config = config_of_gguf()
    assert [(config.kv_heads(i), config.head_size(i)) for i in range(3)] == [(2, 16), (1, 32), (1, 32)]
    assert config.attention_k_eq_v  # no layer that sees all has values
    assert config.rope_scaling.partial_rotary_factor == 0.25
    assert not config.use_double_wide_mlp
    assert config_of_gguf(feed_forward_length=array("i", [96, 96, 192])).use_double_wide_mlp
    assert config_of_gguf(factors=None).rope_scaling.rope_type == "default"
    assert config_of_gguf(**{"attention.head_count_kv": 2}).num_global_key_value_heads is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.sliding_window_pattern": [True]}, r"pattern is \[True\]; it must say of each of 3 layers"),
        ({"attention.sliding_window_pattern": 6}, "pattern is 6; it must say of each of 3 layers"),
        ({"attention.head_count_kv": array("i", [2, 1, 2])}, r"is \[2, 1, 2\]; supported is one number of all layers"),
        ({"attention.head_count_kv": array("i", [2, 1])}, r"is \[2, 1\]; supported is one number of all layers"),
        ({"feed_forward_length": array("i", [96, 192, 192])}, r"feed_forward_length is \[96, 192, 192\]"),
        ({"attention.value_length_swa": 8}, "value_length_swa is 8; supported is the head's own size, 16"),
        ({"rope.dimension_count_swa": 8}, "dimension_count_swa is 8; supported is the head's own size, 16"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, "rope.scaling.type is set; supported is none"),
        ({"factors": [1.0, 8.0] + [1e30] * 14}, "rope_freqs.weight does not say which of a head's first pairs turn"),
        ({"factors": [1e30, 1.0] + [1e30] * 14}, "rope_freqs.weight does not say which"),
        ({"factors": [1.0] * 8}, "rope_freqs.weight does not say which"),
        (
            {"attention.shared_kv_layers": -(2**40), "feed_forward_length": array("i", [96, 96, 192])},
            r"feed_forward_length is \[96, 96, 192\]",
        ),
        ({"expert_count": 8}, "gemma4.expert_used_count is missing; supported is one whole number"),
    ],
)
def test_a_gguf_header_that_is_not_supported_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of_gguf(**changes)
