"""Who is measured: each runtime with each precision, as one row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One runtime with one model.

    engine: the module in workers/. model: its file or folder among the prepared ones; scored_model: the one whose
    logits of all positions are read, where `model` computes the last position's alone. baseline: the contestant that
    its rates are compared to, llama.cpp with as many bits; None for one whose speed is not measured.
    """

    name: str
    label: str
    engine: str
    model: str
    scored_model: str | None = None
    baseline: str | None

    @property
    def timed(self) -> bool:
        return self.baseline is not None


CONTESTANTS = (
    Contestant(
        name="edgelm-int8", label="edgelm int8", engine="edgelm_engine", model="edgelm-int8", baseline="llama-q8_0"
    ),
    Contestant(
        name="edgelm-int8-wide",
        label="edgelm int8-wide",
        engine="edgelm_engine",
        model="edgelm-int8-wide",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="edgelm-int8-prefill",
        label="edgelm int8 + prefill graph",
        engine="edgelm_engine",
        model="edgelm-int8-prefill",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="edgelm-int8-long",
        label="edgelm int8 + prefill graph, int8 keys",
        engine="edgelm_engine",
        model="edgelm-int8-long",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="edgelm-int8-wide-long",
        label="edgelm int8-wide + prefill graph, int8 keys",
        engine="edgelm_engine",
        model="edgelm-int8-wide-long",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="llama-q8_0",
        label="llama.cpp Q8_0",
        engine="llama_cpp_engine",
        model="llama-q8_0.gguf",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="llama-q8_0-plain",
        label="llama.cpp Q8_0, no flash attention",
        engine="llama_cpp_plain_engine",
        model="llama-q8_0.gguf",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="genai-int8",
        label="onnxruntime-genai int8",
        engine="genai_engine",
        model="genai-int8",
        scored_model="genai-int8-all-logits",
        baseline="llama-q8_0",
    ),
    Contestant(
        name="edgelm-int4", label="edgelm int4", engine="edgelm_engine", model="edgelm-int4", baseline="llama-q4_0"
    ),
    Contestant(
        name="edgelm-keep", label="edgelm keep", engine="edgelm_engine", model="edgelm-keep", baseline="llama-q4_0"
    ),
    Contestant(
        name="edgelm-int4-long",
        label="edgelm int4 + prefill graph, int8 keys",
        engine="edgelm_engine",
        model="edgelm-int4-long",
        baseline="llama-q4_0",
    ),
    Contestant(
        name="llama-q4_0",
        label="llama.cpp Q4_0",
        engine="llama_cpp_engine",
        model="llama-q4_0.gguf",
        baseline="llama-q4_0",
    ),
    Contestant(
        name="llama-q4_0-plain",
        label="llama.cpp Q4_0, no flash attention",
        engine="llama_cpp_plain_engine",
        model="llama-q4_0.gguf",
        baseline="llama-q4_0",
    ),
    Contestant(
        name="llama-source",
        label="llama.cpp, the file itself",
        engine="llama_cpp_engine",
        model="source.gguf",
        baseline="llama-q4_0",
    ),
    Contestant(
        name="genai-int4",
        label="onnxruntime-genai int4",
        engine="genai_engine",
        model="genai-int4",
        scored_model="genai-int4-all-logits",
        baseline="llama-q4_0",
    ),
    Contestant(name="edgelm-fp32", label="edgelm fp32", engine="edgelm_engine", model="edgelm-fp32", baseline=None),
)
