"""Run a GPT-style Transformer with ONNX Runtime: in an app, in a terminal, without PyTorch.

>>> import edgelm
>>> model = edgelm.load("smollm2-135m-instruct")
>>> for chunk in model.stream("The sea", edgelm.GenerationConfig(max_new_tokens=64)):
...     print(chunk.text, end="")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgelm._version import __version__
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
from edgelm.constraint import Constraint
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
    PackageError,
    ProviderError,
    QueueFullError,
    TokenizerError,
    TrainingError,
    VerificationError,
)
from edgelm.generation_config import GenerationConfig

if TYPE_CHECKING:
    from edgelm.chat_session import ChatSession
    from edgelm.config import ModelConfig
    from edgelm.engine import Engine, EngineOptions, EngineStats
    from edgelm.generation import Generation
    from edgelm.language_model import LanguageModel, load
    from edgelm.prefix_cache import PrefixCache
    from edgelm.saved_session import SavedSession, SavedSessions
    from edgelm.session import SessionOptions
    from edgelm.tokenizer import Tokenizer

# Imported at first use: they bring numpy, tokenizers and ONNX Runtime with them.
_LAZY = {
    "ChatSession": "edgelm.chat_session",
    "Engine": "edgelm.engine",
    "EngineOptions": "edgelm.engine",
    "EngineStats": "edgelm.engine",
    "Generation": "edgelm.generation",
    "LanguageModel": "edgelm.language_model",
    "ModelConfig": "edgelm.config",
    "PrefixCache": "edgelm.prefix_cache",
    "SavedSession": "edgelm.saved_session",
    "SavedSessions": "edgelm.saved_session",
    "SessionOptions": "edgelm.session",
    "Tokenizer": "edgelm.tokenizer",
    "load": "edgelm.language_model",
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
    "LanguageModel",
    "Message",
    "MissingExtraError",
    "ModelConfig",
    "ModelNotFoundError",
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
    "Usage",
    "VerificationError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'edgelm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
