"""The inspection of a text as one HTML page that needs nothing else: no host, no file, no server."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files

import numpy as np

from edgelm_training.evaluation.inspection import Inspection

_PAGE = files("edgelm_training") / "page"


def inspection_page(inspection: Inspection, *, model: str, cut: int = 0) -> str:
    """Return the page.

    Whatever stands in the text stays text: it goes into the page as JSON without any `<`, and from there into text
    nodes; a content security policy allows the page's own script and style alone, by their hashes.

    model: its name, for the title. cut: how many tokens of the text were left out.
    """
    positions = inspection.positions
    left_out = f", the first of {len(positions) + cut}" if cut else ""
    summary = (
        f"{len(positions)} tokens{left_out}, {len(inspection.attention_layers)} layers of "
        f"{inspection.attention.shape[1]} heads"
    )
    style, script = (_PAGE.joinpath(f"inspection.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    parts = {
        "title": html.escape(f"{model}: inspection"),
        "model": html.escape(model),
        "summary": html.escape(summary),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": _json(inspection),
    }
    page = _PAGE.joinpath("inspection.html").read_text(encoding="utf-8")
    # In one pass, so that braces in what is filled in are not taken for places to fill.
    return re.sub("{([a-z_]+)}", lambda place: parts[place[1]], page)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(inspection: Inspection) -> str:
    _, N, T, _ = inspection.attention.shape
    lower = inspection.attention[:, :, *np.tril_indices(T)]
    data = {
        "layers": len(inspection.stream_norms) - 1,
        "attention_layers": inspection.attention_layers,
        "heads": N,
        "tokens": [position.token for position in inspection.positions],
        "ids": [position.id for position in inspection.positions],
        "positions": [
            {
                "guesses": [[guess.token, guess.probability] for guess in position.guesses],
                "next_probability": position.next_probability,
                "next_rank": position.next_rank,
                "entropy": position.entropy,
            }
            for position in inspection.positions
        ],
        "stream_norms": [[float(f"{norm:.6g}") for norm in row] for row in inspection.stream_norms],
        "attention": base64.b64encode(np.rint(lower * 65535).astype("<u2").tobytes()).decode(),
    }
    text = json.dumps(data, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
