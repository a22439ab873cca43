"""ApiError: what a client did wrong, or cannot have now, in the words of the protocol that it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from edgelm.errors import (
    ChatTemplateError,
    ConfigError,
    ContextLengthError,
    EdgeLMError,
    MissingExtraError,
    OutOfMemoryError,
    QueueFullError,
    ThreadLimitError,
    TokenizerError,
)
from edgelm.runtime.thread_limit import no_more_threads

# Of refusals that time alone may lift.
RETRY_LATER: Mapping[str, str] = {"Retry-After": "1"}
MESSAGES = "/v1/messages"
_OPENAI_KINDS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_ANTHROPIC_KINDS: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# Of refused fields: by them Anthropic's packages see that they have to do without.
_ANTHROPIC_DETAILS: Mapping[str, Mapping[str, str]] = {"thread": {"error_code": "thread_unsupported_request"}}


class ApiError(EdgeLMError):
    """A refusal with its HTTP status; `param` names the field of the request that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self, path: str) -> dict[str, Any]:
        """The error as the protocol of a path writes it."""
        return {"openai": self.openai, "ollama": self.ollama, "anthropic": self.anthropic}[protocol_of(path)]

    @property
    def kind(self) -> str:
        """What OpenAI calls the kind of error."""
        return _OPENAI_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    @property
    def openai(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def ollama(self) -> dict[str, Any]:
        """The error as Ollama writes it."""
        return {"error": str(self)}

    @property
    def anthropic(self) -> dict[str, Any]:
        """The error as Anthropic writes it."""
        kind = _ANTHROPIC_KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        error: dict[str, Any] = {"type": kind, "message": str(self)}
        if details := _ANTHROPIC_DETAILS.get(self.param or ""):
            error["details"] = details
        return {"type": "error", "error": error}


def protocol_of(path: str) -> Literal["openai", "ollama", "anthropic"]:
    """Return whose protocol is spoken at a path."""
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path == MESSAGES or path.startswith(f"{MESSAGES}/") else "openai"


def client_left() -> ApiError:
    """Return the error that ends the work for a client that has left; nobody reads it."""
    return ApiError(499, "The client has left.")


# What time alone may lift: the status, what is said, and its code.
_REFUSED_NOW: Mapping[type[EdgeLMError], tuple[int, str, str]] = {
    QueueFullError: (429, "The server is busy and its queue is full. Try again later.", "queue_full"),
    OutOfMemoryError: (
        503, "There is no memory for this request now. Try again later, or ask for less.", "out_of_memory",
    ),
    ThreadLimitError: (
        503, "The server can start no thread for this request now. Try again later.", "out_of_threads",
    ),
}  # fmt: skip
# Errors whose messages are about the request; those of any other class may name paths of this machine.
_REQUEST_ERRORS: Mapping[type[EdgeLMError], tuple[str | None, str | None]] = {
    ChatTemplateError: ("messages", None),
    ConfigError: (None, None),
    ContextLengthError: (None, "context_length_exceeded"),
    MissingExtraError: (None, "missing_extra"),
    TokenizerError: (None, None),
}


def as_api_error(error: Exception) -> ApiError:
    """Return what a client is told about an error: nothing about this machine where it is none of the client's."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RuntimeError):  # Python's own; those of edgelm may quote a request that has its words
        error = no_more_threads(error) or error
    for kind, (status, message, code) in _REFUSED_NOW.items():
        if isinstance(error, kind):
            return ApiError(status, message, code=code, headers=RETRY_LATER)
    for kind, (param, about) in _REQUEST_ERRORS.items():
        if isinstance(error, kind):
            return ApiError(400, str(error), param=param, code=about)
    return ApiError(500, "The server failed at this request; its log says why.")
