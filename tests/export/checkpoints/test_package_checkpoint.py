"""A package's weights, read back: the tensors of the checkpoint that it was exported from, or those of its grid."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from model_features import FEATURES, config_with
from unchecked_export import export_unchecked

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, PackageError
from edgelm.package.manifest import Manifest, describe_file
from edgelm.testing import tiny_model_path
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.quantize.channel_scales import ChannelScales, ScaledCheckpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.sources import open_checkpoint

# What the exporter puts inside of tensors, or lays out in its own way.
LAID_OUT = (
    "tiny", "untied head", "biases", "a bias of the head", "norms of 1 + weight", "layer norms of 1 + weight",
    "residual multiplier", "query and key norms behind rope of a part of each head", "linear attention", "Mamba",
    "Mamba without its norms, beside a convolution, norms of 1 + weight, a residual multiplier", "Mamba 2",
    "Mamba 2 beside attention, with biases and multipliers", "latent attention", "experts in one layer, with biases",
    "experts beside a shared one, of which a token takes a share", "experts behind a residual multiplier",
    "experts gated by relu, weighted by a sigmoid, chosen with a bias, with biases", "as GPT-2", "xielu",
    "attention sinks", "larger heads in the layers that see all, which turn in part",
    "keys as values in the layers that see all, values normed", "features of each layer's own",
    "keys and values of earlier layers, with wider feed-forwards", "a factor of each layer",
    "several residual streams, a way beside attention, gates that are nothing",
    "two residual streams, norms of 1 + weight",
)  # fmt: skip
CONFIGS = {name: config_with({"hidden_size": 64, **FEATURES[name]}) for name in LAID_OUT} | {
    "experts without a gate, a part in each block": dataclasses.replace(
        CONFIG,
        num_experts=3,
        num_experts_per_tok=2,
        hidden_size=64,
        mlp_gated=False,
        hidden_act="relu2",
        layer_types=("full_attention", "feed_forward"),
        layers_without_feed_forward=(0,),
    ),
}


# The preset has the outer layers in 8 bits, and the tiny model has no others.
INT4 = Precision(
    name="int4",
    rules=(Rule(pattern="embed", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block32-asymmetric")),
)


def exported(
    tmp_path: Path, config: ModelConfig, precision: str | Precision
) -> tuple[HuggingFaceCheckpoint, PackageCheckpoint]:
    source = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    export_unchecked(source, tmp_path / "package", precision)
    checkpoint = open_checkpoint(tmp_path / "package")
    assert isinstance(checkpoint, PackageCheckpoint)
    return source, checkpoint


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_fp32_package_gives_its_sources_tensors_back(tmp_path: Path, config: ModelConfig) -> None:
    source, checkpoint = exported(tmp_path, config, "fp32")
    assert checkpoint.config == source.config
    assert checkpoint.fewest_bits is None
    for name in config.tensor_shapes():
        assert checkpoint.stored_type(name) == "F32"
        assert checkpoint.quantized_blocks(name) is None
        # A factor that is put in and taken out again is rounded twice, each time by 2 ** -24 of the larger number.
        np.testing.assert_allclose(checkpoint.tensor(name), source.tensor(name), rtol=3e-7, atol=2e-7, err_msg=name)


@pytest.mark.parametrize("name", ["xielu", "attention sinks"])
def test_so_does_one_in_operators_of_the_standard(tmp_path: Path, name: str) -> None:
    source, checkpoint = exported(tmp_path, CONFIGS[name], PRECISIONS["fp32"].with_standard_operators())
    for tensor in source.config.tensor_shapes():
        np.testing.assert_array_equal(checkpoint.tensor(tensor), source.tensor(tensor), err_msg=tensor)


def test_factors_of_experts_come_back_inside_their_weights(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, num_experts=3, num_experts_per_tok=2, hidden_size=64, hidden_act="gelu_pytorch_tanh",
        norm_placement="both", shared_expert_intermediate_size=32, expert_norms=True, expert_scales=True,
    )  # fmt: skip
    source, checkpoint = exported(tmp_path, config, "fp32")
    assert checkpoint.config == dataclasses.replace(config, expert_scales=False)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [list(range(3, 60))]) for each in (source, checkpoint))
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_floats_come_back_as_they_are_stored(tmp_path: Path, precision: str, dtype: type) -> None:
    source, checkpoint = exported(tmp_path, CONFIG, precision)
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(checkpoint.tensor(name), source.tensor(name).astype(dtype).astype(np.float32))


def test_bf16_comes_back_within_its_rounding(tmp_path: Path) -> None:
    source, checkpoint = exported(tmp_path, CONFIG, "bf16")
    name = "model.layers.1.mlp.up_proj.weight"
    assert checkpoint.stored_type(name) == "BF16"
    np.testing.assert_allclose(checkpoint.tensor(name), source.tensor(name), rtol=2**-8)


@pytest.mark.parametrize(
    ("precision", "config"),
    [
        (INT4, CONFIG),
        (PRECISIONS["int8"].with_standard_operators(), CONFIG),
        *(("int8", config) for config in CONFIGS.values()),
    ],
)
def test_a_package_of_its_own_grid_is_the_same_again(
    tmp_path: Path, precision: str | Precision, config: ModelConfig
) -> None:
    _, checkpoint = exported(tmp_path, config, precision)
    assert checkpoint.fewest_bits == (4 if precision == INT4 else 8)
    again = export_package(checkpoint, tmp_path / "again", "keep")
    assert again.quality is not None
    # The grid is kept to the bit, and scales within one rounding; the reference computes with the same weights. The
    # operator rounds activations to 8 bits, which is all that is left: 0.0003 nats seen, and 0.014 where a token has
    # other experts for that.
    assert again.quality.mean_kl_divergence < 0.03
    other = PackageCheckpoint(tmp_path / "again")
    for name, shape in config.tensor_shapes().items():
        if len(shape) == 2:
            np.testing.assert_allclose(other.tensor(name), checkpoint.tensor(name), rtol=3e-7, err_msg=name)


def test_the_tensors_of_an_int8_package_are_near_its_sources(tmp_path: Path) -> None:
    source, checkpoint = exported(tmp_path, CONFIG, "int8")
    scales = ChannelScales.load(tmp_path / "package", Manifest.load(tmp_path / "package"), CONFIG)
    smoothed = ScaledCheckpoint(source, scales)
    for name, shape in CONFIG.tensor_shapes().items():
        if len(shape) == 2:
            blocks = checkpoint.quantized_blocks(name)
            assert blocks is not None
            assert (blocks.bits, blocks.block_size) == (8, 64)
            half_a_step = blocks.scales.max() / 2
            np.testing.assert_allclose(checkpoint.tensor(name), smoothed.tensor(name), atol=1.01 * half_a_step)
        else:
            np.testing.assert_array_equal(checkpoint.tensor(name), smoothed.tensor(name))


def test_a_package_says_what_it_was_made_of(tmp_path: Path) -> None:
    _, checkpoint = exported(tmp_path, CONFIG, "int8")
    manifest = export_package(checkpoint, tmp_path / "again", "int4")
    assert manifest.source["format"] == "package"
    assert manifest.source["exported_from"]["format"] == "safetensors"
    assert [file["path"] for file in manifest.source["files"]] == ["model.onnx", "model.onnx.data"]
    assert manifest.notes[0].startswith("Made of the int8 package package, not of its source: ")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_a_factor_was_inside_is_imported_with_all_its_digits(tmp_path: Path, precision: str) -> None:
    _, checkpoint = exported(tmp_path, CONFIGS["residual multiplier"], precision)
    import_checkpoint(tmp_path / "package", tmp_path / "imported")
    imported = HuggingFaceCheckpoint(tmp_path / "imported")
    assert imported.stored_type("model.layers.0.mlp.down_proj.weight") == "F32"
    assert imported.stored_type("model.layers.0.mlp.up_proj.weight") == precision.upper().replace("FP", "F")
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(imported.tensor(name), checkpoint.tensor(name), err_msg=name)


def test_a_package_becomes_a_checkpoint_again(tmp_path: Path) -> None:
    source, _ = exported(tmp_path, CONFIG, "fp32")
    import_checkpoint(tmp_path / "package", tmp_path / "imported")
    imported = HuggingFaceCheckpoint(tmp_path / "imported")
    for name in CONFIG.tensor_shapes():
        np.testing.assert_array_equal(imported.tensor(name), source.tensor(name))


def test_a_changed_package_is_refused(tmp_path: Path) -> None:
    exported(tmp_path, CONFIG, "fp32")
    data = bytearray((tmp_path / "package" / "model.onnx.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "package" / "model.onnx.data").write_bytes(data)
    with pytest.raises(PackageError, match=r"model\.onnx\.data does not match the SHA-256"):
        PackageCheckpoint(tmp_path / "package")


def change_graph(folder: Path, change) -> None:
    """Change the graph of a package, and its manifest with it."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model.graph)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest.load(folder)
    files = [describe_file(folder / entry.path) for entry in manifest.files]
    dataclasses.replace(manifest, files=tuple(files)).save(folder)


def test_a_graph_with_other_names_is_refused(tmp_path: Path) -> None:
    exported(tmp_path, CONFIG, "fp32")

    def rename(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            tensor.name = tensor.name.replace("qkv_proj", "attn")

    change_graph(tmp_path / "package", rename)
    with pytest.raises(CheckpointError, match=r"has no weight model\.layers\.0\.self_attn\.q_proj\.weight: it was not"):
        PackageCheckpoint(tmp_path / "package")


def test_a_graph_with_other_shapes_is_refused(tmp_path: Path) -> None:
    exported(tmp_path, CONFIG, "fp32")

    def reshape(graph: onnx.GraphProto) -> None:
        (tensor,) = (one for one in graph.initializer if one.name == "model.layers.0.mlp.down_proj.weight")
        tensor.dims[0], tensor.dims[1] = tensor.dims[1], tensor.dims[0]

    change_graph(tmp_path / "package", reshape)
    with pytest.raises(CheckpointError, match=r"has model\.layers\.0\.mlp\.down_proj\.weight in the shape"):
        PackageCheckpoint(tmp_path / "package").tensor("model.layers.0.mlp.down_proj.weight")


def initializer(graph: onnx.GraphProto, ending: str) -> onnx.TensorProto:
    (tensor,) = (one for one in graph.initializer if one.name == f"model.layers.0.mlp.down_proj.{ending}")
    return tensor


def set_attribute(graph: onnx.GraphProto, name: str, value: int) -> None:
    node = next(node for node in graph.node if initializer(graph, "weight").name in node.input)
    next(attribute for attribute in node.attribute if attribute.name == name).i = value


def turned(tensor: onnx.TensorProto) -> None:
    sizes = list(tensor.dims)[::-1]
    del tensor.dims[:]
    tensor.dims.extend(sizes)


def put_zeros(graph: onnx.GraphProto, ending: str, *sizes: int) -> None:
    tensor = initializer(graph, ending)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(sizes, np.uint8), tensor.name))


def put_scales(graph: onnx.GraphProto, scale: float) -> None:
    tensor = initializer(graph, "weight.scales")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), scale, np.float32), tensor.name))


PLANES = Precision(
    rules=(Rule(pattern="embed", scheme="int6-block32"), Rule(pattern=".", scheme="int5-block32-asymmetric"))
)
CHANGES: dict[str, tuple[str | Precision, Callable[[onnx.GraphProto], object], str]] = {
    "no scales": (PLANES, lambda graph: graph.initializer.remove(initializer(graph, "weight.scales")), "scales"),
    "a plane turned": (PLANES, lambda graph: turned(initializer(graph, "weight.lower")), ""),
    "a shorter plane": (PLANES, lambda graph: put_zeros(graph, "weight.upper", 32, 2, 1, 8), ""),
    "a plane that is a number": (PLANES, lambda graph: put_zeros(graph, "weight.lower"), ""),
    "scales turned": ("int8", lambda graph: turned(initializer(graph, "weight.scales")), r"float32 \[1, 32\], not"),
    "scales whose weights float32 does not hold": ("int8", lambda graph: put_scales(graph, 3e38), "overflow"),
    "signed integers": (
        "int8",
        lambda graph: setattr(initializer(graph, "weight"), "data_type", onnx.TensorProto.INT8),
        "packed are int8",
    ),
    "bits that are no width": ("int8", lambda graph: set_attribute(graph, "bits", 2**31), "2147483648 bits"),
    "blocks of half a byte": (INT4, lambda graph: set_attribute(graph, "block_size", 33), "no whole bytes of 2 values"),
    "blocks of nothing": ("int8", lambda graph: set_attribute(graph, "block_size", 0), "zero"),
    "blocks of another size": ("int8", lambda graph: set_attribute(graph, "block_size", 2**40), "packed are uint8"),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | Precision], Path]:
    @functools.cache
    def package(precision: str | Precision) -> Path:
        folder = tmp_path_factory.mktemp("laid_out")
        exported(folder, CONFIG, precision)
        return folder / "package"

    return package


@pytest.mark.parametrize("case", CHANGES)
def test_a_weight_that_lies_otherwise_is_refused_by_its_name(
    case: str, packages: Callable[[str | Precision], Path], tmp_path: Path
) -> None:
    precision, change, problem = CHANGES[case]
    folder = shutil.copytree(packages(precision), tmp_path / "package")
    change_graph(folder, change)

    message = rf"package has (matrices|model\.layers\.0\.mlp\.down_proj\.weight) laid out as this edgelm .*{problem}"
    with pytest.raises(CheckpointError, match=message):
        PackageCheckpoint(folder).tensor("model.layers.0.mlp.down_proj.weight")


def test_a_package_whose_weights_are_not_read_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, position="relative")
    monkeypatch.setattr(ModelConfig, "load", lambda _folder: config)
    with pytest.raises(CheckpointError, match=r"is a model with relative positions, .* Take its source\."):
        PackageCheckpoint(tiny_model_path())
