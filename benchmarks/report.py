"""The report: a result as JSON, as Markdown, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS
from edgelm.pictures.bar_chart import Bar, Panel, draw
from figures import ALL, NONE, Figures
from goals import Verdict, judge
from models import MODELS

_BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
_PAGES = {
    NONE: "No runtime has its memory on huge pages",
    ALL: "Every runtime has its memory on huge pages",
}
# Above it, a part of the figures is somebody else's.
_QUIET_CPUS = 0.05


def write_report(result: dict[str, Any], target: Path) -> None:
    """Write `target` with the endings .json, .md and .svg."""
    figures = Figures(result)
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        ".json": json.dumps(result, indent=1, ensure_ascii=False) + "\n",
        ".md": markdown(result, figures, target.name),
        ".svg": _picture(figures),
    }
    for ending, text in texts.items():
        target.with_name(target.name + ending).write_text(text, encoding="utf-8", newline="\n")


def markdown(result: dict[str, Any], figures: Figures, name: str) -> str:
    parts = [
        f"# {MODELS[figures.model].title} beside its peers",
        f"`{result['command']}`, {result['machine']['date']}. Written by that command; the rounds are in "
        f"[{name}.json]({name}.json).",
        f"![Prefill and decode rates of each runtime]({name}.svg)",
        "## Goals",
        _goals(judge(figures)),
        *[f"## {title}\n\n{_table(figures, pages)}" for pages, title in _PAGES.items()],
        "## What the memory allows",
        _memory(figures),
        "## Start and size",
        _sizes(figures),
        "## How it was measured",
        _method(result, figures),
        "## Machine and versions",
        _machine(result["machine"]),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(verdicts: list[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        unit = f" {verdict.goal.unit}".rstrip()
        values = "; ".join(
            f"{_number(value)}{unit}" + (f" ({condition})" if condition else "")
            for condition, value in verdict.values.items()
        )
        bound = f"{'≥' if verdict.goal.at_least else '≤'} {_number(verdict.limit)}{unit}"
        rows.append([verdict.goal.text, bound, values, "yes" if verdict.met else "**no**"])
    note = "Conditions: prompt+new tokens, and who has huge pages. A goal is met where every value reaches its bound."
    return _rows(["goal", "bound", "measured", "met"], rows) + "\n\n" + note


def _table(figures: Figures, pages: str) -> str:
    header = ["runtime"]
    for workload in figures.workloads:
        header += [f"prefill {workload}", f"decode {workload}", f"first token {workload}"]
    header += ["peak memory", "on huge pages"]
    rows = []
    for name in figures.timed():
        row = [_BY_NAME[name].label]
        for workload in figures.workloads:
            row += [
                _rate(figures, name, figures.prefill, figures.prefill_ratio, pages, workload),
                _rate(figures, name, figures.decode, figures.decode_ratio, pages, workload),
                f"{1e3 * figures.first_token(name, pages, workload):.0f} ms",
            ]
        row += [_megabytes(figures.peak_bytes(name, pages)), _megabytes(figures.huge_page_bytes(name, pages))]
        rows.append(row)
    note = "Tokens per second, and in brackets the ratio to llama.cpp with as many bits."
    return _rows(header, rows) + "\n\n" + note


def _rate(
    figures: Figures,
    name: str,
    rate: Callable[[str, str, str], float],
    ratio: Callable[[str, str, str, str], float],
    pages: str,
    workload: str,
) -> str:
    text = f"{rate(name, pages, workload):.0f}"
    baseline = _BY_NAME[name].baseline
    if baseline is None or not figures.has(baseline):
        return text
    return f"{text} ({ratio(name, baseline, pages, workload):.2f})"


def _memory(figures: Figures) -> str:
    conditions = [(workload, pages) for pages in _PAGES for workload in figures.workloads]
    rows = [
        [
            _BY_NAME[name].label,
            _megabytes(figures.weight_bytes(name)),
            *[f"{figures.bandwidth_share(name, pages, workload):.0%}" for workload, pages in conditions],
        ]
        for name in figures.timed()
    ]
    header = ["runtime", "weights of a step", *[f"{workload}, {pages}" for workload, pages in conditions]]
    bandwidths = " and ".join(f"{figures.bandwidth(pages) / 1e9:.1f} GB/s ({pages})" for pages in _PAGES)
    note = (
        f"Memory is read at {bandwidths}: by as many threads, each of which reads its part of 0.5 GB, the best of five "
        "tries in each round. The shares are of that: the weights that a step reads, as they are stored, over the "
        "step's time. Keys and values, which it reads too, are not in it, nor what a runtime adds to the weights when "
        "it packs them; weights that the processor's caches hold are read faster than memory."
    )
    return _rows(header, rows) + "\n\n" + note


def _sizes(figures: Figures) -> str:
    rows = []
    for name, contestant in _BY_NAME.items():
        if not figures.has(name):
            continue
        timed = name in figures.timed()
        rows.append(
            [
                contestant.label,
                f"{figures.perplexity(name):.3f}" if figures.has_perplexity else "",
                _megabytes(figures.bytes_on_disk(name)),
                f"{figures.load(name):.2f} s" if timed else "",
                f"{figures.start(name):.2f} s" if timed else "",
            ]
        )
    header = ["runtime", "perplexity", "weights and graph", "load", "import and load"]
    return _rows(header, rows) + f"\n\n`import edgelm`: {figures.import_edgelm():.3f} s."


def _method(result: dict[str, Any], figures: Figures) -> str:
    rounds, scored = result["effort"]["rounds"], result["effort"]["scored_tokens"]
    others = figures.others_cpus()
    lines = [
        f"All models are made of {MODELS[figures.model].weights}. Every runtime has {result['threads']} "
        "threads, a process of its own in each round, and its own defaults otherwise; "
        "onnxruntime-genai's graphs compute the head for the last position only, which is faster than its default.",
        f"{rounds} rounds, in each of which every runtime generates in turn, each time another one first, one at a "
        "time, greedily, on a KV cache filled by a real prompt. A rate is the median over the rounds (decode: of each "
        "round's median step); a ratio is the median of the ratios within a round.",
        *filter(None, [MODELS[figures.model].why]),
        "All are timed over token ids, without making text of them.",
        "Huge pages: without, the process is kept off them (PR_SET_THP_DISABLE); with, its large anonymous memory is "
        "moved to them after the load and after a first run (MADV_COLLAPSE), and llama.cpp reads its file into memory "
        "instead of mapping it.",
        f"Peak memory is the process's highest resident memory after load and a first run of {figures.workloads[0]} "
        "tokens, the median over the rounds. Load and import: medians of fresh processes, files in the system's cache; "
        "edgelm's load hashes every file and imports ONNX Runtime.",
        f"Perplexity: {scored} tokens of Python's language reference (pydoc_data.topics), the same ids for all."
        if figures.has_perplexity
        else "Perplexity: not measured, since to random weights all texts are alike.",
        f"Other processes took {others:.2f} CPUs at the median"
        + ("." if others <= _QUIET_CPUS else ": **the machine was not quiet, so do not trust these figures.**"),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _machine(machine: dict[str, Any]) -> str:
    rows = [
        ["CPU", f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])})"],
        ["memory", f"{machine['memory_gib']} GiB"],
        ["kernel", f"Linux {machine['kernel']}, transparent huge pages: {machine['huge_pages']}"],
        ["Python", machine["python"]],
        ["commit", machine["commit"] or "unknown"],
        *[[name, number] for name, number in machine["packages"].items()],
    ]
    return _rows(["", ""], rows)


def _picture(figures: Figures) -> str:
    workload = figures.workloads[0]
    names = [contestant.name for contestant in CONTESTANTS if contestant.name in figures.timed()]
    panels = []
    for title, rate in ((f"prefill, {workload}", figures.prefill), (f"decode, {workload}", figures.decode)):
        bars = [
            Bar(
                label=_bar_label(figures, name),
                value=rate(name, NONE, workload),
                is_ours=_BY_NAME[name].engine == "edgelm_engine",
            )
            for name in names
        ]
        panels.append(Panel(title=f"{title} (tokens per second)", bars=bars))
    return draw(panels)


def _bar_label(figures: Figures, name: str) -> str:
    label = _BY_NAME[name].label
    return f"{label}, perplexity {figures.perplexity(name):.2f}" if figures.has_perplexity else label


def _rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _number(value: float) -> str:
    """Write four digits, so that a value beside its bound never looks equal to it when it is not."""
    return f"{value:.4g}"
