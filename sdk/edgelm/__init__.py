"""Run a GPT-style Transformer with ONNX Runtime: in an app, in a terminal, without PyTorch.

Examples:
    >>> import edgelm
    >>> model = edgelm.load("smollm2-135m-instruct")
    >>> for chunk in model.stream("The sea", edgelm.GenerationConfig(max_new_tokens=64)):
    ...     print(chunk.text, end="")
"""

from __future__ import annotations

import importlib

from edgelm._version import __version__

TYPE_CHECKING = False  # as typing's, which takes as long to import as all the rest here
if TYPE_CHECKING:
    from edgelm.batching.engine import Engine, EngineOptions, EngineStats
    from edgelm.batching.generation import Generation
    from edgelm.chat_session import ChatSession
    from edgelm.completion import (
        Chunk,
        Completion,
        FinishReason,
        Message,
        Scores,
        Timings,
        TokenLogprob,
        ToolCall,
        ToolCallDelta,
        Usage,
    )
    from edgelm.config import ModelConfig
    from edgelm.decoding.answer import join
    from edgelm.errors import (
        ChatTemplateError,
        CheckpointError,
        ConfigError,
        ContextLengthError,
        DataError,
        DownloadError,
        EdgeLMError,
        ExportError,
        MissingExtraError,
        ModelNotFoundError,
        OutOfMemoryError,
        PackageError,
        ProviderError,
        QueueFullError,
        ThreadLimitError,
        TokenizerError,
        TrainingError,
        UploadError,
        VerificationError,
    )
    from edgelm.generation_config import GenerationConfig
    from edgelm.language_model import LanguageModel
    from edgelm.loading import load
    from edgelm.memory.kv_cache import KVCache
    from edgelm.memory.prefix_cache import PrefixCache
    from edgelm.runtime.session_options import SessionOptions
    from edgelm.saved_session import SavedSession, SavedSessions
    from edgelm.structure.constraint import Constraint
    from edgelm.text.tokenizer import Tokenizer

# Imported at first use: some bring numpy, tokenizers and ONNX Runtime with them, and a command that Ctrl-C ends in its
# first moments has to be past this file by then (edgelm/cli/start.py).
_NAMES = {
    "edgelm.batching.engine": ("Engine", "EngineOptions", "EngineStats"),
    "edgelm.batching.generation": ("Generation",),
    "edgelm.chat_session": ("ChatSession",),
    "edgelm.completion": (
        "Chunk", "Completion", "FinishReason", "Message", "Scores", "Timings", "TokenLogprob", "ToolCall",
        "ToolCallDelta", "Usage",
    ),
    "edgelm.config": ("ModelConfig",),
    "edgelm.decoding.answer": ("join",),
    "edgelm.errors": (
        "ChatTemplateError", "CheckpointError", "ConfigError", "ContextLengthError", "DataError", "DownloadError",
        "EdgeLMError", "ExportError", "MissingExtraError", "ModelNotFoundError", "OutOfMemoryError", "PackageError",
        "ProviderError", "QueueFullError", "ThreadLimitError", "TokenizerError", "TrainingError", "UploadError",
        "VerificationError",
    ),
    "edgelm.generation_config": ("GenerationConfig",),
    "edgelm.language_model": ("LanguageModel",),
    "edgelm.loading": ("load",),
    "edgelm.memory.kv_cache": ("KVCache",),
    "edgelm.memory.prefix_cache": ("PrefixCache",),
    "edgelm.runtime.session_options": ("SessionOptions",),
    "edgelm.saved_session": ("SavedSession", "SavedSessions"),
    "edgelm.structure.constraint": ("Constraint",),
    "edgelm.text.tokenizer": ("Tokenizer",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "ChatSession", "ChatTemplateError", "CheckpointError", "Chunk", "Completion", "ConfigError", "Constraint",
    "ContextLengthError", "DataError", "DownloadError", "EdgeLMError", "Engine", "EngineOptions", "EngineStats",
    "ExportError", "FinishReason", "Generation", "GenerationConfig", "KVCache", "LanguageModel", "Message",
    "MissingExtraError", "ModelConfig", "ModelNotFoundError", "OutOfMemoryError", "PackageError", "PrefixCache",
    "ProviderError", "QueueFullError", "SavedSession", "SavedSessions", "Scores", "SessionOptions", "ThreadLimitError",
    "Timings", "TokenLogprob", "Tokenizer", "TokenizerError", "ToolCall", "ToolCallDelta", "TrainingError",
    "UploadError", "Usage", "VerificationError", "__version__", "join", "load",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for one that is there

    def __getattr__(name: str) -> object:
        if name in _MODULE_OF:
            return getattr(importlib.import_module(_MODULE_OF[name]), name)
        raise AttributeError(f"module 'edgelm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
