"""Tables in the weights' file that a session looks rows up in: mapped by edgelm, and given back when they were read."""

from __future__ import annotations

import errno
import re
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import onnxruntime
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from onnx import TensorProto, helper, numpy_helper

from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.errors import PackageError
from edgelm.memory.mapped_table import MappedTable
from edgelm.runtime import onnx_runtime
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.tables import Tables, with_tables
from edgelm_export.decoder import build_decoder
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

CONFIG_OF_MANY = replace(CONFIG, vocab_size=1 << 16, hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
IDS = list(range(0, CONFIG_OF_MANY.vocab_size, 1 << 9))


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a model whose table of tokens has 16, 8 and 4 MB."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", CONFIG_OF_MANY))
    with ExternalData(folder / "model.onnx.data") as data:
        model = build_decoder(checkpoint, PRECISIONS[request.param], data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def resident(folder: Path) -> int:
    """How many kB of the mapped weights are in this process's memory."""
    mappings = Path("/proc/self/smaps").read_text()
    pattern = rf" {re.escape(str(folder))}/model\.onnx\.data\n(?:[A-Z].*\n)*?Rss: +(\d+) kB"
    return sum(map(int, re.findall(pattern, mappings)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_more_is_in_memory_than_the_rows_of_the_newest_tokens(folder: Path) -> None:
    session = DecoderSession(folder, CONFIG_OF_MANY)
    cache = session.new_cache()
    assert resident(folder) < 1 << 10
    session.forward(IDS, cache)
    assert resident(folder) > 3 << 10
    session.forward([IDS[0]] * cache.capacity, cache)  # which grows
    assert resident(folder) < 3 << 10  # the row's page may have 2 MB


def test_an_interrupt_leaves_no_thread_that_gives_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tables = with_tables((folder / "model.onnx").read_bytes(), folder / "model.onnx", onnxruntime)
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> NoReturn:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), tables.kept_small():
        pass
    assert "edgelm-tables" not in {thread.name for thread in threading.enumerate()}


def test_an_encoder_gives_back_what_it_read_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, given_back = DecoderSession(folder, CONFIG_OF_MANY), list[str]()
    tables = SimpleNamespace(give_back=lambda: given_back.append("of the encoder"))
    monkeypatch.setattr(session, "_encoder", SimpleNamespace(tables=tables, encode=lambda _: []))
    session.forward(IDS, session.new_cache())
    assert given_back == ["of the encoder"]


def test_rows_are_those_that_onnx_runtime_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = DecoderSession(folder, CONFIG_OF_MANY)
    ours = session.forward(IDS, session.new_cache())
    monkeypatch.setattr(onnx_runtime, "with_tables", lambda graph, *_: (graph, Tables()))
    session = DecoderSession(folder, CONFIG_OF_MANY)
    np.testing.assert_allclose(ours, session.forward(IDS, session.new_cache()), atol=1e-5)


def test_a_small_table_stays_with_onnx_runtime(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    with ExternalData(tmp_path / "model.onnx.data") as data:
        model = build_decoder(checkpoint, PRECISIONS["fp32"], data)
    _, tables = with_tables(model.SerializeToString(), tmp_path / "model.onnx", onnxruntime)
    assert not [name for name in tables.values(onnxruntime) if "embed" in name]


def test_a_graph_that_holds_its_weights_is_not_copied(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.zeros((1 << 12, 1 << 10), np.uint8), "table")
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("ids", "rows")]
    node = helper.make_node("Gather", ["table", "ids"], ["rows"])
    graph = helper.make_model(helper.make_graph([node], "", values[:1], values[1:], [table])).SerializeToString()
    tracemalloc.start()
    try:
        found, _ = with_tables(graph, tmp_path / "model.onnx", onnxruntime)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found is graph
    assert peak < table.ByteSize() >> 4


def test_a_table_that_the_system_does_not_map_stays_with_onnx_runtime(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(MappedTable, "__init__", refuse)
    _, tables = with_tables((folder / "model.onnx").read_bytes(), folder / "model.onnx", onnxruntime)
    assert not [name for name in tables.values(onnxruntime) if "embed" in name]


def test_a_file_that_ends_before_its_table_is_an_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(PackageError, match=r"model\.onnx has a table that cannot be mapped \(.*size"):
        with_tables((folder / "model.onnx").read_bytes(), tmp_path / "model.onnx", onnxruntime)
