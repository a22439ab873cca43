"""Whoever asks at another server's path hears where the same is here."""

from __future__ import annotations

import re

import pytest

from edgelm.cli.main import main
from edgelm.server import other_paths
from edgelm.server.routes import ROUTES


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "Here that is POST /v1/chat/completions."),
        ("/v1/v1/messages", "Here that is POST /v1/messages."),
        ("/api/v1/models/", "Here that is GET /v1/models."),
        ("/v1/api/chat", "Here that is POST /api/chat."),
        ("/embeddings", "Here that is POST /v1/embeddings."),
        ("/v1/health", "Here that is GET /health."),
        ("/completion", "Here that is POST /v1/completions."),
        ("/infill", "Here that is POST /v1/completions with a suffix."),
        ("/slots/0", "Here that is GET /metrics."),
        ("/v1/rerank", "no model ranks texts"),
        ("/v1/responses/resp_1", "nothing is stored"),
        ("/v1/threads/t/messages", "nothing is stored"),
        ("/v1/images/generations", "only text"),
        ("/api/create", "Here that is `edgelm export`, on this server's machine."),
        ("/api/blobs/sha256:00", "`edgelm pull` or `edgelm export`"),
        ("/completionist", "/openapi.json has all paths"),
        ("/", "/openapi.json has all paths"),
    ],
)
def test_a_path_of_another_server_leads_to_ours(path, words):
    told = other_paths.nothing_at(path)
    assert told.startswith(f"There is nothing at {path!r}. ")
    assert words in told


@pytest.mark.parametrize("path", ["/props", "/v1/audio/speech", "/api/copy"])
def test_the_server_says_it_in_the_form_of_the_path(serving, path):
    reply = serving.post(path, {})
    assert reply.status == 404
    error = reply.json["error"]
    assert other_paths.nothing_at(path) == (error if path.startswith("/api/") else error["message"])


def test_each_path_and_command_that_is_named_is_there():
    theirs = {f"/v1{name}" for name in other_paths._THEIRS} - {"/v1/responses"}
    assert not theirs & {row.path for row in ROUTES}
    told = " ".join(other_paths.nothing_at(name) for name in other_paths._THEIRS)
    assert set(re.findall(r"(?:GET|POST) /[\w/{}]+", told)) <= {f"{row.method} {row.path}" for row in ROUTES}
    assert set(re.findall(r"`edgelm (\w+)", told)) <= set(main.list_commands(main.make_context("edgelm", ["list"])))


def test_llama_cpps_field_of_a_text_to_encode_is_refused_with_ours(serving):
    reply = serving.post("/tokenize", {"content": "The sea"})
    assert (reply.status, reply.json["error"]["message"]) == (400, "content is not supported: use prompt.")
