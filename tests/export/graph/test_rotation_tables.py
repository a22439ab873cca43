"""The tables of rotations: ONNX Runtime makes them of a graph's frequencies when it loads the graph, and edgelm, on the
CPU, as far as texts reach.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from model_features import FEATURES, config_with
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from transformers.models.m2m_100.modeling_m2m_100 import M2M100SinusoidalPositionalEmbedding

from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.architecture.rope import cos_sin_tables, sinusoidal_table
from edgelm.config import ModelConfig
from edgelm.errors import ExportError, PackageError
from edgelm.memory.kv_batch import KVBatch
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.tables import Tables, with_tables
from edgelm_export.checkpoints.folded import padded_rotary_dim
from edgelm_export.decoder import build_decoder
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.standard_decoder import build_standard_decoder

ROTATIONS = {name: features for name, features in FEATURES.items() if name == "tiny" or "rope " in name}
LENGTH = 131072  # float32 angles of 131,071 are 0.008 apart; they are to be those of transformers all the same


def write_graph(folder: Path, config: ModelConfig, *, standard: bool = False) -> onnx.ModelProto:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config, seed=1))
    precision = PRECISIONS["fp32"].with_standard_operators() if standard else PRECISIONS["fp32"]
    with ExternalData(folder / "model.onnx.data") as data:
        model = (build_standard_decoder if standard else build_decoder)(checkpoint, precision, data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return model


def loaded_graph(folder: Path) -> onnx.GraphProto:
    """Return the graph as ONNX Runtime computes it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "loaded.onnx").graph


def constants_of(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if len(tensor.dims) == 2}


def padded_tables(config: ModelConfig, kind: str) -> list[NDArray[np.float32]]:
    """Return the tables that numpy makes, with the pairs that turn by no angle."""
    filling = ((0, 0), (0, (padded_rotary_dim(config) - config.rotary_dim) // 2))
    cos, sin = cos_sin_tables(config, config.max_position_embeddings, kind)
    return [np.pad(cos, filling, constant_values=1), np.pad(sin, filling)]


# Both kinds of graphs make their tables in one way (stack.py).
@pytest.mark.parametrize(
    ("name", "standard"),
    [*((name, False) for name in ROTATIONS), ("tiny", True), ("rope dynamic, beyond the original context", True)],
)
def test_a_loaded_graph_has_the_tables_as_constants(name: str, standard: bool, tmp_path: Path) -> None:
    config = config_with(ROTATIONS[name] | {"max_position_embeddings": LENGTH})
    stored = write_graph(tmp_path, config, standard=standard)
    of_rotations = [tensor for tensor in stored.graph.initializer if tensor.name.startswith("model.rope.")]
    # Not by position, but where each has frequencies of its own.
    by_position = config.rope_scaling.rope_type == "dynamic"
    assert [LENGTH in tensor.dims for tensor in of_rotations] == [by_position] * len(of_rotations)
    graph = loaded_graph(tmp_path)
    assert not {"Cos", "Sin"} & {node.op_type for node in graph.node}
    constants = constants_of(graph)
    for i in range(config.num_hidden_layers):
        kind = config.rope_kind(i)
        assert kind is not None
        for function, expected in zip(("cos", "sin"), padded_tables(config, kind), strict=True):
            (table,) = (
                array for name, array in constants.items() if name.startswith(f"model.rope.{kind}.angles.{function}")
            )
            # Another cosine of the same float32 angle: 1.2e-7 seen. Angles that differ in the last bit give 0.008.
            np.testing.assert_allclose(table, expected, rtol=0, atol=3e-7)
    assert {"Cos", "Sin"} <= {node.op_type for node in stored.graph.node}


def given_tables(folder: Path, config: ModelConfig, *, standard: bool = False) -> tuple[onnx.GraphProto, Tables]:
    write_graph(folder, config, standard=standard)
    graph, tables = with_tables((folder / "model.onnx").read_bytes(), folder / "model.onnx", onnxruntime)
    return onnx.load_from_string(graph).graph, tables


def arrays_of(tables: Tables) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in tables.values(onnxruntime).items() if ".angles." in name}


@pytest.mark.parametrize(
    ("name", "standard"),
    [*((name, False) for name in ROTATIONS), ("tiny", True), ("rope dynamic, beyond the original context", True)],
)
def test_tables_of_ours_have_the_rows_that_texts_have_reached(name: str, standard: bool, tmp_path: Path) -> None:
    config = config_with(ROTATIONS[name] | {"max_position_embeddings": 2048})
    graph, tables = given_tables(tmp_path, config, standard=standard)
    assert not {"Cos", "Sin"} & {node.op_type for node in graph.node}
    tables.reach(300)
    tables.reach(200)
    given, theirs = arrays_of(tables), constants_of(loaded_graph(tmp_path))
    assert given.keys() <= {tensor.name for tensor in graph.initializer}
    assert len(given) == 2 * len({config.rope_kind(i) for i in range(config.num_hidden_layers)} - {None})
    for name, table in given.items():
        (expected,) = (array for constant, array in theirs.items() if constant.startswith(name))
        rows, wanted = (array.reshape(-1, 2048, array.shape[-1]) for array in (table, expected))
        np.testing.assert_array_equal(rows[:, :300], wanted[:, :300])  # to the last bit
        assert not rows[:, 512:].any()  # nor any memory, then


def test_many_threads_reach_at_once(tmp_path: Path) -> None:
    config = replace(CONFIG, max_position_embeddings=2000)
    _, tables = given_tables(tmp_path, config)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tables.reach, range(0, 4000, 50)))
    theirs = constants_of(loaded_graph(tmp_path))
    for name, table in arrays_of(tables).items():
        (expected,) = (array for constant, array in theirs.items() if constant.startswith(name))
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("change", ["no frequencies", "other numbers", "widened", "another range", "too long"])
def test_tables_that_are_made_in_another_way_stay(change: str, tmp_path: Path) -> None:
    model = write_graph(tmp_path, CONFIG)
    frequencies = next(t for t in model.graph.initializer if t.name.endswith(".frequencies"))
    if change == "no frequencies":
        frequencies.name = "model.rope.global.others"
    elif change == "other numbers":
        frequencies.CopyFrom(numpy_helper.from_array(np.ones(frequencies.dims, np.float16), frequencies.name))
    elif change == "widened":  # which ONNX Runtime does when it loads the graph
        table = next(node for node in model.graph.node if node.op_type == "Cos").output[0]
        model.graph.node.append(helper.make_node("Cast", [table], ["widened"], to=onnx.TensorProto.DOUBLE))
    else:
        positions = next(node for node in model.graph.node if node.output[0].endswith(".positions"))
        positions.input[1] = "input_ids" if change == "another range" else "constant.float32.1e9"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1e9), "constant.float32.1e9"))
    changed = model.SerializeToString()
    graph, tables = with_tables(changed, tmp_path / "model.onnx", onnxruntime)
    assert (graph, tables.values(onnxruntime)) == (changed, {})


def test_positions_without_an_end_are_an_error(tmp_path: Path) -> None:
    model = write_graph(tmp_path, CONFIG)
    positions = next(node for node in model.graph.node if node.output[0].endswith(".positions"))
    end = next(t for t in model.graph.initializer if t.name == positions.input[1])
    end.CopyFrom(numpy_helper.from_array(np.float32(np.inf), end.name))
    with pytest.raises(PackageError, match=r"model\.onnx has frequencies that cannot be read \(cannot convert float"):
        with_tables(model.SerializeToString(), tmp_path / "model.onnx", onnxruntime)


def test_frequencies_of_another_size_are_an_error(tmp_path: Path) -> None:
    model = write_graph(tmp_path, CONFIG)
    frequencies = next(t for t in model.graph.initializer if t.name.endswith(".frequencies"))
    frequencies.raw_data = frequencies.raw_data[:-4]
    with pytest.raises(PackageError, match=r"model\.onnx has frequencies that cannot be read \(cannot reshape"):
        with_tables(model.SerializeToString(), tmp_path / "model.onnx", onnxruntime)


@pytest.mark.parametrize("name", ["tiny", "rope yarn", "rope longrope, beyond the original context"])
def test_a_graph_that_stores_its_tables_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    """What earlier packages have."""
    config = config_with(FEATURES[name])
    model = write_graph(tmp_path, config)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, 150).tolist()
    expected_TV = DecoderSession(tmp_path, config).forward(ids, DecoderSession(tmp_path, config).new_cache())
    made = {name: node for node in model.graph.node for name in node.output if name.startswith("model.rope.global.")}
    attention = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    for node in made.values():
        model.graph.node.remove(node)
    for table, array in zip(attention.input[7:9], padded_tables(config, "global"), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(array, table))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    session = DecoderSession(tmp_path, config)
    # Seen: see the tables above.
    np.testing.assert_allclose(session.forward(ids, session.new_cache()), expected_TV, atol=1e-5)


def test_more_positions_than_a_table_holds_are_refused(tmp_path: Path) -> None:
    config = config_with({"max_position_embeddings": (1 << 23) + 1})
    with pytest.raises(ExportError, match=r"max_position_embeddings is 8388609; the rotations of at most 8388608 "):
        write_graph(tmp_path, config)


@pytest.mark.parametrize("size", [64, 7, 4])
def test_the_sinusoids_of_fairseq_are_those_of_transformers(size: int) -> None:
    config = replace(CONFIG, hidden_size=size, position="sinusoidal_fairseq")
    expected_TD = M2M100SinusoidalPositionalEmbedding.get_embedding(1026, size, padding_idx=1)[2:]
    # Float32 angles there, of up to 1,025.
    np.testing.assert_allclose(sinusoidal_table(config, 1024), expected_TD, rtol=0, atol=1e-4)


def test_queries_grow_in_a_batch_by_the_bits_that_they_grow_by_alone(tmp_path: Path) -> None:
    config = config_with(FEATURES["queries that grow beyond the original context"])
    write_graph(tmp_path, config)
    session = DecoderSession(tmp_path, config)
    ids, batch, alone = [*range(5, 205)], KVBatch(config), session.new_cache()
    session.forward(ids, alone)
    for length in (200, 3, 50, 150):
        row = batch.add()
        session.forward(ids[:length], row)
        batch.activate(row)
    for id_ in ids[:5]:
        together_BV = session.forward_rows([id_] * 4, batch)
        np.testing.assert_array_equal(together_BV[0], session.forward((id_,), alone)[0])
