import json
import re

import jsonschema
import numpy as np
import pytest

import edgelm
from edgelm.constraint import Constraint
from edgelm.errors import ConfigError, EdgeLMError, MissingExtraError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel, load
from edgelm.sampling import Sampler
from edgelm.testing import scripted_model, tiny_model_path
from edgelm.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["person", "personage"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return load(tiny_model_path())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(tiny_model_path())


def constrained(constraint: Constraint, **settings: object) -> GenerationConfig:
    return GenerationConfig(constraint=constraint, **{"max_new_tokens": 200, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.5, "top_k": 40, "seed": 4}])
def test_an_answer_has_the_form_of_its_json_schema(tiny: LanguageModel, settings: dict[str, float]) -> None:
    completion = tiny.generate("The sea", constrained(Constraint.json_schema(PERSON), **settings))
    assert completion.finish_reason == "stop"
    jsonschema.validate(json.loads(completion.text), PERSON)
    # In one line, with the spaces of most JSON that models have read.
    assert completion.text.startswith('{"name": "')
    assert re.search(r', "age": \d+, "kind": "person(age)?"}$', completion.text)
