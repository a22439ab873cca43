"""Answer with varied JSON schemas and check each answer: python benchmarks/structured_output.py PACKAGE [COUNT]"""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

from jsonschema import Draft202012Validator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from varied_schemas import varied_schemas

import edgelm

MAX_NEW_TOKENS = 120


def main(package: str, count: int = 300) -> None:
    model = edgelm.load(package)
    ends: collections.Counter[str] = collections.Counter()
    tokens, seconds = 0, 0.0
    for seed, schema in enumerate(varied_schemas(count)):
        config = edgelm.GenerationConfig(
            constraint=edgelm.Constraint.json_schema(schema), temperature=0.8, seed=seed, max_new_tokens=MAX_NEW_TOKENS
        )
        prompt = f"Write an example of this JSON schema: {json.dumps(schema, ensure_ascii=False)[:200]}"
        started = time.perf_counter()
        try:
            completion = model.chat([edgelm.Message(role="user", content=prompt)], config)
        except edgelm.ConfigError as error:
            ends["refused"] += 1
            print(f"{seed}: {error}", file=sys.stderr)
            continue
        seconds += time.perf_counter() - started
        tokens += completion.usage.completion_tokens
        ends[completion.finish_reason] += 1
        if completion.finish_reason == "stop":
            try:
                checker = Draft202012Validator.FORMAT_CHECKER
                Draft202012Validator(schema, format_checker=checker).validate(json.loads(completion.text))
            except Exception as error:
                ends["INVALID"] += 1
                print(f"{seed}: {completion.text!r}: {error}", file=sys.stderr)
    print(json.dumps({"model": model.name, "schemas": count, **ends, "tokens": tokens, "seconds": round(seconds)}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
