"""llama.cpp without flash attention, which it takes by default and on some processors decodes slower with."""

from __future__ import annotations

from workers.engine import EngineOptions
from workers.llama_cpp_engine import LlamaCpp


def load(options: EngineOptions) -> LlamaCpp:
    """Load a GGUF file."""
    return LlamaCpp(options, flash_attention=False)
