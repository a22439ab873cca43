"""The report of quality.py: a table of all, who wins at equal bytes, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgelm.pictures.scatter_picture import Dot, draw_scatter

_OURS = "edgelm-"


def write_report(result: dict[str, Any], target: Path) -> None:
    """Write `target` with the endings .json, .md and .svg."""
    target.parent.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(result, indent=1, ensure_ascii=False) + "\n", ".svg": _picture(result)}
    texts[".md"] = markdown(result, target.name)
    for ending, text in texts.items():
        target.with_name(target.name + ending).write_text(text, encoding="utf-8", newline="\n")


def markdown(result: dict[str, Any], name: str) -> str:
    """Return the page."""
    machine, packages = result["machine"], result["machine"]["packages"]
    versions = ", ".join(f"{package} {version}" for package, version in packages.items())
    tokens = " and ".join(f"{count:,} tokens of {text}" for text, count in result["tokens"].items())
    parts = [
        f"# {result['title']}: quality per byte",
        f"`{result['command']}`, {machine['date']}, commit {machine['commit']}. Written by that command; all "
        f"figures are in [{name}.json]({name}.json).",
        f"![Bytes and KL divergence of each]({name}.svg)",
        f"The same {tokens} for all. Bytes are those of weights and graph on the disk. KL is the mean divergence of "
        "the next token's distribution from that of the source in float32, in nats.",
        _table(result),
        "## At equal bytes",
        "Each of the others beside the best of edgelm's, by KL divergence on both texts, that is no larger.",
        _duels(result),
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instruction_sets'])}), Linux "
        f"{machine['kernel']}, Python {machine['python']}, {versions}.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(result: dict[str, Any]) -> str:
    texts, source = list(result["tokens"]), result["contestants"][result["source"]]["texts"]
    head = "".join(f" {text}: perplexity | over fp32 | KL | same best token |" for text in texts)
    rows = [f"| | MB |{head}", "|---|---|" + "---|" * (4 * len(texts))]
    for row in _by_size(result):
        cells = []
        for text in texts:
            figures, ratio = row["texts"][text], row["texts"][text]["perplexity"] / source[text]["perplexity"]
            cells.append(
                f" {figures['perplexity']:.2f} | {ratio - 1:+.1%} | {figures['divergence']:.4f} | "
                f"{figures['top1_agreement']:.1%} |"
            )
        rows.append(f"| {row['label']} | {row['bytes'] / 1e6:.1f} |" + "".join(cells))
    return "\n".join(rows)


def duels(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return each peer with the best of ours that is no larger, if there is one."""
    rows = result["contestants"]
    ours = [row for name, row in rows.items() if name.startswith(_OURS) and name != result["source"]]
    found = []
    for name, peer in rows.items():
        if not name.startswith(_OURS):
            fitting = [row for row in ours if row["bytes"] <= peer["bytes"]]
            found.append((peer, min(fitting, key=_divergence) if fitting else None))
    return sorted(found, key=lambda pair: -pair[0]["bytes"])


def _divergence(row: dict[str, Any]) -> float:
    return sum(figures["divergence"] for figures in row["texts"].values())


def _duels(result: dict[str, Any]) -> str:
    texts = list(result["tokens"])
    rows = ["| peer | MB | edgelm | MB |" + "".join(f" perplexity, {text} | KL |" for text in texts)]
    rows.append("|---|---|---|---|" + "---|" * (2 * len(texts)))
    for peer, ours in duels(result):
        if ours is None:
            rows.append(f"| {peer['label']} | {peer['bytes'] / 1e6:.1f} | none as small | |" + " | |" * len(texts))
            continue
        cells = ""
        for text in texts:
            for key, form in (("perplexity", ".2f"), ("divergence", ".4f")):
                mine, theirs = ours["texts"][text][key], peer["texts"][text][key]
                shown = f"{mine:{form}} : {theirs:{form}}"
                cells += f" {f'**{shown}**' if mine <= theirs else shown} |"
        rows.append(
            f"| {peer['label']} | {peer['bytes'] / 1e6:.1f} | {ours['label']} | {ours['bytes'] / 1e6:.1f} |{cells}"
        )
    return "\n".join([*rows, "", "Ours first; bold where ours is the better one."])


def _by_size(result: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(result["contestants"].values(), key=lambda row: -row["bytes"])


def _picture(result: dict[str, Any]) -> str:
    text = next(iter(result["tokens"]))
    rows = {name: row for name, row in result["contestants"].items() if name != result["source"]}

    def dot(name: str) -> Dot:
        row = rows[name]
        return Dot(x=row["bytes"] / 1e6, y=row["texts"][text]["divergence"], label=row["label"])

    ours = sorted((dot(name) for name in rows if name.startswith(_OURS)), key=lambda dot: dot.x)
    front = [dot for i, dot in enumerate(ours) if all(dot.y < smaller.y for smaller in ours[:i])]
    title, cost = f"{result['title']}: quality per byte (the line: edgelm)", f"KL divergence, nats per token, {text}"
    return draw_scatter(title, "MB of weights", cost, [*front, *(dot(name) for name in rows)], line=len(front))
