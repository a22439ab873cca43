"""ROUTES: every endpoint of the server, one row each. /openapi.json describes them from this table."""

from __future__ import annotations

from edgelm.server import openai_chat, openai_completions, openai_models, openapi, status, tokens
from edgelm.server.endpoint import Endpoint

ROUTES: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        answer=openai_chat.create_chat_completion,
        summary="Answer a conversation.",
        body=openai_chat.BODY,
        answers=openai_chat.ANSWER,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        answer=openai_completions.create_completion,
        summary="Continue one or several texts.",
        body=openai_completions.BODY,
        answers=openai_chat.ANSWER,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        answer=openai_models.list_models,
        summary="List the models.",
        answers=openai_models.MODELS,
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{model}",
        answer=openai_models.retrieve_model,
        summary="Describe one model.",
        answers=openai_models.MODEL,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        answer=tokens.tokenize,
        summary="Encode a text or a conversation.",
        body=tokens.TOKENIZE,
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        answer=tokens.detokenize,
        summary="Decode token ids.",
        body=tokens.DETOKENIZE,
    ),
    Endpoint(method="GET", path="/tokenizer_info", answer=tokens.tokenizer_info, summary="Describe the tokenizer."),
    Endpoint(
        method="GET",
        path="/health",
        answer=status.health,
        summary="Say that the server takes requests.",
        answers=status.HEALTH,
        public=True,
    ),
    Endpoint(
        method="GET", path="/metrics", answer=status.metrics, summary="All figures, for Prometheus.", answers=None
    ),
    Endpoint(method="GET", path="/openapi.json", answer=openapi.describe, summary="This description.", public=True),
)
