"""Packages that are read back as checkpoints: graph, config and manifest changed, and the hashes made to fit again."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import onnx
from fuzz.mutations import mutate_bytes, mutate_json
from onnx import AttributeProto, GraphProto, TensorProto

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.package.manifest import describe_file
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

_PRECISIONS: dict[str, str | Precision] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int4": Precision(
        name="int4",
        rules=(Rule(pattern="embed", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block32-asymmetric")),
    ),
    "planes": Precision(
        rules=(Rule(pattern="embed", scheme="int6-block32"), Rule(pattern=".", scheme="int5-block32-asymmetric"))
    ),
    "standard": PRECISIONS["int8"].with_standard_operators(),
}
_ADAPTER, _EXPORTED = "adapter", "exported"
_GRAPH, _CONFIG, _MANIFEST = "model.onnx", "config.json", "edgelm.json"
_SIZES = (0, 1, 2, 3, 7, 8, 16, 32, 33, 64, 255, 320, 2**31, 2**62)


def prepare(folder: Path) -> Sequence[bytes]:
    """Copy a package of each precision and an adapter; return what is changed of each package.

    That is its folder's name, its config and manifest as JSON, and its graph, each but the last in a line.
    """
    shutil.copytree(_packages().name, folder, dirs_exist_ok=True)
    seeds = []
    for name in _PRECISIONS:
        package = folder / name
        settings = {file: json.loads((package / file).read_bytes()) for file in (_CONFIG, _MANIFEST)}
        seeds.append(b"\n".join([name.encode(), json.dumps(settings).encode(), (package / _GRAPH).read_bytes()]))
    return seeds


@cache
def _packages() -> TemporaryDirectory[str]:
    from make_tiny_model import make_checkpoint
    from tiny_adapter import write_tiny_adapter

    temporary = TemporaryDirectory()
    folder = Path(temporary.name)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint"))
    for name, precision in _PRECISIONS.items():
        export_package(checkpoint, folder / name, precision)
    adapter = write_tiny_adapter(folder / _ADAPTER)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return temporary


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change the settings, the graph, or both."""
    name, settings, graph = data.split(b"\n", 2)
    kind = random.random()
    if kind < 0.5:
        settings = _changed_settings(settings, random)
    if kind > 0.4:
        graph = mutate_bytes(graph, random, others) if random.random() < 0.2 else _changed_graph(graph, random)
    return b"\n".join([name, settings, graph])


def read(folder: Path) -> None:
    """Read everything of a package, and write an adapter for it."""
    name, settings, graph = (folder / "package").read_bytes().split(b"\n", 2)
    package = folder / name.decode()
    _write(package, settings, graph)
    try:
        export_adapter(folder / _ADAPTER, package, folder / _EXPORTED)
    finally:
        shutil.rmtree(folder / _EXPORTED, ignore_errors=True)
        with PackageCheckpoint(package) as checkpoint:
            assert checkpoint.text_files
            assert checkpoint.hf_config
            assert checkpoint.source
            for tensor in checkpoint.config.tensor_shapes():
                checkpoint.stored_type(tensor)
                checkpoint.quantized_blocks(tensor)
                checkpoint.tensor(tensor)


def _write(package: Path, settings: bytes, graph: bytes) -> None:
    """Write the files, and a manifest that has their hashes and its own, as whoever makes a package would."""
    if graph:  # else it stays as it is
        (package / _GRAPH).write_bytes(graph)
    try:
        values = json.loads(settings)
        manifest = values[_MANIFEST]
        (package / _CONFIG).write_text(json.dumps(values[_CONFIG]), encoding="utf-8", errors="surrogatepass")
        paths = [path for path in package.iterdir() if path.name != _MANIFEST]
        manifest["files"] = [describe_file(path).__dict__ for path in paths]
        manifest["manifest_sha256"] = ""
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        own_hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        text = text.replace('"manifest_sha256": ""', f'"manifest_sha256": "{own_hash}"')
    except (ValueError, KeyError, TypeError, RecursionError):  # not even that is left
        text = settings.decode("utf-8", "replace")
    (package / _MANIFEST).write_text(text, encoding="utf-8", errors="surrogatepass")


def _changed_settings(data: bytes, random: Random) -> bytes:
    values = json.loads(data)
    part = random.choice((values[_MANIFEST], values[_CONFIG], values[_CONFIG]["edgelm"]))
    key = random.choice(list(part))
    try:
        part[key] = json.loads(mutate_json(json.dumps(part[key]).encode(), random))
    except (ValueError, RecursionError):  # its bytes were changed
        del part[key]
    return json.dumps(values).encode()


def _changed_graph(data: bytes, random: Random) -> bytes:
    model = onnx.load_model_from_string(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(_CHANGES)(model.graph, random)
    return model.SerializeToString()


def _tensor(graph: GraphProto, random: Random) -> TensorProto:
    return random.choice(graph.initializer)


def _set_size(graph: GraphProto, random: Random) -> None:
    tensor = _tensor(graph, random)
    if not tensor.dims:
        return
    place, other = random.randrange(len(tensor.dims)), random.randrange(len(tensor.dims))
    if random.random() < 0.3:
        tensor.dims[place] = random.choice(_SIZES)
    elif tensor.dims[place] % 2 == 0:  # as many elements as there were
        tensor.dims[place] //= 2
        tensor.dims[other] *= 2


def _set_shape(graph: GraphProto, random: Random) -> None:
    tensor = _tensor(graph, random)
    sizes = list(tensor.dims)
    tensor.dims[:] = random.choice((sizes[::-1], [1, *sizes], sizes[1:], [math.prod(sizes)]))


def _set_type(graph: GraphProto, random: Random) -> None:
    """Take another type, most often one of as many bytes."""
    tensor = _tensor(graph, random)
    alike = next((types for types in _TYPES if tensor.data_type in types), ())
    tensor.data_type = random.choice(alike or range(24)) if random.random() < 0.8 else random.randrange(24)


def _set_data(graph: GraphProto, random: Random) -> None:
    """Put a tensor's data into the graph, or elsewhere in the file."""
    tensor, other = _tensor(graph, random), _tensor(graph, random)
    if random.random() < 0.5:
        name = tensor.name
        tensor.CopyFrom(other)
        tensor.name = name
    elif random.random() < 0.5:
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = bytes(random.choice((*_SIZES[:12], 4096)))
    elif tensor.external_data:
        random.choice(tensor.external_data).value = random.choice(("0", "-1", "4", "180224", "9" * 30, "1.5", "", "x"))


def _rename(graph: GraphProto, random: Random) -> None:
    tensor = _tensor(graph, random)
    parts = random.choice((_tensor(graph, random).name, tensor.name + random.choice(_ENDINGS), "x"))
    tensor.name = parts


def _remove(graph: GraphProto, random: Random) -> None:
    rows = random.choice((graph.initializer, graph.node))
    del rows[random.randrange(len(rows))]


def _add(graph: GraphProto, random: Random) -> None:
    """Add to a weight what says that it is on a grid."""
    tensor = _tensor(graph, random)
    name = tensor.name + random.choice(_ENDINGS)
    graph.initializer.add().CopyFrom(_tensor(graph, random))
    graph.initializer[-1].name = name


def _set_attribute(graph: GraphProto, random: Random) -> None:
    nodes = [node for node in graph.node if node.attribute]
    node = random.choice([node for node in nodes if node.op_type in _PACKED] or nodes)
    attribute = random.choice(node.attribute)
    attribute.type, attribute.i = AttributeProto.INT, random.choice((*_SIZES, -1, 4, 5, 6))


def _set_node(graph: GraphProto, random: Random) -> None:
    node = random.choice(graph.node)
    if node.input and random.random() < 0.5:
        node.input[random.randrange(len(node.input))] = random.choice(("", _tensor(graph, random).name))
    elif node.input and random.random() < 0.5:
        del node.input[random.randrange(len(node.input)) :]
    elif node.attribute and random.random() < 0.5:
        del node.attribute[random.randrange(len(node.attribute))]
    else:
        node.op_type = random.choice((*_PACKED, "MatMul"))


_TYPES = (
    (TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32),
    (TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E8M0),
    (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16),
    (TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE, TensorProto.COMPLEX64),
)
_ENDINGS = (".scales", ".zero_points", ".lower", ".upper")
_PACKED = ("MatMulNBits", "GatherBlockQuantized")
_CHANGES: Sequence[Callable[[GraphProto, Random], None]] = (
    _set_size, _set_shape, _set_type, _set_data, _rename, _remove, _add, _set_attribute, _set_node,
)  # fmt: skip
