"""Answer with varied JSON schemas and check each answer: python benchmarks/structured_output.py PACKAGE [COUNT]"""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

import click
from jsonschema import Draft202012Validator, ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from varied_schemas import varied_schemas

import edgelm

MAX_NEW_TOKENS = 100


@click.command()
@click.argument("package")
@click.argument("count", type=click.IntRange(min=1), default=300)
def main(package: str, count: int) -> None:
    """Answer COUNT schemas, and print how the answers ended as JSON."""
    model = edgelm.load(package)
    ends: collections.Counter[str] = collections.Counter()
    tokens, started = 0, time.perf_counter()
    with edgelm.Engine(model, edgelm.EngineOptions(max_batch=8, max_queue=count)) as engine:
        answers = []
        for seed, schema in enumerate(varied_schemas(count)):
            constraint = edgelm.Constraint.json_schema(schema)
            config = edgelm.GenerationConfig(
                constraint=constraint, temperature=0.8, seed=seed, max_new_tokens=MAX_NEW_TOKENS
            )
            text = f"Write an example of this JSON schema: {json.dumps(schema, ensure_ascii=False)[:200]}"
            prompt = model.encode_chat([edgelm.Message(role="user", content=text)])
            try:
                answers.append((schema, engine.submit(prompt, config)))
            except edgelm.ConfigError as error:
                ends["refused"] += 1
                print(f"{seed}: {error}", file=sys.stderr)
        for schema, generation in answers:
            chunks = list(generation)
            tokens += sum(len(chunk.token_ids) for chunk in chunks)
            end = (
                _check("".join(chunk.text for chunk in chunks), schema)
                if chunks[-1].finish_reason == "stop"
                else "cut off"
            )
            ends[end] += 1
            print(dict(ends), end="\r", file=sys.stderr)
    seconds = round(time.perf_counter() - started)
    print(json.dumps({"model": model.name, "schemas": count, **ends, "tokens": tokens, "seconds": seconds}))


def _check(text: str, schema: dict[str, object]) -> str:
    try:
        checker = Draft202012Validator.FORMAT_CHECKER
        Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        print(f"{text!r}: {error}", file=sys.stderr)
        return "INVALID"
    return "valid"


if __name__ == "__main__":
    main()
