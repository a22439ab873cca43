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


_Q8, _Q4 = "llama-q8_0", "llama-q4_0"


def _edgelm(precision: str, label: str, baseline: str | None) -> Contestant:
    name = f"edgelm-{precision}"
    return Contestant(name=name, label=f"edgelm {label}", engine="edgelm_engine", model=name, baseline=baseline)


def _llama(
    name: str, label: str, baseline: str, *, model: str | None = None, engine: str = "llama_cpp_engine"
) -> Contestant:
    file = model or f"{name}.gguf"
    return Contestant(name=name, label=f"llama.cpp{label}", engine=engine, model=file, baseline=baseline)


def _genai(precision: str, baseline: str) -> Contestant:
    name = f"genai-{precision}"
    return Contestant(
        name=name,
        label=f"onnxruntime-genai {precision}",
        engine="genai_engine",
        model=name,
        scored_model=f"{name}-all-logits",
        baseline=baseline,
    )


_PLAIN = "llama_cpp_plain_engine"
CONTESTANTS = (
    _edgelm("int8", "int8", _Q8),
    _edgelm("int8-wide", "int8-wide", _Q8),
    _edgelm("int8-prefill", "int8 + prefill graph", _Q8),
    _edgelm("int8-long", "int8 + prefill graph, int8 keys", _Q8),
    _edgelm("int8-wide-long", "int8-wide + prefill graph, int8 keys", _Q8),
    _llama(_Q8, " Q8_0", _Q8),
    _llama("llama-q8_0-plain", " Q8_0, no flash attention", _Q8, model="llama-q8_0.gguf", engine=_PLAIN),
    _genai("int8", _Q8),
    _edgelm("int4", "int4", _Q4),
    _edgelm("keep", "keep", _Q4),
    _edgelm("int4-long", "int4 + prefill graph, int8 keys", _Q4),
    _llama(_Q4, " Q4_0", _Q4),
    _llama("llama-q4_0-plain", " Q4_0, no flash attention", _Q4, model="llama-q4_0.gguf", engine=_PLAIN),
    _llama("llama-source", ", the file itself", _Q4, model="source.gguf"),
    _genai("int4", _Q4),
    _edgelm("fp32", "fp32", None),
)
