"""The threads that compute a session's graph: its own, or those that the program gave ONNX Runtime for all sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_POOLS_FOR_ALL = "use_per_session_threads must be false"


def new_session(runtime: Any, graph: bytes, settings: Any, providers: Sequence[Any]) -> Any:
    """Make an `onnxruntime.InferenceSession`.

    A program that called `onnxruntime.set_global_thread_pool_sizes` may have no session with threads of its own:
    ONNX Runtime tells it by its error alone, before it reads the graph.
    """
    try:
        return runtime.InferenceSession(graph, settings, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own classes have no common base but this one
        if _POOLS_FOR_ALL not in str(error):
            raise
    settings.use_per_session_threads, settings.intra_op_num_threads = False, 0  # of another number it warns
    return runtime.InferenceSession(graph, settings, providers=providers, enable_fallback=0)
