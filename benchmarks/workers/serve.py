"""The main program of a worker: load one runtime, then answer commands, one JSON line each.

Commands: {"do": "generate", "prompt_ids": [...], "new_tokens": n} | {"do": "log_likelihood", "ids": [...]}
| {"do": "keep_logits", "ids": [...], "path": ".npy"} | {"do": "compare", "ids": [...], "source": ".npy"}
| {"do": "collapse"} | {"do": "memory"}; the end of the input ends the worker.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from workers import huge_pages
from workers.engine import Engine, EngineOptions


def main() -> None:
    engine_name, settings = sys.argv[1:]
    options = EngineOptions(**json.loads(settings))
    # Answers alone go to the pipe: what a runtime prints goes where its errors go.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if not options.huge_pages:
        huge_pages.forbid()
    started = time.perf_counter()
    module = importlib.import_module(f"workers.{engine_name}")
    imported = time.perf_counter()
    engine: Engine = module.load(options)
    loaded = time.perf_counter()
    _say(answers, {"import_seconds": imported - started, "load_seconds": loaded - imported})
    for line in sys.stdin:
        _say(answers, _answer(engine, json.loads(line)))


def _answer(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    match command.pop("do"):
        case "generate":
            return dataclasses.asdict(engine.generate(**command))
        case "log_likelihood":
            return {"log_likelihood": engine.log_likelihood(**command)}
        case "keep_logits":
            from workers import comparison  # not before an engine's own imports and memory are measured

            comparison.keep(engine.logits(command["ids"]), command["path"])
            return {}
        case "compare":
            from workers import comparison

            return comparison.compare(engine.logits(command["ids"]), command["ids"], command["source"])
        case "collapse":
            huge_pages.collapse()
            return {}
        case "memory":
            return {"peak_bytes": _peak_bytes(), "huge_page_bytes": huge_pages.bytes_on_huge_pages()}
        case other:
            raise ValueError(f"No command {other!r}.")


def _peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found  # every Linux has the line
    return int(found[1]) << 10


def _say(answers: Any, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
