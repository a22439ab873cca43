"""Quality per byte: the figures of logits, and who is set beside whom."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

import quality
import workload
from contestants import Contestant
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer
from quality import Comparison, Models
from quality_goals import HELD_OUT, duels, judge
from quality_report import write_report
from workers.comparison import compare, keep
from workload import Text

_TEXT = "a text"


def row(label: str, megabytes: float, perplexity: float, divergence: float) -> dict[str, Any]:
    figures = {"perplexity": perplexity, "divergence": divergence, "top1_agreement": 0.9}
    return {"label": label, "bytes": int(megabytes * 1e6), "texts": {_TEXT: figures}}


@pytest.fixture
def comparison(result: dict[str, Any]) -> dict[str, Any]:
    rows = {
        "edgelm-fp32": row("edgelm fp32", 500, 10.0, 0.0),
        "edgelm-int8": row("edgelm int8", 140, 10.05, 0.01),
        "edgelm-int4": row("edgelm int4", 90, 11.0, 0.1),
        "edgelm-worse": row("edgelm worse", 95, 12.0, 0.3),
        "llama-q8_0": row("llama.cpp Q8_0", 139, 10.2, 0.02),
        "llama-q4_0": row("llama.cpp Q4_0", 95, 10.9, 0.2),
        "llama-q3_k_m": row("llama.cpp Q3_K_M", 80, 15.0, 0.5),
    }
    return {
        "command": "python benchmarks/quality.py", "machine": result["machine"],
        "tokens": {_TEXT: 4092}, "source": "edgelm-fp32", "contestants": rows,
    }  # fmt: skip


def test_each_peer_meets_the_best_of_ours_that_is_no_larger(comparison: dict[str, Any]) -> None:
    found = [(peer["label"], ours and ours["label"]) for peer, ours in duels(comparison).values()]
    assert found == [
        ("llama.cpp Q8_0", "edgelm int4"),  # int8 is one megabyte larger
        ("llama.cpp Q4_0", "edgelm int4"),
        ("llama.cpp Q3_K_M", None),
    ]


def test_a_goal_is_reached_where_it_is_on_every_text_and_beside_every_peer(comparison: dict[str, Any]) -> None:
    rows = comparison["contestants"]
    rows["edgelm-int4--calibrated"] = row("edgelm int4, calibrated", 92, 10.3, 0.04)
    rows["edgelm-int4--rounded"] = row("edgelm int4, rounded", 92, 11.5, 0.1)
    rows["genai-int4-k_quant"] = row("onnxruntime-genai int4 k_quant", 93, 10.3, 0.05)
    verdicts = {verdict.goal: (verdict.measured, verdict.met) for verdict in judge(comparison)}
    assert verdicts == {
        "int8 within 1% of fp32 in perplexity": ("+0.5%", True),
        "no more perplexity than llama.cpp's k-quants at equal bytes": ("0 of 1; behind llama.cpp Q3_K_M", False),
        "no more divergence than llama.cpp's k-quants at equal bytes": ("0 of 1; behind llama.cpp Q3_K_M", False),
        "no more perplexity than onnxruntime-genai's k_quant mixes at equal bytes": ("1 of 1", True),
        "no more divergence than onnxruntime-genai's k_quant mixes at equal bytes": ("1 of 1", True),
        "int4 in 100 MB within 4% of fp32 in perplexity": ("+3.0%", True),
        "int4 in 100 MB: at most half the divergence of rounding to nearest": ("0.40", True),
    }


def test_text_of_the_models_own_kind_is_judged_apart_as_well(comparison: dict[str, Any]) -> None:
    comparison["contestants"] = {
        "edgelm-fp32": row("edgelm fp32", 500, 10.0, 0.0),
        "edgelm-int6": row("edgelm int6", 110, 10.2, 0.01),
        "llama-q5_k_m": row("llama.cpp Q5_K_M", 111, 9.8, 0.1),
    }
    comparison["tokens"][HELD_OUT] = 8184
    for found, perplexity in zip(comparison["contestants"].values(), (5.0, 5.1, 6.0), strict=True):
        found["texts"][HELD_OUT] = {**found["texts"][_TEXT], "perplexity": perplexity}
    assert [(verdict.goal, verdict.met) for verdict in judge(comparison)] == [
        ("no more perplexity than llama.cpp's k-quants at equal bytes", False),
        (f"no more perplexity than llama.cpp's k-quants at equal bytes, on {HELD_OUT} alone", True),
        ("no more divergence than llama.cpp's k-quants at equal bytes", True),
        (f"no more divergence than llama.cpp's k-quants at equal bytes, on {HELD_OUT} alone", True),
    ]


def test_divergences_too_small_for_four_places_have_six(comparison: dict[str, Any], tmp_path: Path) -> None:
    comparison["contestants"]["edgelm-int8"] = row("edgelm int8", 140, 10.0, 0.00004)
    write_report({"Tiny": comparison}, tmp_path / "quality")
    text = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert "| edgelm fp32 | 500.0 | 10.00 | +0.0% | 0.0000 | 90.0% |" in text
    assert "| edgelm int8 | 140.0 | 10.00 | +0.0% | 0.000040 | 90.0% |" in text


def test_the_report_of_quality_is_json_markdown_and_pictures(comparison: dict[str, Any], tmp_path: Path) -> None:
    results = {"Tiny 0.1": comparison, "Tiny, tuned": {**comparison, "builder": "onnxruntime-genai 0.15.2"}}
    write_report(results, tmp_path / "results" / "quality")
    folder = tmp_path / "results"
    assert json.loads((folder / "quality.json").read_text(encoding="utf-8")) == results
    text = (folder / "quality.md").read_text(encoding="utf-8")
    assert text.count("| edgelm int4 | 90.0 | 11.00 | +10.0% | 0.1000 | 90.0% |") == 2
    assert text.count("| llama.cpp Q4_0 | 95.0 | edgelm int4 | 90.0 | 11.00 : 10.90 | **0.1000 : 0.2000** |") == 2
    assert text.count("| llama.cpp Q3_K_M | 80.0 | none as small |") == 2
    assert text.count("onnxruntime-genai's packages were built by onnxruntime-genai 0.15.2.") == 1
    assert "| int8 within 1% of fp32 in perplexity | Tiny, tuned | +0.5% | reached |" in text
    for name in ("quality-tiny-0.1.svg", "quality-tiny-tuned.svg"):
        assert f"({name})" in text
        root = ElementTree.fromstring((folder / name).read_text(encoding="utf-8"))
        assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 6


def test_what_another_exporter_made_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "exporter_state", lambda: "0123456789ab")
    for name in ("0123456789ab", "ba9876543210", "mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "ba9876543210" / "logits-0-0.npy").touch()
    assert quality.folder_of_state(tmp_path) == tmp_path / "0123456789ab"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0123456789ab", "mine"]


def test_logits_are_compared_with_those_that_were_kept(tmp_path: Path) -> None:
    source_TV = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32))
    other_TV = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32)) - 3  # softmax ignores the shift
    keep(source_TV, str(tmp_path / "source.npy"))
    figures = compare(other_TV, [0, 1], str(tmp_path / "source.npy"))
    # float32 logits near 3 carry 2e-7 each; KL is half of 0.5 log 2 - 0.25 log 2.
    assert figures["divergence"] == pytest.approx(0.125 * math.log(2), abs=2e-6)
    assert figures["log_likelihood"] == pytest.approx(math.log(0.5), abs=2e-6)
    assert figures["top1_agreement"] == 0.5


def test_each_window_begins_once_with_what_the_author_puts_before_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "topics", {"sea": "The sea is blue. " * 1024})
    models = Models(checkpoint=tiny_model_path(), gguf=tmp_path, work=tmp_path)
    plain = Comparison(models, None).windows
    monkeypatch.setattr(Tokenizer, "leading_ids", (1,))
    assert Comparison(models, None).windows == {
        text: [[1, *ids[:-1]] for ids in windows] for text, windows in plain.items()
    }


def test_what_another_exporter_made_is_not_scored_under_this_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def score(self: Comparison, contestant: Contestant, make: object) -> dict[str, Any]:
        scored.append(quality.exporter_state())
        return {"label": contestant.label, "bytes": 1, "texts": {text: {} for text in self.tokens}}

    monkeypatch.setattr(quality, "read_text", lambda checkpoint, effort: Text(windows=[], prompts={}))
    monkeypatch.setattr(Comparison, "score", score)
    monkeypatch.setattr(Models, "contestants", lambda self: [(quality._row("edgelm", "fp32", ""), None)])
    monkeypatch.setattr(quality, "write_report", lambda results, target: None)
    for state in ("old", "old", "new"):
        monkeypatch.setattr(quality, "exporter_state", lambda state=state: state)
        called = [str(tiny_model_path()), str(tiny_model_path()), "page", "--title", "T", "--work", str(tmp_path)]
        result = CliRunner().invoke(quality.main, called)
        assert result.exit_code == 0, result.output
    assert scored == ["old", "new"]
