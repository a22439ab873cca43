"""The figures of /metrics, as Prometheus reads them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from edgelm import Chunk, Timings, Usage
from edgelm.server.metrics import Metrics


def counted() -> str:
    """The figures of one answer, which waited 2.5 s."""
    metrics = Metrics()
    metrics.count_request("/v1/completions", 200, 4.0)
    usage = Usage(prompt_tokens=9, completion_tokens=5, cached_tokens=2)
    timings = Timings(prefill_seconds=0.5, decode_seconds=1.0, prefill_tokens=7, decode_tokens=4, queued_seconds=2.5)
    metrics.count_chunk("tiny", Chunk(text="", token_ids=(), finish_reason="stop", usage=usage, timings=timings))
    return metrics.render([])


def test_an_answers_tokens_wait_and_work_are_counted():
    for line in (
        'edgelm_requests_total{route="/v1/completions",status="200"} 1',
        'edgelm_tokens_total{model="tiny",kind="cached"} 2',
        'edgelm_tokens_total{model="tiny",kind="completion"} 5',
        'edgelm_queue_seconds_bucket{model="tiny",le="1.0"} 0',
        'edgelm_queue_seconds_bucket{model="tiny",le="3.0"} 1',
        'edgelm_queue_seconds_sum{model="tiny"} 2.500000',
        'edgelm_prefill_seconds_sum{model="tiny"} 0.500000',
        'edgelm_decode_seconds_total{model="tiny"} 1.000000',
    ):
        assert f"{line}\n" in counted()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_finds_nothing_wrong_with_the_figures():
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=counted(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
