"""Adapters on the server: each is a model of its own to clients, and shares one with the others in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import invoke
from edgelm_server import TINY, EdgelmServer
from tiny_adapter import describe, write_tiny_adapter

from edgelm.errors import PackageError
from edgelm.language_model import LanguageModel
from edgelm.loading import load
from edgelm.package.adapter import AdapterManifest
from edgelm.server import model_pool
from edgelm.server.api_error import ApiError
from edgelm.server.model_pool import ModelPool
from edgelm.server.options import ServerOptions

PROMPT = {"prompt": "The sea is blue", "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_adapter(tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture(scope="module")
def serving_adapters(adapter: Path) -> Iterator[EdgelmServer]:
    with EdgelmServer((TINY, "--adapter", str(adapter), "--adapter", f"shop={adapter}")) as server:
        yield server


@pytest.fixture(scope="module")
def adapted(adapter: Path) -> LanguageModel:
    model = load(TINY)
    model.load_adapter(adapter)
    return model.adapted("mine")


def test_adapters_are_listed_beside_their_model(serving_adapters, adapter):
    listed = serving_adapters.get("/v1/models").json["data"]
    parents = {"tiny-random": None, "mine": "tiny-random", "shop": "tiny-random"}
    assert {model["id"]: model["parent"] for model in listed} == parents
    assert serving_adapters.get("/v1/models/shop").json["parent"] == "tiny-random"
    digests = {model["name"]: model["digest"] for model in serving_adapters.get("/api/tags").json["models"]}
    assert digests.keys() == {f"{name}:latest" for name in parents}
    # Clients take names of one digest for one model; "shop" is "mine" under another name.
    assert digests["mine:latest"] == digests["shop:latest"] == AdapterManifest.load(adapter).file.sha256
    assert digests["tiny-random:latest"] != digests["mine:latest"]


def test_a_request_names_the_adapter_as_its_model(serving_adapters, adapted):
    texts = {}
    for name in ("tiny-random", "mine", "shop", None):
        reply = serving_adapters.post("/v1/completions", PROMPT | ({"model": name} if name else {})).json
        assert reply["model"] == (name or "tiny-random")
        texts[name] = reply["choices"][0]["text"]
    config = adapted.generation_config.replace(max_new_tokens=8, ignore_eos=True)
    assert texts["mine"] == texts["shop"] == adapted.generate("The sea is blue", config).text
    assert texts["tiny-random"] == texts[None] == adapted.generate("The sea is blue", config.replace(adapter=None)).text
    assert texts["mine"] != texts[None]


def test_prompts_are_scored_and_embedded_with_the_adapter(serving_adapters, adapted):
    body = PROMPT | {"model": "mine", "echo": True, "logprobs": 0, "max_tokens": 0}
    scored = serving_adapters.post("/v1/completions", body).json["choices"][0]["logprobs"]["token_logprobs"]
    assert scored[1:] == pytest.approx([token.logprob for token in adapted.score("The sea is blue").tokens], abs=1e-5)
    (data,) = serving_adapters.post("/v1/embeddings", {"model": "mine", "input": "The sea"}).json["data"]
    assert data["embedding"] == pytest.approx(adapted.embed(["The sea"])[0].tolist(), abs=1e-5)


def test_an_adapter_is_unloaded_with_its_model_and_loaded_again(serving_adapters):
    before = serving_adapters.post("/v1/completions", PROMPT | {"model": "mine"}).json["choices"]
    unloaded = serving_adapters.post("/api/generate", {"model": "mine", "keep_alive": 0}).json
    assert unloaded["done_reason"] == "unload"
    assert serving_adapters.get("/api/ps").json["models"] == []
    assert serving_adapters.post("/v1/completions", PROMPT | {"model": "mine"}).json["choices"] == before


def test_an_adapter_that_is_gone_takes_neither_its_model_nor_the_others_with_it(adapter: Path, tmp_path: Path) -> None:
    gone = write_tiny_adapter(tmp_path / "gone")
    with EdgelmServer((TINY, "--adapter", f"gone={gone}", "--adapter", str(adapter))) as server:
        gone.rename(tmp_path / "elsewhere")
        for _ in range(2):
            reply = server.post("/v1/completions", PROMPT | {"model": "gone"})
            assert reply.status == 503
            assert reply.json["error"]["message"] == "The model 'gone' cannot be loaded; the server's log says why."
            assert server.post("/v1/completions", PROMPT | {"model": "tiny-random"}).status == 200
            assert server.post("/v1/completions", PROMPT | {"model": "mine"}).status == 200
        (tmp_path / "elsewhere").rename(gone)
        assert server.post("/api/generate", {"model": "mine", "keep_alive": 0}).status == 200
        assert server.post("/v1/completions", PROMPT | {"model": "gone"}).status == 200
        server.stop()
        assert sum(f"Cannot load gone: There is no adapter at {gone}" in line for line in server.log) == 1


def test_an_adapter_that_was_exported_again_answers_the_next_request(tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "adapter")
    pool = ModelPool((TINY,), ServerOptions(adapters=((None, folder),)))

    async def scored() -> float:
        served = await pool.acquire("mine")
        served.release()
        return served.model.score("The sea is blue").perplexity

    async def main() -> None:
        async with pool.running():
            old, digest = await scored(), pool.digest("mine", pool.package("mine"))
            describe(write_tiny_adapter(folder, shapes=((3, 32), (32, 3))), rank=3)
            assert await scored() != old
            now = pool.digest("mine", pool.package("mine"))
            assert now == AdapterManifest.load(folder).file.sha256 != digest

    asyncio.run(main())


def test_what_adapters_hold_is_looked_for_with_their_models_memory(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 10**7  # for the model and its answers
    monkeypatch.setattr(model_pool, "available_memory", lambda: room)
    monkeypatch.setattr(model_pool, "memory_to_load", lambda *_, **__: 8 * 10**6)
    pool = ModelPool((TINY,), ServerOptions(adapters=((None, adapter),)))
    with pytest.raises(ApiError, match="There is no memory for this model"):
        asyncio.run(pool.acquire("tiny-random"))
    room += 2 * AdapterManifest.load(adapter).file.size

    async def main() -> None:
        async with pool.running():
            (await pool.acquire("mine")).release()

    asyncio.run(main())


def test_an_adapter_that_would_keep_its_model_from_loading_is_not_offered(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write_tiny_adapter(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(PackageError, match=r"adapter_model\.safetensors has 7 bytes; the manifest says"):
        ModelPool((TINY,), ServerOptions(adapters=((None, broken),)))
    (tmp_path / "publisher.pub").touch()
    monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(tmp_path / "publisher.pub"))
    with pytest.raises(PackageError, match=r"is not signed \(it has no edgelm\.sig\), and a signature is required"):
        ModelPool((TINY,), ServerOptions(adapters=((None, adapter),)))


def test_an_adapter_without_its_model_or_with_a_models_name_is_refused(adapter: Path, tmp_path: Path) -> None:
    stranger = write_tiny_adapter(tmp_path / "stranger")
    describe(stranger, base="another", base_fingerprint="0" * 64)
    for option, words in (
        (str(stranger), "belongs to the package another (000000000000), which is not served. Serve that one"),
        (f"tiny-random={adapter}", "There is a model 'tiny-random' already. Name the adapter: --adapter NAME="),
    ):
        result = invoke("serve", TINY, "--port", "0", "--adapter", option)
        assert result.exit_code == 1
        assert words in result.output
