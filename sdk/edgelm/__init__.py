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
    from typing import Any

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
_LAZY = {
    "ChatSession": "edgelm.chat_session",
    "ChatTemplateError": "edgelm.errors",
    "CheckpointError": "edgelm.errors",
    "Chunk": "edgelm.completion",
    "Completion": "edgelm.completion",
    "ConfigError": "edgelm.errors",
    "Constraint": "edgelm.structure.constraint",
    "ContextLengthError": "edgelm.errors",
    "DataError": "edgelm.errors",
    "DownloadError": "edgelm.errors",
    "EdgeLMError": "edgelm.errors",
    "Engine": "edgelm.batching.engine",
    "EngineOptions": "edgelm.batching.engine",
    "EngineStats": "edgelm.batching.engine",
    "ExportError": "edgelm.errors",
    "FinishReason": "edgelm.completion",
    "Generation": "edgelm.batching.generation",
    "GenerationConfig": "edgelm.generation_config",
    "KVCache": "edgelm.memory.kv_cache",
    "LanguageModel": "edgelm.language_model",
    "Message": "edgelm.completion",
    "MissingExtraError": "edgelm.errors",
    "ModelConfig": "edgelm.config",
    "ModelNotFoundError": "edgelm.errors",
    "OutOfMemoryError": "edgelm.errors",
    "PackageError": "edgelm.errors",
    "PrefixCache": "edgelm.memory.prefix_cache",
    "ProviderError": "edgelm.errors",
    "QueueFullError": "edgelm.errors",
    "SavedSession": "edgelm.saved_session",
    "SavedSessions": "edgelm.saved_session",
    "Scores": "edgelm.completion",
    "SessionOptions": "edgelm.runtime.session_options",
    "Timings": "edgelm.completion",
    "TokenLogprob": "edgelm.completion",
    "Tokenizer": "edgelm.text.tokenizer",
    "TokenizerError": "edgelm.errors",
    "ToolCall": "edgelm.completion",
    "ToolCallDelta": "edgelm.completion",
    "TrainingError": "edgelm.errors",
    "UploadError": "edgelm.errors",
    "Usage": "edgelm.completion",
    "VerificationError": "edgelm.errors",
    "join": "edgelm.decoding.answer",
    "load": "edgelm.loading",
}

__all__ = [
    "ChatSession",
    "ChatTemplateError",
    "CheckpointError",
    "Chunk",
    "Completion",
    "ConfigError",
    "Constraint",
    "ContextLengthError",
    "DataError",
    "DownloadError",
    "EdgeLMError",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "ExportError",
    "FinishReason",
    "Generation",
    "GenerationConfig",
    "KVCache",
    "LanguageModel",
    "Message",
    "MissingExtraError",
    "ModelConfig",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "PackageError",
    "PrefixCache",
    "ProviderError",
    "QueueFullError",
    "SavedSession",
    "SavedSessions",
    "Scores",
    "SessionOptions",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "ToolCallDelta",
    "TrainingError",
    "UploadError",
    "Usage",
    "VerificationError",
    "__version__",
    "join",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'edgelm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
