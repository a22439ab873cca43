"""Several tokens in one call with the bits of single calls: the memory, the fallback, and the bits."""

import dataclasses
import os
import random
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from model_features import FEATURES, config_with
from tiny_adapter import write_tiny_adapter
from unchecked_export import export_unchecked

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.config import ModelConfig
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import GROWTH_STEP
from edgelm.memory.mirrored_memory import MirroredBuffers
from edgelm.runtime import single_steps
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.single_steps import MOST_ROWS, SingleSteps
from edgelm.testing import tiny_model_path
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

needs_mirrors = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="mirrored memory is Linux's")


def load(folder: Path, threads: int = 2) -> DecoderSession:
    return DecoderSession(folder, ModelConfig.load(folder), SessionOptions(threads=threads))


@pytest.fixture(scope="module")
def session() -> DecoderSession:
    return load(tiny_model_path())


@pytest.fixture(scope="module", params=["int8", "int4"])
def session_of_precision(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderSession:
    folder = tmp_path_factory.mktemp("packages")
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint"))
    export_unchecked(checkpoint, folder / request.param, request.param)
    return load(folder / request.param)


def random_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 320, length).tolist()


def test_a_system_without_mirrored_memory_is_told(monkeypatch: pytest.MonkeyPatch, session: DecoderSession) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    own = load(tiny_model_path())
    assert own.most_single_steps() == 1
    check_bits(own, 5)


@needs_mirrors
@pytest.mark.parametrize("refused", ["memory", "its places"])
def test_memory_that_is_refused_leaves_the_cache_as_it_was(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    session = load(tiny_model_path(), threads=1)
    cache = session.new_cache()
    assert session.most_single_steps() == MOST_ROWS
    session.forward(random_ids(20), cache)

    def refuse(*_: object) -> NoReturn:
        raise OSError("no memory")

    if refused == "memory":
        monkeypatch.setattr(single_steps, "MirroredBuffers", refuse)
    else:
        monkeypatch.setattr(MirroredBuffers, "show", refuse)
    rows_TV = session.forward_single_steps(random_ids(4, seed=1), cache)
    assert session.most_single_steps() == 1
    alone = session.new_cache()
    session.forward(random_ids(20), alone)
    single_TV = np.concatenate([session.forward((id_,), alone).copy() for id_ in random_ids(4, seed=1)])
    np.testing.assert_array_equal(rows_TV, single_TV)


@needs_mirrors
def test_the_tiny_model_steps_as_many_tokens_at_once_as_there_are_rows(session: DecoderSession) -> None:
    assert session.most_single_steps() == MOST_ROWS


@needs_mirrors
def test_a_cache_that_changes_its_adapter_steps_with_its_own(tmp_path: Path) -> None:
    model = edgelm.load(tiny_model_path(), SessionOptions(threads=1))
    session, ids = model.session, random_ids(24)
    cache = session.new_cache()
    assert session.most_single_steps() == MOST_ROWS

    def check(adapter: str | None) -> None:
        alone = session.new_cache()
        for held in (cache, alone):
            held.use_adapter(adapter)
            held.truncate(0)
            session.forward(ids[:20], held)
        rows_TV = session.forward_single_steps(ids[20:], cache)
        single_TV = np.concatenate([session.forward((id_,), alone).copy() for id_ in ids[20:]])
        np.testing.assert_array_equal(rows_TV, single_TV)

    check(None)
    model.load_adapter(write_tiny_adapter(tmp_path / "adapter"), "mine")  # puts another graph in the place of the first
    for adapter in (None, "mine", None):
        check(adapter)
    model.unload_adapter("mine")
    check(None)


def check_bits(session: DecoderSession, seed: int) -> None:
    draw = random.Random(seed)
    ids = random_ids(GROWTH_STEP + 90, seed)
    start = draw.choice([1, 2, 33, 100, GROWTH_STEP - 3])
    alone, together = session.new_cache(), session.new_cache()
    session.forward(ids[:start], alone)
    session.forward(ids[:start], together)
    while together.length < len(ids):
        count = min(draw.randint(1, MOST_ROWS + 2), len(ids) - together.length)
        wrong = random_ids(draw.randint(0, 5), together.length)  # guesses that are dropped again
        piece = ids[together.length : together.length + count]
        rows_TV = session.forward_single_steps([*piece, *wrong], together)[:count].copy()
        together.truncate(together.length - len(wrong))
        single_TV = np.concatenate([session.forward((id_,), alone).copy() for id_ in piece])
        np.testing.assert_array_equal(rows_TV, single_TV)
    assert together.token_ids == alone.token_ids
    for one, other in zip(together.buffers, alone.buffers, strict=True):
        np.testing.assert_array_equal(one[:, :, : len(ids)], other[:, :, : len(ids)])


@pytest.mark.parametrize("seed", range(4))
def test_tokens_stepped_together_have_the_bits_of_single_steps(session: DecoderSession, seed: int) -> None:
    check_bits(session, seed)


@pytest.mark.parametrize("seed", range(2))
def test_tokens_stepped_together_have_those_bits_in_every_precision(
    session_of_precision: DecoderSession, seed: int
) -> None:
    check_bits(session_of_precision, seed)


@needs_mirrors
def test_keys_and_values_in_int8_are_stepped_together_too(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, num_key_value_heads=2)  # so that a row is whole pages
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    export_unchecked(checkpoint, tmp_path / "package", PRECISIONS["fp32"].with_int8_cache())
    session = load(tmp_path / "package")
    assert session.most_single_steps() == MOST_ROWS
    check_bits(session, 0)


@needs_mirrors
@pytest.mark.parametrize(
    ("features", "precision", "most"),
    [
        ("experts", "int8", MOST_ROWS),
        ("experts in one layer, with biases", "fp32", 1),  # an expert multiplies its tokens together
        ("experts weighted by a sigmoid", "int8", 1),
    ],
)
def test_experts_step_tokens_together_where_that_changes_no_bit(
    features: str, precision: str, most: int, tmp_path: Path
) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config_with(FEATURES[features])))
    export_unchecked(checkpoint, tmp_path / "package", precision)
    session = load(tmp_path / "package", threads=1)
    assert session.most_single_steps() == most
    check_bits(session, 0)


def test_one_thread_gives_the_same_bits() -> None:
    check_bits(load(tiny_model_path(), threads=1), 1)


@pytest.fixture(params=[("attn_logit_softcapping", 20.0), ("attention_sinks", True)], ids=lambda field: str(field[0]))
def row_by_row(request: pytest.FixtureRequest, tmp_path: Path) -> DecoderSession:
    config = dataclasses.replace(CONFIG, **dict([request.param]))
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    export_unchecked(checkpoint, tmp_path / "package", "fp32")
    return load(tmp_path / "package")


def test_where_rows_may_not_see_each_other_tokens_are_stepped_alone(row_by_row: DecoderSession) -> None:
    assert row_by_row.most_single_steps() == 1
    check_bits(row_by_row, 3)
    threads = load(tiny_model_path(), threads=3)  # more than its heads: a token alone is split among them
    assert threads.most_single_steps() == 1


def never_bound(*_: object) -> NoReturn:
    raise AssertionError("nothing is to be tried")


def test_where_there_is_nothing_to_try_tokens_are_stepped_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.load(tiny_model_path())
    short = dataclasses.replace(config, max_position_embeddings=16)
    assert SingleSteps(short, 1, never_bound).most() == 1
    monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    assert SingleSteps(config, 1, never_bound).most() == 1


def test_a_row_of_a_batch_is_stepped_alone(session: DecoderSession) -> None:
    row = KVBatch(session.config).add()
    alone = session.new_cache()
    rows_TV = session.forward_single_steps(random_ids(3), row)
    np.testing.assert_array_equal(rows_TV[-1:], np.concatenate([
        session.forward((id_,), alone).copy() for id_ in random_ids(3)
    ])[-1:])  # fmt: skip
