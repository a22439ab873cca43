"""Structured output over varied schemas: every complete answer is valid, or the error names the keyword."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from varied_schemas import UNSUPPORTED, varied_schemas

from edgelm.completion import Message
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.loading import load
from edgelm.runtime.session_options import SessionOptions
from edgelm.structure.constraint import Constraint
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer


def answers(model: LanguageModel, schemas: Sequence[dict[str, Any]], max_new_tokens: int) -> list[str]:
    """Answer with each schema: return what became of them, complete answers being checked."""
    prompts, configs, taken = [], [], []
    for seed, schema in enumerate(schemas):
        constraint = Constraint.json_schema(schema)
        keyword = next((name for name, part in UNSUPPORTED if schema.get("properties", {}).get("part") == part), None)
        if keyword is not None:
            with pytest.raises(ConfigError, match=keyword):
                model.generate("An example:", GenerationConfig(constraint=constraint))
            continue
        prompt = f"Write an example of this JSON schema: {json.dumps(schema, ensure_ascii=False)[:200]}"
        prompts.append(model.encode_chat([Message(role="user", content=prompt)]))
        configs.append(
            GenerationConfig(constraint=constraint, temperature=0.8, seed=seed, max_new_tokens=max_new_tokens)
        )
        taken.append(schema)
    completions = model.generate_batch(prompts, configs, max_batch=8)
    for schema, completion in zip(taken, completions, strict=True):
        if completion.finish_reason == "stop":
            validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            validator.validate(json.loads(completion.text))
    return [completion.finish_reason for completion in completions]


def test_130_varied_schemas_give_valid_answers_or_name_the_keyword() -> None:
    model = load(tiny_model_path(), SessionOptions(threads=1))
    ends = answers(model, varied_schemas(130, seed=11), max_new_tokens=100)
    # The tiny model writes at random, so that it rarely ends a string that may be long: 100 of 115 are complete.
    assert ends.count("stop") > 40
    assert len(ends) < 120


@pytest.mark.real_model
def test_a_real_model_gives_valid_answers_for_varied_schemas(smollm2_package: Path) -> None:
    model = load(smollm2_package, SessionOptions(threads=1))
    ends = answers(model, varied_schemas(4, seed=1), max_new_tokens=80)
    assert ends.count("stop") > 2


@pytest.mark.parametrize(("keyword", "schema"), UNSUPPORTED, ids=[keyword for keyword, _ in UNSUPPORTED])
def test_a_keyword_that_cannot_be_enforced_is_named(keyword: str, schema: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^The JSON schema cannot be enforced: .*{keyword}"):
        Constraint.json_schema(schema).compile(Tokenizer.load(tiny_model_path()))
