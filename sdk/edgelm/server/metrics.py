"""Metrics: what the server counts, in Prometheus's text format."""

from __future__ import annotations

import bisect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgelm.completion import Chunk
    from edgelm.server.loaded_model import LoadedModel

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Histogram:
    """Count values by the bucket that they fall in."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds


class Metrics:
    """Count requests and tokens, and measure how long they take."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._durations: dict[str, Histogram] = defaultdict(Histogram)
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._queues: dict[str, Histogram] = defaultdict(Histogram)
        self._prefills: dict[str, Histogram] = defaultdict(Histogram)
        self._decode_seconds: dict[str, float] = defaultdict(float)
        self.running = 0
        self._started = time.time()

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that is over."""
        self._requests[route, status] += 1
        self._durations[route].add(seconds)

    def count_chunk(self, model: str, chunk: Chunk) -> None:
        """Count the tokens of an answer, with its last chunk."""
        if chunk.usage is None or chunk.timings is None:
            return
        self._tokens[model, "prompt"] += chunk.usage.prompt_tokens
        self._tokens[model, "cached"] += chunk.usage.cached_tokens
        self._tokens[model, "completion"] += chunk.usage.completion_tokens
        self._tokens[model, "drafted"] += chunk.timings.drafted_tokens
        self._tokens[model, "accepted"] += chunk.timings.accepted_tokens
        self._queues[model].add(chunk.timings.queued_seconds)
        self._prefills[model].add(chunk.timings.prefill_seconds)
        self._decode_seconds[model] += chunk.timings.decode_seconds

    def render(self, loaded: Iterable[LoadedModel]) -> str:
        """Write all figures."""
        loaded = list(loaded)
        rows: list[str] = []
        requests = {f'route="{route}",status="{status}"': n for (route, status), n in sorted(self._requests.items())}
        _family(rows, "edgelm_requests_total", "counter", "Requests that are over, by route and status.", requests)
        _family(rows, "edgelm_requests_running", "gauge", "Requests at work.", {"": self.running})
        _histograms(rows, "edgelm_request_seconds", "How long requests took.", "route", self._durations)
        what = "Tokens, by model and kind; cached ones are prompt tokens too, accepted ones drafted ones."
        tokens = {f'model="{model}",kind="{kind}"': n for (model, kind), n in sorted(self._tokens.items())}
        _family(rows, "edgelm_tokens_total", "counter", what, tokens)
        _histograms(rows, "edgelm_queue_seconds", "How long answers waited for others.", "model", self._queues)
        _histograms(rows, "edgelm_prefill_seconds", "How long prompts took.", "model", self._prefills)
        what = "Time spent on answers after their first token."
        seconds = {f'model="{model}"': f"{took:.6f}" for model, took in sorted(self._decode_seconds.items())}
        _family(rows, "edgelm_decode_seconds_total", "counter", what, seconds)
        for name, text, value in (
            ("edgelm_model_loaded", "Models in memory.", lambda model: 1),
            ("edgelm_model_users", "Requests that use a model.", lambda model: model.users),
            ("edgelm_model_queued", "Requests that wait for others to end.", lambda model: model.engine.stats.queued),
        ):
            _family(rows, name, "gauge", text, {f'model="{model.name}"': value(model) for model in loaded})
        _process(rows, self._started)
        return "\n".join(rows) + "\n"


def _family(rows: list[str], name: str, kind: str, text: str, samples: Mapping[str, object]) -> None:
    """Write what is measured under a name; samples: a value for each set of labels."""
    rows += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    rows += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in samples.items()]


def _histograms(rows: list[str], name: str, text: str, label: str, histograms: dict[str, Histogram]) -> None:
    _family(rows, name, "histogram", text, {})
    for value, histogram in sorted(histograms.items()):
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), histogram.counts, strict=True):
            total += count
            rows.append(f'{name}_bucket{{{label}="{value}",le="{bound}"}} {total}')
        rows.append(f'{name}_sum{{{label}="{value}"}} {histogram.sum:.6f}')
        rows.append(f'{name}_count{{{label}="{value}"}} {total}')


def _process(rows: list[str], started: float) -> None:
    _family(rows, "process_start_time_seconds", "gauge", "When the server started.", {"": f"{started:.3f}"})
    try:
        resident = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * _PAGE
    except OSError:
        return
    _family(rows, "process_resident_memory_bytes", "gauge", "Memory of the process.", {"": resident})
