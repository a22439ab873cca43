from dataclasses import replace
from typing import NoReturn

import numpy as np
import pytest

from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError
from edgelm.memory import kv_batch
from edgelm.memory.kv_batch import KVBatch, KVRow
from edgelm.memory.kv_cache import GROWTH_STEP
from edgelm.testing import tiny_model_path


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.load(tiny_model_path())


def fill(row: KVRow, length: int, value: float) -> KVRow:
    row.reserve(length)
    row.token_ids = list(range(length))
    for i, buffer in enumerate(row.buffers):
        buffer[:, :, :length] = value + i / 100
    return row


def holds(row: KVRow, length: int, value: float) -> bool:
    return row.length == length and all(
        bool((buffer[:, :, :length] == np.float32(value + i / 100)).all()) for i, buffer in enumerate(row.buffers)
    )


def test_an_empty_batch_takes_no_memory(config: ModelConfig) -> None:
    batch = KVBatch(config)
    assert sum(buffer.nbytes for buffer in batch.buffers) == 0
    row = fill(batch.add(), 10, 1.0)
    assert sum(row.length for row in batch.rows) == 10
    batch.remove(row)
    assert (sum(buffer.nbytes for buffer in batch.buffers), batch.rows) == (0, [])


def test_a_row_is_a_view_on_the_batch(config: ModelConfig) -> None:
    batch = KVBatch(config)
    rows = [fill(batch.add(), 5, float(i)) for i in range(3)]
    for place, row in enumerate(rows):
        assert row.place == place
        assert all(np.shares_memory(mine, whole) for mine, whole in zip(row.buffers, batch.buffers, strict=True))
        assert all(buffer.flags.c_contiguous for buffer in row.buffers)


def test_growth_keeps_every_row(config: ModelConfig) -> None:
    batch = KVBatch(config)
    rows = [fill(batch.add(), 10 + i, float(i)) for i in range(5)]
    rows[2].reserve(GROWTH_STEP + 1)
    assert batch.capacity == 2 * GROWTH_STEP
    assert all(holds(row, 10 + i, float(i)) for i, row in enumerate(rows))


def test_rows_grow_by_a_quarter_up_to_the_context(config: ModelConfig) -> None:
    batch = KVBatch(replace(config, max_position_embeddings=1000))
    row = batch.add()
    for length, capacity in ((600, 640), (641, 896), (990, 1000)):
        row.reserve(length)
        assert batch.capacity == capacity


def test_rows_that_leave_and_rows_that_are_ready_change_places(config: ModelConfig) -> None:
    batch = KVBatch(config)
    rows = {name: fill(batch.add(), 20 + i, float(i)) for i, name in enumerate("abcdef")}
    for name in "cab":  # of the six, three are ready
        batch.activate(rows[name])
    assert batch.active == 3
    assert {id(row) for row in batch.rows[:3]} == {id(rows[name]) for name in "cab"}
    for leaves in "cf":  # one that is active, and one that is being filled
        batch.remove(rows.pop(leaves))
    assert batch.active == 2
    assert [row.place for row in batch.rows] == [0, 1, 2, 3]
    assert {id(row) for row in batch.rows[:2]} == {id(rows["a"]), id(rows["b"])}
    assert all(holds(row, 20 + "abcdef".index(name), float("abcdef".index(name))) for name, row in rows.items())


def test_rows_stay_where_they_are_when_memory_that_may_be_shown_is_refused(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("no memory")

    batch = KVBatch(config)
    row = fill(batch.add(), 10, 1.0)
    before = batch.buffers
    monkeypatch.setattr(kv_batch, "MirroredBuffers", refuse)
    monkeypatch.setattr(kv_batch, "zeros", refuse)  # there is none for a copy either
    assert not batch.mirror()
    assert batch.buffers is before
    assert holds(row, 10, 1.0)


def test_a_row_never_grows_past_the_context(config: ModelConfig) -> None:
    row = KVBatch(config).add()
    row.reserve(1024)
    with pytest.raises(ContextLengthError, match=r"1025 tokens do not fit the 1024 of a batch's row"):
        row.reserve(1025)


def test_the_bytes_of_a_token_are_those_of_its_keys_and_values(config: ModelConfig) -> None:
    row = KVBatch(config).add()
    row.reserve(GROWTH_STEP)
    assert sum(buffer.nbytes for buffer in row.buffers) == GROWTH_STEP * config.kv_bytes_per_token
