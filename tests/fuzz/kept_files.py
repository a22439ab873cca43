"""What edgelm keeps for itself, and may find changed."""

from __future__ import annotations

from pathlib import Path

from fuzz.mutations import mutate_bytes
from fuzz.target import Target, tiny_package

from edgelm.config import ModelConfig
from edgelm.memory.kv_cache import KVCache


def _cache_seeds(folder: Path) -> list[bytes]:
    config = ModelConfig.load(_tiny(folder))
    cache = KVCache(config)
    cache.reserve(3)
    cache.token_ids = [5, 6, 7]
    cache.save(folder / "cache", "tiny")
    return [(folder / "cache").read_bytes()]


def _tiny(folder: Path) -> Path:
    tiny_package(folder)
    return folder


def _read_cache(folder: Path) -> None:
    KVCache.load(folder / "cache", ModelConfig.load(folder), "tiny")


ROWS: dict[str, Target] = {
    "kv-cache": Target(
        file="cache", prepare=_cache_seeds, mutate=mutate_bytes, read=_read_cache, count=500, long_count=100_000,
    ),
}  # fmt: skip
