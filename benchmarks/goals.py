"""The goals of speed, memory and quality, each judged by the figures of one result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from figures import ALL, NONE, Figures
from models import GEMMA3, LLAMA, SMOLLM2


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is to be reached: every value that `measure` gives must be at least, or at most, the limit."""

    text: str
    needs: tuple[str, ...]
    limit: Callable[[Figures], float]
    measure: Callable[[Figures], dict[str, float]]
    at_least: bool
    unit: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal with its measured values, by the conditions they were measured under."""

    goal: Goal
    limit: float
    values: dict[str, float]

    @property
    def met(self) -> bool:
        return all(value >= self.limit if self.goal.at_least else value <= self.limit for value in self.values.values())


def judge(figures: Figures) -> list[Verdict]:
    """Judge the goals of the model whose contestants were measured."""
    return [
        Verdict(goal=goal, limit=goal.limit(figures), values=goal.measure(figures))
        for goal in GOALS[figures.model]
        if figures.has(*goal.needs)
    ]


def _everywhere(measure: Callable[[str, str], float], figures: Figures) -> dict[str, float]:
    return {f"{workload}, {pages}": measure(pages, workload) for workload in figures.workloads for pages in (NONE, ALL)}


def _decode(text: str, name: str, peer: str, limit: float) -> Goal:
    return Goal(
        text=text,
        needs=(name, peer),
        limit=lambda figures: limit,
        measure=lambda figures: _everywhere(lambda p, w: figures.decode_ratio(name, peer, p, w), figures),
        at_least=True,
        unit="x",
    )


def _at_most(
    text: str,
    needs: tuple[str, ...],
    limit: float | Callable[[Figures], float],
    measure: Callable[[Figures], dict[str, float]],
    unit: str = "",
) -> Goal:
    threshold = limit if callable(limit) else lambda figures: limit
    return Goal(text=text, needs=needs, limit=threshold, measure=measure, at_least=False, unit=unit)


_INT8, _WIDE, _INT4, _FP32 = "edgelm-int8", "edgelm-int8-wide", "edgelm-int4", "edgelm-fp32"
_INT8_LONG, _WIDE_LONG, _INT4_LONG = "edgelm-int8-long", "edgelm-int8-wide-long", "edgelm-int4-long"
_Q8, _Q4, _GENAI8, _GENAI4 = "llama-q8_0", "llama-q4_0", "genai-int8", "genai-int4"


def _in_8_bits(name: str) -> tuple[Goal, ...]:
    label = name.removeprefix("edgelm-")
    return (
        _decode(f"{label}: decode at least 1.25 x llama.cpp Q8_0", name, _Q8, 1.25),
        _decode(f"{label}: decode at least 1.15 x onnxruntime-genai int8", name, _GENAI8, 1.15),
        _at_most(
            f"{label}: perplexity within 1 % of fp32",
            (name, _FP32),
            lambda figures: 1.01 * figures.perplexity(_FP32),
            lambda figures: {"": figures.perplexity(name)},
        ),
    )


_DECODE_IN_4_BITS = (
    _decode("int4: decode at least 1.1 x llama.cpp Q4_0", _INT4, _Q4, 1.1),
    _decode("int4: decode at least 1.1 x onnxruntime-genai int4", _INT4, _GENAI4, 1.1),
)


_PEERS = {_Q8: "llama.cpp Q8_0", _Q4: "llama.cpp Q4_0", _GENAI4: "onnxruntime-genai int4"}


def _no_worse(name: str, peer: str) -> Goal:
    return _at_most(
        f"{name.removeprefix('edgelm-')}: perplexity no worse than {_PEERS[peer]}'s",
        (name, peer),
        lambda figures: figures.perplexity(peer),
        lambda figures: {"": figures.perplexity(name)},
    )


def _for_long_texts(name: str, peer: str, limit: float) -> tuple[Goal, ...]:
    label = name.removeprefix("edgelm-")
    return (
        Goal(
            text=f"{label}: decode at least {limit} x {_PEERS[peer]}, after the long prompt",
            needs=(name, peer),
            limit=lambda figures: limit,
            measure=lambda figures: {
                f"{figures.workloads[0]}, {p}": figures.decode_ratio(name, peer, p, figures.workloads[0])
                for p in (NONE, ALL)
            },
            at_least=True,
            unit="x",
        ),
        _no_worse(name, peer),
    )


_BESIDE_PEERS = (
    *_in_8_bits(_INT8),
    *_in_8_bits(_WIDE),
    *_DECODE_IN_4_BITS,
    _no_worse(_INT4, _Q4),
    _no_worse(_INT4, _GENAI4),
    Goal(
        text="int8: prefill at least 1.3 x llama.cpp Q8_0",
        needs=(_INT8, _Q8),
        limit=lambda figures: 1.3,
        measure=lambda figures: _everywhere(lambda p, w: figures.prefill_ratio(_INT8, _Q8, p, w), figures),
        at_least=True,
        unit="x",
    ),
    *_for_long_texts(_INT8_LONG, _Q8, 1.4),
    *_for_long_texts(_WIDE_LONG, _Q8, 1.4),
    *_for_long_texts(_INT4_LONG, _Q4, 1.25),
)
_SMOLLM2_ALONE = (
    _at_most(
        "Python's share of a decode step at most 60 µs",
        (_INT8,),
        60.0,
        lambda figures: _everywhere(lambda p, w: 1e6 * figures.python_share(_INT8, p, w), figures),
        "µs",
    ),
    _at_most("`import edgelm` at most 0.15 s", (_INT8,), 0.15, lambda figures: {"": figures.import_edgelm()}, "s"),
    _at_most(
        "load of the int8 package, with its hash check, at most 0.5 s",
        (_INT8,),
        0.5,
        lambda figures: {"": figures.load(_INT8)},
        "s",
    ),
    _at_most(
        "int8: peak resident memory at most 1.4 x llama.cpp Q8_0's",
        (_INT8, _Q8),
        1.4,
        lambda figures: {p: figures.peak_bytes(_INT8, p) / figures.peak_bytes(_Q8, p) for p in (NONE, ALL)},
        "x",
    ),
)

GOALS = {
    SMOLLM2: (*_BESIDE_PEERS, *_SMOLLM2_ALONE),
    GEMMA3: _BESIDE_PEERS,
    LLAMA: (
        _decode("int8: decode at least 1.25 x llama.cpp Q8_0", _INT8, _Q8, 1.25),
        *_DECODE_IN_4_BITS,
        Goal(
            text="int4: decode reads its weights at least at 80 % of the memory's bandwidth, after the short prompt",
            needs=(_INT4,),
            limit=lambda figures: 80.0,
            measure=lambda figures: {
                f"{figures.workloads[-1]}, {p}": 100 * figures.bandwidth_share(_INT4, p, figures.workloads[-1])
                for p in (NONE, ALL)
            },
            at_least=True,
            unit="%",
        ),
    ),
}
