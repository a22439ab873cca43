"""Quality per byte: the figures of logits, and who is set beside whom."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from quality_report import duels, write_report
from workers.comparison import compare, keep

_TEXT = "a text"


def row(label: str, megabytes: float, perplexity: float, divergence: float) -> dict[str, Any]:
    figures = {"perplexity": perplexity, "divergence": divergence, "top1_agreement": 0.9}
    return {"label": label, "bytes": int(megabytes * 1e6), "texts": {_TEXT: figures}}


@pytest.fixture
def comparison(result: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "edgelm-fp32": row("edgelm fp32", 500, 10.0, 0.0),
        "edgelm-int8": row("edgelm int8", 140, 10.1, 0.01),
        "edgelm-int4": row("edgelm int4", 90, 11.0, 0.1),
        "edgelm-worse": row("edgelm worse", 95, 12.0, 0.3),
        "llama-q8_0": row("llama.cpp Q8_0", 139, 10.2, 0.02),
        "llama-q4_0": row("llama.cpp Q4_0", 95, 10.9, 0.2),
        "llama-q3_k_m": row("llama.cpp Q3_K_M", 80, 15.0, 0.5),
    }
    return {
        "title": "Tiny", "command": "python benchmarks/quality.py", "machine": result["machine"],
        "tokens": {_TEXT: 4092}, "source": "edgelm-fp32", "contestants": rows,
    }  # fmt: skip


def test_each_peer_meets_the_best_of_ours_that_is_no_larger(comparison: dict[str, Any]) -> None:
    found = [(peer["label"], ours and ours["label"]) for peer, ours in duels(comparison)]
    assert found == [
        ("llama.cpp Q8_0", "edgelm int4"),  # int8 is one megabyte larger
        ("llama.cpp Q4_0", "edgelm int4"),
        ("llama.cpp Q3_K_M", None),
    ]


def test_the_report_of_quality_is_json_markdown_and_a_picture(comparison: dict[str, Any], tmp_path: Path) -> None:
    write_report(comparison, tmp_path / "results" / "tiny")
    folder = tmp_path / "results"
    assert json.loads((folder / "tiny.json").read_text(encoding="utf-8")) == comparison
    text = (folder / "tiny.md").read_text(encoding="utf-8")
    assert "| edgelm int4 | 90.0 | 11.00 | +10.0% | 0.1000 | 90.0% |" in text
    assert "| llama.cpp Q4_0 | 95.0 | edgelm int4 | 90.0 | 11.00 : 10.90 | **0.1000 : 0.2000** |" in text
    assert "| llama.cpp Q3_K_M | 80.0 | none as small |" in text
    root = ElementTree.fromstring((folder / "tiny.svg").read_text(encoding="utf-8"))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 6


def test_logits_are_compared_with_those_that_were_kept(tmp_path: Path) -> None:
    source_TV = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    other_TV = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) - 3  # softmax ignores the shift
    keep(source_TV, str(tmp_path / "source.npy"))
    figures = compare(other_TV, [0, 1], str(tmp_path / "source.npy"))
    # float32 logits near 3 carry 2e-7 each; KL is half of 0.5 log 2 - 0.25 log 2.
    assert figures["divergence"] == pytest.approx(0.125 * math.log(2), abs=2e-6)
    assert figures["log_likelihood"] == pytest.approx(math.log(0.5), abs=2e-6)
    assert figures["top1_agreement"] == 0.5
