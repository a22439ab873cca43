"""The benchmark's report: figures, verdicts and texts from a result with known numbers."""

from __future__ import annotations

import copy
import json
import platform
import re
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner

import edgelm
import run
from contestants import Contestant
from edgelm.decoding.generate import decode, prefill
from edgelm.decoding.sampling import Sampler
from edgelm.testing import tiny_model_path
from figures import Figures
from goals import judge
from machine import command, describe_machine
from measure import in_turn
from report import write_report
from worker import Worker
from workers.log_likelihood import sum_log_likelihood


def _verdicts(result: dict[str, Any]) -> dict[str, bool]:
    return {verdict.goal.text: verdict.met for verdict in judge(Figures(result))}


def test_a_ratio_is_taken_within_a_round_so_a_slow_phase_of_the_machine_cancels_out(result: dict[str, Any]) -> None:
    figures = Figures(result)
    assert figures.decode_ratio("edgelm-int8", "llama-q8_0", "none", "512+128") == pytest.approx(1.5)
    assert figures.decode("edgelm-int8", "none", "512+128") == pytest.approx(1 / 0.012)
    assert figures.prefill("edgelm-int8", "none", "512+128") == pytest.approx(512 / 0.75)


def test_each_round_begins_with_another_runtime() -> None:
    names = [Contestant(name=name, label=name, engine="", model="", baseline=None) for name in "abcde"]
    rounds = ["".join(contestant.name for contestant in in_turn(names, number, 3)) for number in range(3)]
    assert rounds == ["abcde", "bcdea", "deabc"]


def test_each_goal_is_judged_by_the_measured_numbers(result: dict[str, Any]) -> None:
    verdicts = _verdicts(result)
    assert not verdicts.pop("int4: decode at least 1.1 x llama.cpp Q4_0")  # both take 6 ms
    assert all(verdicts.values())


def test_a_goal_is_missed_where_one_of_its_conditions_misses_it(result: dict[str, Any]) -> None:
    rounds = copy.deepcopy(result["rounds"]["all"])
    for row in rounds["edgelm-int8"]["workloads"]["512+128"]:
        row["python_median"] = 61e-6
    result["rounds"]["all"] = rounds
    assert not _verdicts(result)["Python's share of a decode step at most 60 µs"]


def test_what_a_step_reads_is_set_beside_what_the_memory_gave_in_the_same_round(result: dict[str, Any]) -> None:
    result["model"] = "llama-1.7b"
    # 120 MB in 6 ms are 20 GB/s of 30; in the second round both are half as fast
    assert Figures(result).bandwidth_share("edgelm-int4", "none", "512+128") == pytest.approx(2 / 3)
    goal = "int4: decode reads its weights at least at 80 % of the memory's bandwidth, after the short prompt"
    assert not _verdicts(result)[goal]
    result["weight_bytes"]["edgelm-int4"] = 145_000_000
    assert _verdicts(result)[goal]


def test_goals_of_runtimes_that_were_not_measured_are_left_out(result: dict[str, Any]) -> None:
    del result["bytes_on_disk"]["genai-int4"]
    assert "int4: decode at least 1.1 x onnxruntime-genai int4" not in _verdicts(result)
    assert _verdicts(result)["int4: perplexity no worse than llama.cpp Q4_0's"]


def test_the_report_is_json_markdown_and_a_picture(result: dict[str, Any], tmp_path: Path) -> None:
    write_report(result, tmp_path / "results" / "model")
    folder = tmp_path / "results"
    assert json.loads((folder / "model.json").read_text(encoding="utf-8")) == result
    text = (folder / "model.md").read_text(encoding="utf-8")
    assert "| int4: decode at least 1.1 x llama.cpp Q4_0 | ≥ 1.1 x | 1 x (512+128, none); 1 x (512+128, all)" in text
    assert "| llama.cpp Q8_0 | 341 (1.00) | 56 (1.00) | 1500 ms | 250 MB | 0 MB |" in text
    root = ElementTree.fromstring((folder / "model.svg").read_text(encoding="utf-8"))
    assert len(root.findall(".//{http://www.w3.org/2000/svg}rect")) == 2 * 6


def test_a_report_without_perplexities_says_why(result: dict[str, Any], tmp_path: Path) -> None:
    result["model"], result["perplexity"], result["effort"]["scored_tokens"] = "llama-1.7b", {}, 0
    write_report(result, tmp_path / "model")
    text = (tmp_path / "model.md").read_text(encoding="utf-8")
    assert text.startswith("# A Llama of 1.7B random weights beside its peers\n")
    assert "Perplexity: not measured" in text
    assert "- What has less to say here is not measured" in text
    assert "| llama.cpp Q8_0 | 120 MB | 33% | 33% |" in text


def test_the_report_says_when_the_machine_was_not_quiet(result: dict[str, Any], tmp_path: Path) -> None:
    for measured in result["rounds"]["none"].values():
        for row in measured["workloads"]["512+128"]:
            row["others_cpus"] = 0.5
    write_report(result, tmp_path / "model")
    assert "the machine was not quiet" in (tmp_path / "model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--page", "new", "--quick"], "A page has a whole measurement"),
        (["--model", "gemma3-270m", "--only", "genai-int8"], "not measured with genai-int8. keep, which"),
        (["--only", "edgelm-fp32"], "None of these is timed"),
    ],
)
def test_a_measurement_that_would_say_nothing_is_refused_before_it_begins(options: list[str], said: str) -> None:
    result = CliRunner().invoke(run.main, options)
    assert (result.exit_code, said in result.output) == (2, True), result.output


def test_a_page_of_another_machine_is_written_only_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    targets: list[Path] = []
    monkeypatch.setattr(run, "_measure", lambda model, contestants, effort: {})
    monkeypatch.setattr(run, "write_report", lambda result, target: targets.append(target))
    for options in ([], ["--page", "smollm2-135m-new"]):
        assert CliRunner().invoke(run.main, options).exit_code == 0
    assert targets == [run.CACHE / "results" / "smollm2-135m", run.ROOT / "docs/results/smollm2-135m-new"]


def test_make_bench_writes_over_no_page_that_is_kept() -> None:
    makefile = (run.ROOT / "Makefile").read_text(encoding="utf-8")
    (page,) = re.findall(r"^PAGE \?= (\S+)$", makefile, re.MULTILINE)
    assert "benchmarks/run.py --page $(PAGE)\n" in makefile
    assert f"results/{page}.md" not in (run.ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_a_kernel_is_described_by_its_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.18.44-local-build")
    assert describe_machine()["kernel"] == "6.18.44"


def test_a_command_is_written_with_its_options_and_without_the_places_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = [f"{tmp_path}/bench.py", str(tmp_path), f"{tmp_path}/new", "--title", "A model", "--only", "^(a|b)$", "3"]
    monkeypatch.setattr("sys.argv", called)
    assert command() == f"python benchmarks/bench.py {tmp_path.name}/ new --title 'A model' --only '^(a|b)$' 3"


def test_a_worker_that_dies_leaves_its_last_words(tmp_path: Path) -> None:
    broken = Contestant(name="broken", label="broken", engine="no_such_engine", model="none", baseline=None)
    with pytest.raises(click.ClickException, match=r"(?s)worker of broken died.*no_such_engine"):
        Worker(broken, tmp_path, huge_pages=False, log=tmp_path / "log")


def test_the_log_likelihood_is_the_sum_of_log_softmax() -> None:
    import numpy as np

    logits_TV = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + 7  # log-softmax ignores the shift
    # float32 logits near 7 carry 5e-7 each; measured difference 2e-7
    assert sum_log_likelihood(logits_TV, [1, 2]) == pytest.approx(np.log(0.25) + np.log(0.8), abs=2e-6)


def test_edgelm_is_timed_with_the_tokens_that_it_gives_untimed(tmp_path: Path) -> None:
    row = Contestant(name="tiny", label="tiny", engine="edgelm_engine", model="tiny", baseline=None)
    with Worker(row, tiny_model_path(), huge_pages=False, log=tmp_path / "log") as worker:
        generation = worker.ask("generate", prompt_ids=[5, 6, 7, 8], new_tokens=6)
    session = edgelm.load(tiny_model_path()).session
    cache, sampler = session.new_cache(), Sampler(edgelm.GenerationConfig(temperature=0.0))
    logits_V = prefill(session, [5, 6, 7, 8], cache)
    assert logits_V is not None
    assert generation["token_ids"] == [id_ for id_, _ in islice(decode(session, logits_V, cache, sampler), 6)]
    assert [len(generation[part]) for part in ("steps", "python")] == [5, 5]
    assert all(0 < python < step for python, step in zip(generation["python"], generation["steps"], strict=True))
