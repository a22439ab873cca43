"""Texts that tokenizers are compared on, with their ids in SmolLM2's vocabulary by llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS: list[dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))["rows"]
CORPUS_TEXTS: list[str] = [row["text"] for row in CORPUS]
