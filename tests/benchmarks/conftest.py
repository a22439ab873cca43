"""A result of the benchmark, computed by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# `python benchmarks/run.py` finds its modules in the same way.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

# name -> (seconds to the first token, seconds of a step, peak MB, perplexity); every number is easy to divide
_MEASURED = {
    "edgelm-int8": (0.5, 0.008, 300, 15.1),
    "llama-q8_0": (1.0, 0.012, 250, 15.2),
    "genai-int8": (0.6, 0.010, 400, 15.2),
    "edgelm-int4": (0.5, 0.006, 250, 18.0),
    "llama-q4_0": (1.0, 0.006, 250, 18.5),
    "genai-int4": (0.6, 0.009, 300, 19.0),
}


@pytest.fixture
def result() -> dict[str, Any]:
    """Return two rounds; in the second one the machine, and so every runtime, is twice as slow."""
    rounds = {
        name: {
            "peak_bytes": peak * 10**6,
            "huge_page_bytes": 0,
            "workloads": {
                "512+128": [
                    {
                        "first_token": slow * first_token,
                        "step_median": slow * step,
                        "python_median": 40e-6 if name.startswith("edgelm") else None,
                        "others_cpus": 0.0,
                    }
                    for slow in (1, 2)
                ]
            },
        }
        for name, (first_token, step, peak, _) in _MEASURED.items()
    }
    machine = {"cpu": "Test", "cores": 2, "instruction_sets": ["avx2"], "memory_gib": 8.0, "kernel": "6.1"}
    machine |= {"huge_pages": "madvise", "python": "3.11", "packages": {"numpy": "2.0"}, "commit": None}
    return {
        "model": "smollm2-135m",
        "command": "python benchmarks/run.py",
        "machine": {**machine, "date": "2026-01-01"},
        "threads": 2,
        "workloads": [{"name": "512+128", "prompt_tokens": 512, "new_tokens": 128}],
        "effort": {"rounds": 2, "starts": 1, "scored_tokens": 4092},
        "rounds": {"none": rounds, "all": rounds},
        "read_bandwidth": {"none": [30e9, 15e9], "all": [30e9, 15e9]},
        "weight_bytes": dict.fromkeys(_MEASURED, 120_000_000),
        "starts": {name: {"import_seconds": [0.1], "load_seconds": [0.4]} for name in _MEASURED},
        "import_edgelm_seconds": [0.03],
        "perplexity": {"edgelm-fp32": 15.0, **{name: row[3] for name, row in _MEASURED.items()}},
        "bytes_on_disk": {"edgelm-fp32": 540_000_000, **dict.fromkeys(_MEASURED, 100000000)},
    }
