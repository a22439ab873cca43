"""What edgelm keeps for itself, and may find changed: conversations and their keys and values, runs, shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

from fuzz.mutations import mutate_bytes, mutate_json
from fuzz.target import Target, tiny_package

from edgelm.chat_session import ChatSession
from edgelm.config import ModelConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.kv_cache import KVCache
from edgelm.saved_session import CONVERSATION_FILE, SavedSessions
from edgelm.testing import scripted_model, tiny_model_path
from edgelm_training.runs.run_folder import CHECKPOINTS, STATE_FILE, TRAINER_FOLDER, RunFolder
from edgelm_training.texts.shards import INDEX_FILE, SPLITS, Shards

_SESSION = "mine"
_SHARDS, _PLACES = "shards", "train-00000.idx.npy"
_CHECKPOINT = f"{CHECKPOINTS}/step-00000002"


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


@cache
def _model() -> LanguageModel:
    return scripted_model("The sea.")


def _session_seeds(folder: Path) -> list[bytes]:
    seeds = []
    for system in (None, "Be brief."):
        session = ChatSession(_model(), system)
        for text in ("What is it?", "Why?"):
            for _ in session.send(text):
                pass
        session.save(folder / _SESSION)
        seeds.append((folder / _SESSION / CONVERSATION_FILE).read_bytes())
    return seeds


def _read_session(folder: Path) -> None:
    """List a session, open it, go on with it, and save it again."""
    (described,) = SavedSessions(folder).sessions()
    assert f"{described.messages:,} {described.tokens:,} {described.model}"
    session = ChatSession.load(_model(), folder / _SESSION, any_model=True)
    for _ in session.send("And?"):
        pass
    session.save(folder / "again")
    shutil.rmtree(folder / "again")


def _run_seeds(folder: Path) -> list[bytes]:
    (folder / _CHECKPOINT / TRAINER_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / _CHECKPOINT / "config.json").write_text("{}")
    state = {"step": 2, "data_fingerprint": "x", "tokens": 5, "validation_loss": 1.5, "scaler": {},
             "files": {"config.json": 2}}  # fmt: skip
    return [json.dumps(state).encode()]


def _read_run(folder: Path) -> None:
    run = RunFolder(folder)
    newest, best = run.newest(), run.best()
    assert newest is None or best is None or f"{best.validation_loss:.4f}"


def _shard_seeds(folder: Path) -> list[bytes]:
    """Return an index.json in a line, with the places of the documents behind it."""
    from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards

    (folder / "texts.jsonl").write_text(
        "".join(f'{{"text": "The sea is {number} miles wide."}}\n' for number in range(20))
    )
    config = PrepareConfig(validation_fraction=0.2, end_token="<|endoftext|>", workers=1)
    prepare_shards([folder / "texts.jsonl"], folder / _SHARDS, tiny_model_path(), config)
    index = json.loads((folder / _SHARDS / INDEX_FILE).read_bytes())
    return [json.dumps(index).encode() + b"\n" + (folder / _SHARDS / _PLACES).read_bytes()]


def _mutate_shards(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    index, _, places = data.partition(b"\n")
    if random.random() < 0.6:
        return mutate_json(index, random).replace(b"\n", b" ") + b"\n" + places
    return index + b"\n" + mutate_bytes(places, random)


def _read_shards(folder: Path) -> None:
    index, _, places = (folder / _SHARDS / "both").read_bytes().partition(b"\n")
    (folder / _SHARDS / INDEX_FILE).write_bytes(index)
    (folder / _SHARDS / _PLACES).write_bytes(places)
    for split in SPLITS:
        shards = Shards.open(folder / _SHARDS, split)
        assert shards.fingerprint
        if shards.num_tokens:
            shards.read(0, min(shards.num_tokens, 1000))
            for number in range(min(shards.num_documents, 3)):
                shards.document(number)
                shards.place(number)


ROWS: dict[str, Target] = {
    "kv-cache": Target(
        file="cache", prepare=_cache_seeds, mutate=mutate_bytes, read=_read_cache, count=200, long_count=100_000,
    ),
    "session": Target(
        file=f"{_SESSION}/{CONVERSATION_FILE}", prepare=_session_seeds, mutate=mutate_json, read=_read_session,
        count=80, long_count=50_000,
    ),
    "run": Target(
        file=f"{_CHECKPOINT}/{TRAINER_FOLDER}/{STATE_FILE}", prepare=_run_seeds, mutate=mutate_json, read=_read_run,
        count=120, long_count=100_000,
    ),
    "shards": Target(
        file=f"{_SHARDS}/both", prepare=_shard_seeds, mutate=_mutate_shards, read=_read_shards, count=120,
        long_count=100_000,
    ),
}  # fmt: skip
