"""ROUTES: every endpoint of the server, one row each. /openapi.json describes them from this table."""

from __future__ import annotations

from edgelm.server import (
    anthropic_messages,
    embeddings,
    message_input,
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
from edgelm.server.api_error import MESSAGES
from edgelm.server.endpoint import Endpoint

ROUTES: tuple[Endpoint, ...] = (
    Endpoint(
        "POST", "/v1/chat/completions", openai_chat.create_chat_completion, "Answer a conversation.",
        body=openai_chat.BODY, answers=openai_chat.ANSWER,
    ),
    Endpoint(
        "POST", "/v1/completions", openai_completions.create_completion, "Continue one or several texts.",
        body=openai_completions.BODY, answers=openai_chat.ANSWER,
    ),
    Endpoint(
        "POST", "/v1/responses", openai_responses.create_response,
        "Answer an input, in the form of OpenAI's newer interface.", body=response_input.BODY,
    ),
    Endpoint(
        "POST", "/v1/responses/input_tokens", openai_responses.count_input_tokens, "Count the tokens of such an input.",
        body=response_input.BODY,
    ),
    Endpoint(
        "POST", MESSAGES, anthropic_messages.create_message, "Answer a conversation, in Anthropic's form.",
        body=message_input.BODY, answers=anthropic_messages.ANSWER,
    ),
    Endpoint(
        "POST", f"{MESSAGES}/count_tokens", anthropic_messages.count_message_tokens,
        "Count the tokens of a conversation.", body=message_input.COUNT_BODY, answers=anthropic_messages.COUNT,
    ),
    Endpoint("POST", "/v1/embeddings", embeddings.create_embeddings, "Turn texts into vectors.", body=embeddings.BODY),
    Endpoint("GET", "/v1/models", openai_models.list_models, "List the models.", answers=openai_models.MODELS),
    Endpoint(
        "GET", "/v1/models/{model}", openai_models.retrieve_model, "Describe one model.",
        answers=openai_models.MODEL,
    ),
    Endpoint("POST", "/api/chat", ollama.chat, "Answer a conversation.", body=ollama.CHAT_BODY),
    Endpoint("POST", "/api/generate", ollama.generate, "Answer one prompt.", body=ollama.GENERATE_BODY),
    Endpoint("POST", "/api/embed", embeddings.ollama_embed, "Turn texts into vectors.", body=embeddings.OLLAMA_BODY),
    Endpoint(
        "POST", "/api/embeddings", embeddings.ollama_embed_one, "Turn one text into a vector.",
        body=embeddings.OLLAMA_ONE_BODY,
    ),
    Endpoint("GET", "/api/tags", ollama_models.list_tags, "List the models."),
    Endpoint("GET", "/api/ps", ollama_models.list_running, "List the models in memory."),
    Endpoint("POST", "/api/show", ollama_models.show, "Describe one model.", body=ollama_models.SHOW_BODY),
    Endpoint(
        "POST", "/api/pull", ollama_models.pull, "Say that a model is here; fetch none.",
        body=ollama_models.PULL_BODY,
    ),
    Endpoint("GET", "/api/version", ollama_models.version, "Say which version this is."),
    Endpoint("POST", "/tokenize", tokens.tokenize, "Encode a text or a conversation.", body=tokens.TOKENIZE),
    Endpoint("POST", "/detokenize", tokens.detokenize, "Decode token ids.", body=tokens.DETOKENIZE),
    Endpoint("GET", "/tokenizer_info", tokens.tokenizer_info, "Describe the tokenizer."),
    Endpoint(
        "GET", "/health", status.health, "Say that the server takes requests.",
        answers=status.HEALTH, public=True,
    ),
    Endpoint("GET", "/metrics", status.metrics, "All figures, for Prometheus.", answers=None),
    Endpoint("GET", "/", page_files.start_page, "A chat in the browser.", answers=None, media="text/html", public=True),
    Endpoint(
        "GET", "/page/{name:path}", page_files.page_file, "A file of that page.",
        answers=None, media="*/*", public=True,
    ),
    Endpoint("GET", "/openapi.json", openapi.describe, "This description.", public=True),
)  # fmt: skip
