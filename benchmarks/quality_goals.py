"""What quality per byte is to reach, judged for one model by the figures of quality.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # label, bytes, and by text: perplexity, divergence, top1_agreement

OURS = "edgelm-"
HELD_OUT = "held-out text of its own kind"
_PEERS = {"llama.cpp's k-quants": ("llama-q", "_k"), "onnxruntime-genai's k_quant mixes": ("genai-", "k_quant")}
_INT8 = "edgelm-int8"
_INT8_LIMIT, _INT4_LIMIT = 0.01, 0.04  # perplexity over fp32
_INT4_BYTES = 100_000_000
_CALIBRATED, _ROUNDED = "calibrated", "rounded"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal, what was measured, and whether that reaches it."""

    goal: str
    measured: str
    met: bool


def judge(result: dict[str, Any]) -> Iterator[Verdict]:
    """Judge every goal whose contestants were measured."""
    rows = result["contestants"]
    if _INT8 in rows:
        yield _within(f"int8 within {_INT8_LIMIT:.0%} of fp32 in perplexity", result, rows[_INT8], _INT8_LIMIT)
    for peers, (beginning, part) in _PEERS.items():
        pairs = [pair for name, pair in duels(result).items() if name.startswith(beginning) and part in name]
        for key in ("perplexity", "divergence") if pairs else ():
            goal = f"no more {key} than {peers} at equal bytes"
            yield _ahead(goal, pairs, key, result["tokens"])
            if HELD_OUT in result["tokens"]:
                yield _ahead(f"{goal}, on {HELD_OUT} alone", pairs, key, [HELD_OUT])
    yield from _judge_int4(result)


def duels(result: dict[str, Any]) -> dict[str, tuple[Row, Row | None]]:
    """Return each peer, from the largest to the smallest, with the best of ours by divergence that is no larger."""
    rows = result["contestants"]
    ours = [row for name, row in rows.items() if name.startswith(OURS) and name != result["source"]]
    peers = {name: row for name, row in rows.items() if not name.startswith(OURS)}
    found = {}
    for name, peer in sorted(peers.items(), key=lambda item: -item[1]["bytes"]):
        fitting = [row for row in ours if row["bytes"] <= peer["bytes"]]
        found[name] = (peer, min(fitting, key=divergence) if fitting else None)
    return found


def divergence(row: Row) -> float:
    """Sum a row's divergences on all texts."""
    return float(sum(figures["divergence"] for figures in row["texts"].values()))


def over_source(result: dict[str, Any], row: Row) -> list[float]:
    """Return by how much of the source's perplexity a row's is above it, on each text."""
    source = result["contestants"][result["source"]]["texts"]
    return [row["texts"][text]["perplexity"] / source[text]["perplexity"] - 1 for text in result["tokens"]]


def _within(goal: str, result: dict[str, Any], row: Row, limit: float) -> Verdict:
    over = over_source(result, row)
    return Verdict(goal=goal, measured=" and ".join(f"{share:+.1%}" for share in over), met=max(over) <= limit)


def _ahead(goal: str, pairs: list[tuple[Row, Row | None]], key: str, texts: Iterable[str]) -> Verdict:
    behind = [peer["label"] for peer, mine in pairs if mine is None or not _no_more(mine, peer, key, texts)]
    measured = f"{len(pairs) - len(behind)} of {len(pairs)}" + (f"; behind {', '.join(behind)}" if behind else "")
    return Verdict(goal=goal, measured=measured, met=not behind)


def _no_more(mine: Row, theirs: Row, key: str, texts: Iterable[str]) -> bool:
    return all(mine["texts"][text][key] <= theirs["texts"][text][key] for text in texts)


def _judge_int4(result: dict[str, Any]) -> Iterator[Verdict]:
    """Judge the best of those in 4 bits that are small enough, and have a twin that is only rounded."""
    rows = result["contestants"]
    twins = [
        (rows[name], rows[twin])
        for name in rows
        if name.startswith(f"{OURS}int4") and name.endswith(_CALIBRATED) and rows[name]["bytes"] <= _INT4_BYTES
        if (twin := name.removesuffix(_CALIBRATED) + _ROUNDED) in rows
    ]
    if not twins:
        return
    best, rounded = min(twins, key=lambda pair: divergence(pair[0]))
    size = f"int4 in {_INT4_BYTES / 1e6:.0f} MB"
    yield _within(f"{size} within {_INT4_LIMIT:.0%} of fp32 in perplexity", result, best, _INT4_LIMIT)
    share = divergence(best) / divergence(rounded)
    yield Verdict(
        goal=f"{size}: at most half the divergence of rounding to nearest", measured=f"{share:.2f}", met=share <= 0.5
    )
