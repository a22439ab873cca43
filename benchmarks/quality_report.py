"""The report of quality.py: the goals, and for each model a table of all, who wins at equal bytes, a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from edgelm.pictures.scatter_picture import Dot, draw_scatter
from quality_goals import OURS, Row, duels, judge, over_source

_INTRODUCTION = """\
Bytes are those of weights and graph on the disk, without the tokenizer that a GGUF file has in its head. KL is the mean
divergence of the next token's distribution from that of the source in float32, in nats. Both are of the same tokens for
all, which no quantizer was calibrated on. "The file itself" is the GGUF file that the checkpoint was made of, or has
been written to."""


def write_report(results: dict[str, dict[str, Any]], target: Path) -> None:
    """Write what was measured of each model, by its title: `target` with the endings .json and .md, and pictures."""
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = {f"{target.name}.json": json.dumps(results, indent=1, ensure_ascii=False) + "\n"}
    texts[f"{target.name}.md"] = markdown(results, target.name)
    for title, result in results.items():
        texts[_picture_file(target.name, title)] = _picture(title, result)
    for name, text in texts.items():
        target.with_name(name).write_text(text, encoding="utf-8", newline="\n")


def markdown(results: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page."""
    parts = [
        "# Quality per byte",
        f"Written by `benchmarks/quality.py`, model after model; all figures are in [{name}.json]({name}.json).",
        _INTRODUCTION,
        "## Goals",
        _goals(results),
        *(_section(title, result, name) for title, result in results.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _goals(results: dict[str, dict[str, Any]]) -> str:
    rows = ["| goal | model | measured | |", "|---|---|---|---|"]
    for title, result in results.items():
        for verdict in judge(result):
            reached = "reached" if verdict.met else "**not reached**"
            rows.append(f"| {verdict.goal} | {title} | {verdict.measured} | {reached} |")
    return "\n".join(rows)


def _section(title: str, result: dict[str, Any], name: str) -> str:
    machine, packages = result["machine"], result["machine"]["packages"]
    versions = ", ".join(f"{package} {version}" for package, version in packages.items())
    built = f" onnxruntime-genai's packages were built by {result['builder']}." if "builder" in result else ""
    tokens = " and ".join(f"{count:,} tokens of {text}" for text, count in result["tokens"].items())
    parts = [
        f"## {title}",
        f"`{result['command']}`, {machine['date']}, commit {machine['commit']}; {tokens}.",
        f"![Bytes and KL divergence of each]({_picture_file(name, title)})",
        _table(result),
        "Each of the others beside the best of edgelm's, by KL divergence on all texts, that is no larger. Ours "
        "first; bold where ours is the better one.",
        _duels(result),
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), Linux "
        f"{machine['kernel']}, Python {machine['python']}, {versions}.{built}",
    ]
    return "\n\n".join(parts)


def _table(result: dict[str, Any]) -> str:
    texts = list(result["tokens"])
    head = "".join(f" {text}: perplexity | over fp32 | KL | same best token |" for text in texts)
    rows = [f"| | MB |{head}", "|---|---|" + "---|" * (4 * len(texts))]
    for row in sorted(result["contestants"].values(), key=lambda row: -row["bytes"]):
        cells = []
        for text, over in zip(texts, over_source(result, row), strict=True):
            figures = row["texts"][text]
            cells.append(
                f" {figures['perplexity']:.2f} | {over:+.1%} | {_nats(figures['divergence'])} | "
                f"{figures['top1_agreement']:.1%} |"
            )
        rows.append(f"| {_named(row)} |" + "".join(cells))
    return "\n".join(rows)


def _named(row: Row) -> str:
    return f"{row['label']} | {row['bytes'] / 1e6:.1f}"


def _nats(divergence: float) -> str:
    return f"{divergence:.6f}" if 0 < divergence < 0.001 else f"{divergence:.4f}"


def _duels(result: dict[str, Any]) -> str:
    texts = list(result["tokens"])
    rows = ["| peer | MB | edgelm | MB |" + "".join(f" perplexity, {text} | KL |" for text in texts)]
    rows.append("|---|---|---|---|" + "---|" * (2 * len(texts)))
    for peer, ours in duels(result).values():
        if ours is None:
            rows.append(f"| {_named(peer)} | none as small | |" + " | |" * len(texts))
            continue
        cells = ""
        for text in texts:
            for key, form in (("perplexity", "{:.2f}".format), ("divergence", _nats)):
                mine, theirs = ours["texts"][text][key], peer["texts"][text][key]
                shown = f"{form(mine)} : {form(theirs)}"
                cells += f" {f'**{shown}**' if mine <= theirs else shown} |"
        rows.append(f"| {_named(peer)} | {_named(ours)} |{cells}")
    return "\n".join(rows)


def _picture_file(name: str, title: str) -> str:
    return f"{name}-{re.sub(r'[^a-z0-9.]+', '-', title.lower()).strip('-')}.svg"


def _picture(title: str, result: dict[str, Any]) -> str:
    text = next(iter(result["tokens"]))
    rows = {name: row for name, row in result["contestants"].items() if name != result["source"]}

    def dot(name: str) -> Dot:
        row = rows[name]
        return Dot(x=row["bytes"] / 1e6, y=row["texts"][text]["divergence"], label=row["label"])

    ours = sorted((dot(name) for name in rows if name.startswith(OURS)), key=lambda dot: dot.x)
    front = [dot for i, dot in enumerate(ours) if all(dot.y < smaller.y for smaller in ours[:i])]
    heading, cost = f"{title}: quality per byte (the line: edgelm)", f"KL divergence, nats per token, {text}"
    return draw_scatter(heading, "MB of weights", cost, [*front, *(dot(name) for name in rows)], line=len(front))
