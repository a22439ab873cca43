"""ROUTES: every endpoint of the server, one row each. /openapi.json describes them from this table."""

from __future__ import annotations

from edgelm.server import (
    embeddings,
    ollama,
    ollama_models,
    openai_chat,
    openai_completions,
    openai_models,
    openai_responses,
    openapi,
    page_files,
    response_input,
    status,
    tokens,
)
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
        method="POST",
        path="/v1/responses",
        answer=openai_responses.create_response,
        summary="Answer an input, in the form of OpenAI's newer interface.",
        body=response_input.BODY,
    ),
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        answer=embeddings.create_embeddings,
        summary="Turn texts into vectors.",
        body=embeddings.BODY,
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
        method="POST", path="/api/chat", answer=ollama.chat, summary="Answer a conversation.", body=ollama.CHAT_BODY
    ),
    Endpoint(
        method="POST",
        path="/api/generate",
        answer=ollama.generate,
        summary="Answer one prompt.",
        body=ollama.GENERATE_BODY,
    ),
    Endpoint(
        method="POST",
        path="/api/embed",
        answer=embeddings.ollama_embed,
        summary="Turn texts into vectors.",
        body=embeddings.OLLAMA_BODY,
    ),
    Endpoint(
        method="POST",
        path="/api/embeddings",
        answer=embeddings.ollama_embed_one,
        summary="Turn one text into a vector.",
        body=embeddings.OLLAMA_ONE_BODY,
    ),
    Endpoint(method="GET", path="/api/tags", answer=ollama_models.list_tags, summary="List the models."),
    Endpoint(method="GET", path="/api/ps", answer=ollama_models.list_running, summary="List the models in memory."),
    Endpoint(
        method="POST",
        path="/api/show",
        answer=ollama_models.show,
        summary="Describe one model.",
        body=ollama_models.SHOW_BODY,
    ),
    Endpoint(
        method="POST",
        path="/api/pull",
        answer=ollama_models.pull,
        summary="Say that a model is here; fetch none.",
        body=ollama_models.PULL_BODY,
    ),
    Endpoint(method="GET", path="/api/version", answer=ollama_models.version, summary="Say which version this is."),
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
    Endpoint(
        method="GET",
        path="/",
        answer=page_files.start_page,
        summary="A chat in the browser.",
        answers=None,
        media="text/html",
        public=True,
    ),
    Endpoint(
        method="GET",
        path="/page/{name:path}",
        answer=page_files.page_file,
        summary="A file of that page.",
        answers=None,
        media="*/*",
        public=True,
    ),
    Endpoint(method="GET", path="/openapi.json", answer=openapi.describe, summary="This description.", public=True),
)
