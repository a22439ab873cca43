import copy
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ContextLengthError, EdgeLMError, PackageError
from edgelm.memory import huge_pages
from edgelm.memory.kv_cache import GROWTH_STEP, KVCache, most_bytes
from edgelm.memory.returned_memory import CAN_RETURN
from edgelm.testing import tiny_model_path


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig.load(tiny_model_path())


def filled(config: ModelConfig, length: int) -> KVCache:
    cache = KVCache(config)
    cache.reserve(length)
    cache.token_ids = list(range(length))
    random = np.random.default_rng(length)
    for buffer in cache.buffers:
        buffer[:, :, :length] = random.standard_normal(buffer[:, :, :length].shape)
    return cache


def content(cache: KVCache) -> np.ndarray:
    return np.stack([buffer[:, :, : cache.length] for buffer in cache.buffers])


def test_an_empty_cache_takes_no_memory(config: ModelConfig) -> None:
    assert sum(buffer.nbytes for buffer in KVCache(config).buffers) == 0


def test_the_cache_grows_in_steps_and_keeps_what_it_holds(config: ModelConfig) -> None:
    cache = filled(config, GROWTH_STEP)
    assert cache.capacity == GROWTH_STEP
    before = content(cache)
    cache.reserve(GROWTH_STEP + 1)
    assert cache.capacity == 2 * GROWTH_STEP
    np.testing.assert_array_equal(content(cache), before)


def test_the_cache_never_grows_past_the_context(config: ModelConfig) -> None:
    cache = KVCache(config)
    cache.reserve(config.max_position_embeddings - 1)
    assert cache.capacity == config.max_position_embeddings
    with pytest.raises(ContextLengthError, match=r"1025 tokens do not fit the model's context of 1024"):
        cache.reserve(config.max_position_embeddings + 1)
    odd = KVCache(replace(config, max_position_embeddings=1000))
    odd.reserve(990)
    assert odd.capacity == 1000


def test_a_long_cache_grows_by_a_quarter(config: ModelConfig) -> None:
    cache = KVCache(replace(config, max_position_embeddings=4096))
    for length, capacity in ((2048, 2048), (2049, 2560), (2561, 3200), (3900, 4096)):
        cache.reserve(length)
        assert cache.capacity == capacity


@pytest.mark.parametrize(("context", "held"), [(1024, (40 + 128 + 256, 1024)), (300, (300, 300))])
def test_a_full_context_takes_the_windows_and_what_is_kept_behind_them(
    config: ModelConfig, context: int, held: tuple[int, int]
) -> None:
    windowed = replace(
        config,
        max_position_embeddings=context,
        sliding_window=40,
        layer_types=("sliding_attention", "full_attention"),
    )
    # A key and a value of one head of 16 floats.
    assert most_bytes(windowed) == sum(held) * 2 * 16 * 4


def test_truncate_forgets_the_tail(config: ModelConfig) -> None:
    cache = filled(config, 5)
    cache.truncate(3)
    assert cache.token_ids == [0, 1, 2]
    for length in (4, -1, 1.5, None):
        with pytest.raises(ConfigError, match=f"Cannot truncate a cache of 3 tokens to {length}; .* of 0 to 3"):
            cache.truncate(length)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "length"), [([0, 1, 2, 3, 9], 4), ([0, 1], 2), ([7], 0), ([], 0), ([0, 1, 2, 3, 4, 5, 6], 5)]
)
def test_common_prefix_counts_equal_tokens_from_the_first(config: ModelConfig, wanted: list[int], length: int) -> None:
    assert filled(config, 5).common_prefix(wanted) == length


def test_a_clone_goes_on_independently(config: ModelConfig) -> None:
    cache = filled(config, 4)
    clone = cache.clone()
    np.testing.assert_array_equal(content(clone), content(cache))
    clone.truncate(1)
    clone.buffers[0][:] = 0
    assert cache.length == 4
    assert cache.buffers[0].any()


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_cache_is_copied_by_clone_alone(copy_of: Callable[[KVCache], object], config: ModelConfig) -> None:
    with pytest.raises(EdgeLMError, match=r"Copy it with clone\(\), and give it to another process with save\(\)"):
        copy_of(filled(config, 4))


def test_a_saved_cache_is_loaded_as_it_was(config: ModelConfig, tmp_path: Path) -> None:
    cache = filled(config, 300)
    cache.save(tmp_path / "chat.npz", "model-a")
    loaded = KVCache.load(tmp_path / "chat.npz", config, "model-a")
    assert loaded.token_ids == cache.token_ids
    np.testing.assert_array_equal(content(loaded), content(cache))


def test_a_saved_cache_of_another_model_is_refused_by_name(config: ModelConfig, tmp_path: Path) -> None:
    filled(config, 3).save(tmp_path / "chat.npz", "model-a")
    with pytest.raises(PackageError, match=r"belongs to another model \(model-a\), not to model-b"):
        KVCache.load(tmp_path / "chat.npz", config, "model-b")


def test_a_saved_cache_of_another_shape_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    filled(config, 3).save(tmp_path / "chat.npz", "model-a")
    other = ModelConfig.from_dict(config.to_dict() | {"num_hidden_layers": 1})
    with pytest.raises(
        PackageError,
        match=r"has filled of shape \(4, 1, 1, 3, 16\), float32; expected filled of shape \(2, 1, 1, 3, 16\)",
    ):
        KVCache.load(tmp_path / "chat.npz", other, "model-a")


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_file(config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "chat.npz", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match=f"{path} cannot be written: .* Name a file in a folder that is there"):
            filled(config, 3).save(path, "model-a")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_cache_that_an_adapter_computed_is_not_saved_as_the_models_own(config: ModelConfig, tmp_path: Path) -> None:
    cache = KVCache(config)
    cache.use_adapter("mine")
    with pytest.raises(ConfigError, match=r"The adapter 'mine' computed this cache, .* ChatSession\.save keeps"):
        cache.save(tmp_path / "chat.npz", "model-a")
    assert not list(tmp_path.iterdir())


def test_a_saved_cache_beyond_the_context_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    filled(config, 60).save(tmp_path / "chat.npz", "model-a")
    shorter = replace(config, max_position_embeddings=59)
    with pytest.raises(PackageError, match=r"chat.npz has 60 tokens, and the model a context of 59: it was changed or"):
        KVCache.load(tmp_path / "chat.npz", shorter, "model-a")
    assert KVCache.load(tmp_path / "chat.npz", replace(config, max_position_embeddings=60), "model-a").length == 60


def test_a_broken_saved_cache_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    filled(config, 3).save(tmp_path / "chat.npz", "model-a")
    content = (tmp_path / "chat.npz").read_bytes()
    for broken in (b"", content[: len(content) // 2], b"PK\x03\x04" + content[40:], b"junk", content[4:], b"\x93NUMPY"):
        (tmp_path / "chat.npz").write_bytes(broken)
        with pytest.raises(
            PackageError, match=r"Cannot read the saved cache .* Without this file, what it holds is computed"
        ) as caught:
            KVCache.load(tmp_path / "chat.npz", config, "model-a")
        assert "pickle" not in str(caught.value)  # which numpy advises to trust


def test_a_cache_that_cannot_grow_for_lack_of_memory_keeps_what_it_holds(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled(config, GROWTH_STEP)
    before = content(cache)

    def no_memory(count: int, shape: tuple[int, ...], dtype: object) -> list[np.ndarray]:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(huge_pages, "zeros", no_memory)
        with pytest.raises(MemoryError):
            cache.reserve(GROWTH_STEP + 1)
    np.testing.assert_array_equal(content(cache), before)
    cache.reserve(GROWTH_STEP + 1)
    assert cache.capacity == 2 * GROWTH_STEP


@pytest.mark.parametrize("place", ["between two buffers", "when all are copied"])
def test_a_cache_whose_growth_is_interrupted_is_empty(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cache, given_back = filled(config, GROWTH_STEP), list[np.ndarray]()

    def second(array: np.ndarray) -> None:
        given_back.append(array)
        if len(given_back) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:

        def once(cache: KVCache, buffers: object) -> None:
            patch.undo()
            raise KeyboardInterrupt

        if place == "between two buffers":
            patch.setattr("edgelm.memory.kv_cache.give_back", second)
        else:
            patch.setattr(KVCache, "buffers", property(KVCache.buffers.fget, once))
        with pytest.raises(KeyboardInterrupt):
            cache.reserve(GROWTH_STEP + 1)
    assert (cache.length, cache.capacity) == (0, 0)
    cache.reserve(1)
    assert not content(cache).any()
    assert len(cache.buffers) == len(KVCache(config).buffers)


@pytest.mark.skipif(not CAN_RETURN, reason="elsewhere a cache is there twice while it grows")
def test_a_large_cache_is_never_there_twice(config: ModelConfig) -> None:
    def kilobytes(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[1])

    large = replace(config, num_hidden_layers=64, max_position_embeddings=1 << 16)
    size = 64 << 20
    cache = filled(large, size // large.kv_bytes_per_token)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before, sums = kilobytes("VmRSS"), [buffer[:, :, : cache.length].sum() for buffer in cache.buffers]
    cache.reserve(cache.capacity + 1)
    assert kilobytes("VmHWM") - before < size / 2 / 1024
    assert [buffer[:, :, : cache.length].sum() for buffer in cache.buffers] == sums


@pytest.mark.parametrize(
    ("token_ids", "problem"),
    [
        (np.zeros((1, 2), np.int64), r"has token ids of shape \(1, 2\), int64"),
        (np.zeros(2, np.float32), r"has token ids of shape \(2,\), float32"),
        (np.array("five"), r"has token ids of shape \(\), <U4"),
    ],
)
def test_a_saved_cache_with_other_token_ids_is_refused(
    config: ModelConfig, tmp_path: Path, token_ids: NDArray[Any], problem: str
) -> None:
    path = tmp_path / "cache.npz"
    np.savez(path, fingerprint=np.array("tiny"), token_ids=token_ids, filled=np.zeros(1, np.float32))

    with pytest.raises(PackageError, match=problem):
        KVCache.load(path, config, "tiny")


def test_a_saved_cache_with_token_ids_that_take_no_room_is_refused_unread(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "cache.npz"
    np.savez(path, fingerprint=np.array("tiny"), filled=np.zeros(1, np.float32))
    with zipfile.ZipFile(path, "a") as archive, archive.open("token_ids.npy", "w") as file:
        header = {"descr": "|V0", "fortran_order": False, "shape": (1 << 40,)}
        np.lib.format.write_array_header_1_0(file, header)

    with pytest.raises(PackageError, match=r"has token ids of shape \(1099511627776,\), \|V0"):
        KVCache.load(path, config, "tiny")


def test_a_saved_cache_of_another_type_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    filled(replace(config, kv_cache="int8"), 3).save(tmp_path / "cache.npz", "tiny")

    with pytest.raises(PackageError, match=r"has filled of shape .*, int8; expected filled of .*, float32"):
        KVCache.load(tmp_path / "cache.npz", config, "tiny")


@pytest.mark.parametrize("released", [np.array(0.5), np.array(-1), np.array([1, 2]), np.array("1")])
def test_a_saved_cache_that_leaves_out_what_is_no_number_of_tokens_is_refused(
    config: ModelConfig, tmp_path: Path, released: NDArray[Any]
) -> None:
    windowed, path = replace(config, sliding_window=4), tmp_path / "cache.npz"
    filled(windowed, 9).save(path, "tiny")
    with np.load(path) as saved:
        parts = dict(saved)
    np.savez(path, **parts | {"released": released})

    with pytest.raises(PackageError, match=r"leaves out .* of 9 tokens; the windows of this model allow for 5"):
        KVCache.load(path, windowed, "tiny")


def test_a_saved_cache_that_says_it_is_larger_than_its_file_is_refused_unread(
    config: ModelConfig, tmp_path: Path
) -> None:
    path = tmp_path / "cache.npz"
    np.savez(path, fingerprint=np.array("tiny"), token_ids=np.zeros(1, np.int64), filled=np.zeros(1, np.float32))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = members["filled.npy"]
    members["filled.npy"] = header.replace(b"(1,), }          ", b"(1099511627776,),}")[: len(header)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)

    with pytest.raises(PackageError, match=r"filled has the shape \(1099511627776,\), and \d+ bytes are there"):
        KVCache.load(path, config, "tiny")


def test_an_array_in_another_version_of_its_format_is_refused(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "cache.npz"
    np.savez(path, fingerprint=np.array("tiny"), token_ids=np.zeros(1, np.int64), filled=np.zeros(1, np.float32))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["fingerprint.npy"] = members["fingerprint.npy"][:6] + b"\3\0" + members["fingerprint.npy"][8:]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)

    with pytest.raises(PackageError, match="fingerprint is stored in another way than edgelm does"):
        KVCache.load(path, config, "tiny")


def longrope(config: ModelConfig) -> ModelConfig:
    pairs = config.head_dim // 2
    scaling = RopeScaling(
        rope_type="longrope",
        factor=4.0,
        original_max_position_embeddings=200,
        short_factor=(1.0,) * pairs,
        long_factor=(2.0,) * pairs,
    )
    return replace(config, max_position_embeddings=1024, rope_scaling=scaling)


def test_a_longrope_cache_has_room_beyond_the_original_context_only_for_a_longer_text(
    config: ModelConfig,
) -> None:
    for length in (200, 190):
        cache = KVCache(longrope(config))
        cache.reserve(length)
        assert cache.capacity == 200
    cache.token_ids = list(range(190))
    assert not cache.is_outgrown_by(200)
    assert cache.is_outgrown_by(201)
    cache.reserve(201)
    assert cache.capacity > 201
    assert not cache.is_outgrown_by(300)


def test_a_long_text_that_becomes_a_short_one_again_is_forgotten_since_it_turns_otherwise(
    config: ModelConfig,
) -> None:
    cache = KVCache(longrope(config))
    cache.reserve(250)
    cache.token_ids = list(range(250))
    cache.truncate(201)
    assert cache.length == 201
    cache.truncate(200)
    assert (cache.length, cache.capacity) == (0, 0)
    cache.reserve(250)
    cache.token_ids = list(range(50))  # of a long text, whose computing was broken off
    cache.truncate(50)
    assert (cache.length, cache.capacity) == (0, 0)


def test_a_long_text_that_was_only_begun_is_neither_copied_nor_saved_as_a_short_one(
    config: ModelConfig, tmp_path: Path
) -> None:
    for keep in (KVCache.clone, lambda cache: saved(cache, tmp_path)):
        cache = KVCache(longrope(config))
        cache.reserve(250)
        cache.token_ids = list(range(50))
        assert keep(cache).length == 0


def saved(cache: KVCache, folder: Path) -> KVCache:
    cache.save(folder / "cache", "model")
    return KVCache.load(folder / "cache", cache.config, "model")
