"""Packages whose author made their hashes fit what an exporter would not write, as a base for adapters and a source."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from json_files import edited_json
from make_tiny_model import make_checkpoint
from safetensors.numpy import load_file, save_file
from tiny_adapter import write_tiny_adapter

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.errors import CheckpointError, ExportError, ProviderError
from edgelm.package.manifest import Manifest, describe_file
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    with HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint")) as source:
        export_package(source, folder / "package", "int8")
    return folder / "package"


@pytest.fixture
def package(int8: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8, tmp_path / "package")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of o_proj, of rank 2, as PEFT saves one."""
    folder = write_tiny_adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 60}))
    return folder


def describe_again(package: Path, **changes: Any) -> None:
    """Write a manifest that has the hashes of what is there."""
    manifest = Manifest.load(package)
    files = tuple(describe_file(package / entry.path) for entry in manifest.files)
    replace(manifest, files=files, **changes).save(package)


@pytest.mark.parametrize(
    ("maker", "channels", "scale", "part"),
    [
        ("self_attn.o_proj", 32, 1e-38, "B"),  # its rows are divided
        ("self_attn.v_proj", 16, 3.3e38, "A"),  # the columns of o_proj are multiplied
    ],
)
def test_an_adapter_that_the_packages_scales_make_infinite_is_refused(
    maker: str, channels: int, scale: float, part: str, package: Path, adapter: Path, tmp_path: Path
) -> None:
    save_file({f"model.layers.0.{maker}": np.full((1, channels), scale, np.float32)}, package / CHANNEL_SCALES_FILE)
    describe_again(package)
    weights = {
        f"base_model.model.model.layers.0.self_attn.o_proj.lora_{name}.weight": np.full(shape, 2, np.float32)
        for name, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(weights, adapter / "adapter_model.safetensors")
    message = (
        rf"o_proj\.lora_{part}\.weight of .*adapter, with lora_alpha 60 and .*package .* float32 does not hold\. Merge"
    )
    with pytest.raises(ExportError, match=message):
        export_adapter(adapter, package, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SOURCES: dict[str, tuple[dict[str, Any], str]] = {
    "a package of nothing": ({"format": "package"}, r"KeyError\('exported_from'\)"),
    "a package of a text": ({"format": "package", "exported_from": "x"}, "AttributeError"),
    "transforms that are none": ({"format": "package", "transforms": 7, "exported_from": {}}, "TypeError"),
    "no files": ({"format": "safetensors"}, r"KeyError\('files'\)"),
    "files without hashes": ({"format": "safetensors", "files": [{"path": "x"}]}, r"KeyError\('sha256'\)"),
    "a hash that is a number": ({"format": "safetensors", "files": [{"sha256": 7}]}, "TypeError"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_manifest_whose_source_no_edgelm_writes_is_refused(
    case: str, package: Path, adapter: Path, tmp_path: Path
) -> None:
    source, problem = SOURCES[case]
    path = package / "edgelm.json"
    text = json.dumps(json.loads(path.read_bytes()) | {"source": source, "manifest_sha256": ""})
    own_hash = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{own_hash}"'))
    with pytest.raises(CheckpointError, match=rf"package says of its source what no edgelm writes \({problem}"):
        export_adapter(adapter, package, tmp_path / "out")


def test_no_pattern_of_a_strangers_manifest_is_searched_for(package: Path, adapter: Path, tmp_path: Path) -> None:
    """`(.*)*` could take centuries; the grid of a weight is read from the graph instead."""
    describe_again(package, recipe=({"pattern": "(.*)*[", "scheme": "int8-block64"},))
    weights = load_file(adapter / "adapter_model.safetensors")
    for grid, notes in (("int8-block64", 1), ("int4-block64", 2)):
        save_file(weights, adapter / "adapter_model.safetensors", metadata={"edgelm.base_grid": grid})
        assert len(export_adapter(adapter, package, tmp_path / grid).notes) == notes


def test_a_recipe_of_anything_but_texts_is_refused(package: Path) -> None:
    with pytest.raises(TypeError, match=r"recipe is \(\{'transform': 5\},\)"):
        describe_again(package, recipe=({"transform": 5},))


def test_a_graph_that_protobuf_does_not_parse_is_refused(package: Path) -> None:
    """The walk does not look into what says of values which shapes they have."""
    model = onnx.load(package / "model.onnx", load_external_data=False)
    name = model.graph.input[0].type.tensor_type.shape.dim[0]
    name.dim_param = "broken"
    data = model.SerializeToString()
    (package / "model.onnx").write_bytes(data.replace(b"\x12\x06broken", b"\x0e\x06broken", 1))
    describe_again(package)
    with pytest.raises(CheckpointError, match="package has a graph laid out as this edgelm does not write it"):
        PackageCheckpoint(package)
    with pytest.raises(ProviderError, match=r"does not load .*model\.onnx: .* protobuf parsing failed"):
        edgelm.load(package)


def test_more_layers_than_the_graph_has_tensors_are_refused_before_they_are_named(package: Path) -> None:
    with edited_json(package / "config.json") as values:
        values["edgelm"]["num_hidden_layers"] = 4096
    describe_again(package)
    with pytest.raises(CheckpointError, match=r"package: the config has 4096 layers, but there are only \d\d tensors"):
        PackageCheckpoint(package)


def test_values_of_another_type_than_their_grids_are_refused(tmp_path: Path) -> None:
    package = tmp_path / "package"
    with HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint")) as source:
        export_package(source, package, PRECISIONS["int8"].with_standard_operators())
    model = onnx.load(package / "model.onnx", load_external_data=False)
    (tensor,) = (one for one in model.graph.initializer if one.name == "model.layers.0.mlp.down_proj.weight")
    tensor.data_type = onnx.TensorProto.FLOAT8E4M3FN
    (package / "model.onnx").write_bytes(model.SerializeToString())
    describe_again(package)
    with pytest.raises(
        CheckpointError, match=r"down_proj\.weight laid out as .* .values or zero points are .*, not int8"
    ):
        PackageCheckpoint(package).tensor("model.layers.0.mlp.down_proj.weight")
