"""POST /v1/embeddings and /api/embed."""

from __future__ import annotations

import asyncio
import base64
import time
from types import SimpleNamespace

import numpy as np
import pytest
from edgelm_server import TINY, EdgelmServer

from edgelm.embedding import embed
from edgelm.errors import ContextLengthError
from edgelm.server import embeddings

SEA = "The sea is blue"
PAIRS = [
    ("How do I reset my password?", "I forgot my login secret and need a new one."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
    ("What is the weather like tomorrow?", "Will it rain on the next day?"),
    ("The stock market fell sharply today.", "Shares dropped a lot in trading."),
    ("The engine of the car is broken.", "My vehicle does not start any more."),
    ("The train to Berlin is late.", "There is a delay on the railway line."),
    ("Plants need light to grow.", "Photosynthesis turns sunlight into sugar."),
    ("The court found him guilty.", "A judge sentenced the thief to prison."),
]


def vectors(reply):
    assert reply.status == 200, reply.data
    return [row["embedding"] for row in reply.json["data"]]


def test_texts_and_ids_become_vectors_of_length_one(serving, tiny):
    ids = tiny.tokenizer.encode(SEA)
    expected = embed(tiny, ids)
    assert expected.shape == (2 * 1 * 16,)  # the tiny model has two layers, one kv head of 16
    for given in (SEA, [SEA], ids, [ids]):
        (vector,) = vectors(serving.post("/v1/embeddings", {"input": given}))
        # float32 in decimal; 0.0 measured.
        assert vector == pytest.approx(expected.tolist(), abs=1e-7)
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)


def test_base64_holds_the_same_numbers(serving):
    first = vectors(serving.post("/v1/embeddings", {"input": [SEA, "x"]}))
    second = vectors(serving.post("/v1/embeddings", {"input": [SEA, "x"], "encoding_format": "base64"}))
    for floats, text in zip(first, second, strict=True):
        assert np.frombuffer(base64.b64decode(text), "<f4").tolist() == pytest.approx(floats)


@pytest.mark.parametrize("pooling", ["values", "mean", "last"])
def test_a_request_chooses_what_is_pooled(serving, tiny, pooling):
    (vector,) = vectors(serving.post("/v1/embeddings", {"input": SEA, "pooling": pooling}))
    # float32 in decimal; 0.0 measured.
    assert vector == pytest.approx(tiny.embed([SEA], pooling=pooling)[0].tolist(), abs=1e-7)


def test_ollama_cuts_off_what_does_not_fit_unless_it_is_told_not_to(serving):
    body = {"model": "tiny-random", "input": [SEA, "x" * 3000]}
    answer = serving.post("/api/embed", body).json
    assert len(answer["embeddings"]) == 2
    assert serving.post("/api/embed", body | {"truncate": False}).status == 400


@pytest.mark.parametrize("nothing", [{}, {"input": ""}, {"input": []}])
def test_ollamas_clients_load_a_model_by_asking_for_vectors_of_nothing(serving, nothing):
    assert serving.post("/api/embed", {"model": "tiny-random", **nothing}).json["embeddings"] == []
    assert serving.metric('edgelm_model_users{model="tiny-random"}') == 0


def test_the_dimensions_that_an_embedding_has_may_be_asked_for(serving):
    for path, body in (("/v1/embeddings", {"input": SEA}), ("/api/embed", {"model": "tiny-random", "input": SEA})):
        answers = [serving.post(path, body | more).json for more in ({}, {"dimensions": 32})]
        first, second = (answer.get("data") or answer["embeddings"] for answer in answers)
        assert first == second


def test_ollamas_older_form_has_one_text(serving):
    (expected,) = vectors(serving.post("/v1/embeddings", {"input": SEA}))
    body = {"model": "tiny-random:latest", "prompt": SEA, "options": None, "keep_alive": "5m"}
    assert serving.post("/api/embeddings", body).json == {"embedding": expected}
    assert len(serving.post("/api/embeddings", body | {"prompt": "x" * 3000}).json["embedding"]) == len(expected)
    assert serving.post("/api/embeddings", body | {"prompt": ""}).json == {"embedding": []}


def test_as_many_texts_as_openai_takes_are_embedded():
    by_length = "import numpy; from edgelm.server import embeddings; "  # the model itself would take seconds
    by_length += "embeddings.embed = lambda _model, ids, _pooling: numpy.float32([len(ids)])"
    with EdgelmServer(prelude=by_length) as server:
        texts = ["a", "a b", "a b c d"] * 682
        found = vectors(server.post("/v1/embeddings", {"input": [*texts, "a", "a b"]}))
        assert len({vector[0] for vector in found[:3]}) == 3
        assert found == (found[:3] * 683)[:2048]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": ""}, "input has no tokens; write at least one character."),
        ({"input": []}, "input has 0 items"),
        ({"input": "x" * 3000}, "this model's maximum context length is 1024"),
        ({"input": [99999]}, "The input has token id 99999; the model's are 0 to 319."),
        ({"input": "x", "dimensions": 8}, "dimensions is 8; this model's embeddings have 32."),
        ({"input": "x", "pooling": "max"}, "pooling"),
    ],
)
def test_what_cannot_be_done_is_refused(serving, body, words):
    reply = serving.post("/v1/embeddings", body)
    assert reply.status == 400
    assert words in reply.json["error"]["message"]


def test_no_tokens_have_no_embedding(tiny):
    with pytest.raises(ContextLengthError, match="needs one at least"):
        embed(tiny, [])


@pytest.mark.real_model
def test_related_sentences_find_each_other(smollm2_package):
    from edgelm.loading import load

    model = load(smollm2_package)
    left, right = (np.stack([embed(model, model.tokenizer.encode(pair[side])) for pair in PAIRS]) for side in (0, 1))
    similarities = left @ right.T
    found = (similarities.argmax(axis=1) == np.arange(8)).sum() + (similarities.argmax(axis=0) == np.arange(8)).sum()
    # 16 of 16 measured; chance is 2.
    assert found >= 14


def test_who_embeds_one_text_does_not_wait_for_all_of_who_embeds_many(tiny, monkeypatch):
    embedded = []
    served = SimpleNamespace(model=tiny, scoring=asyncio.Lock())

    def noting(_model, ids, _pooling):
        embedded.append(ids)
        while not served.scoring._waiters and embedded == [[1]]:
            time.sleep(0.001)  # until the other request waits
        return np.zeros(32, np.float32)

    async def staying():
        await asyncio.Event().wait()

    async def ask(texts):
        request = SimpleNamespace(receive=staying)
        call = SimpleNamespace(body={"input": texts}, request=request, check_reading=lambda _: None)
        call.in_thread = asyncio.to_thread
        await embeddings._embed(call, served, "input", lambda _, vector: vector.tolist(), truncating=False)

    async def both():
        await asyncio.gather(ask([[1]] * 4), ask([[2]]))

    monkeypatch.setattr(embeddings, "embed", noting)
    asyncio.run(both())
    assert embedded == [[1], [2], [1], [1], [1]]


def test_texts_that_take_longer_than_a_request_may_are_refused():
    with EdgelmServer((TINY, "--timeout", "1e-6")) as server:
        for path, body in (
            ("/v1/embeddings", {"input": ["a", "b"]}),
            ("/v1/completions", {"prompt": ["one two", "three"], "echo": True, "logprobs": 1}),
        ):
            reply = server.post(path, body)
            assert reply.status == 400
            assert "These texts take more than the 1e-06 s of a request; send fewer." in reply.json["error"]["message"]
