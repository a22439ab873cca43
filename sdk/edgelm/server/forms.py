"""The fields of a request that hold its answer to a form: OpenAI's, llama.cpp's and vLLM's, all made a constraint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from edgelm.server.api_error import ApiError
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, record
from edgelm.structure.constraint import Constraint

MAX_CHOICES_OF_TEXT = 4096
_STRICT: Schema = {"anyOf": [BOOLEAN, choice("true", "false")]}  # LM Studio's documentation has it as a text
_JSON_SCHEMA = record(
    {"name": TEXT, "description": TEXT, "schema": ANY_OBJECT, "strict": _STRICT}, required=("schema",)
)
_SCHEMA_OR_TEXT: Schema = {"anyOf": [ANY_OBJECT, TEXT]}  # vLLM takes the JSON of a schema too
_CHOICE = listing(TEXT, most=MAX_CHOICES_OF_TEXT)
FORMS: dict[str, Schema] = {
    "response_format": record(
        {
            "type": choice("text", "json_object", "json_schema"),
            "json_schema": _JSON_SCHEMA,
            # llama.cpp's server has the schema beside the type, and huggingface_hub's client under another name.
            **dict.fromkeys(("schema", "value"), ANY_OBJECT),
        },
        required=("type",),
    ),
    # llama.cpp's.
    "grammar": TEXT,
    "json_schema": ANY_OBJECT,
    # vLLM's, and its older names for them.
    "structured_outputs": record(
        {"json": _SCHEMA_OR_TEXT, "regex": TEXT, "choice": _CHOICE, "grammar": TEXT, "json_object": BOOLEAN},
        # JSON is written in one line, and objects have no other properties, whatever these say.
        ignored=("disable_fallback", "disable_any_whitespace", "disable_additional_properties"),
        refused={
            "structural_tag": "calls of tools are held to their schemas by tools.",
            "whitespace_pattern": "x-guidance in a schema says how JSON is written.",
        },
    ),
    "guided_json": _SCHEMA_OR_TEXT,
    "guided_regex": TEXT,
    "guided_choice": _CHOICE,
    "guided_grammar": TEXT,
}
OF_RESPONSES = "text.format"  # where a Responses request has its `response_format`


def constraint_of(body: Mapping[str, Any]) -> Constraint | None:
    """Return what the answer is held to, by whichever of FORMS and OF_RESPONSES the request has.

    Raises:
        ApiError: 400, there are several, or one has no schema, or a text that is none.
        ConfigError: the form cannot be enforced.
    """
    given: dict[str, Any] = {name: value for name in (OF_RESPONSES, *FORMS) if _asks(value := body.get(name))}
    given |= {f"structured_outputs.{name}": value for name, value in given.pop("structured_outputs", {}).items()}
    made = {place: form for place, value in given.items() if (form := _form(place, value)) is not None}
    if len(made) > 1:
        first, second, *_ = made
        raise ApiError(400, f"{first} and {second} exclude each other: an answer has one form.", param=second)
    return next(iter(made.values()), None)


def _form(place: str, value: Any) -> Constraint | None:
    make = _MAKERS.get(place.rpartition(".")[2].removeprefix("guided_"))
    return make(value, place) if make is not None and _asks(value) else None


def _asks(value: Any) -> bool:
    """Tell whether a field asks for anything: programs that write each of them ask for nothing with these."""
    return value not in (None, "", [], False)


def _response_format(response_format: Mapping[str, Any], place: str) -> Constraint | None:
    kind = response_format["type"]
    if kind == "text":
        return None
    form = (response_format.get("json_schema") if kind == "json_schema" else None) or response_format
    for name in ("schema", "value"):
        if form.get(name) is not None:
            return Constraint.json_schema(form[name], strict=form.get("strict") in (True, "true"))
    if kind == "json_object":
        return Constraint.json_object()
    raise ApiError(400, f"{place}.json_schema is missing.", param=f"{place}.json_schema")


def _schema(schema: Mapping[str, Any] | str, place: str) -> Constraint:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"{place} is no JSON: {error}.", param=place) from error
        if not isinstance(schema, dict):
            raise ApiError(400, f"{place} is JSON, but no object; a schema is one.", param=place)
    return Constraint.json_schema(schema, strict=False)  # as llama.cpp and vLLM have it


# What a field's last word says -> the constraint of its value.
_MAKERS: Mapping[str, Callable[[Any, str], Constraint | None]] = {
    "response_format": _response_format,
    "format": _response_format,
    "json_schema": _schema,
    "json": _schema,
    "json_object": lambda _, __: Constraint.json_object(),
    "regex": lambda pattern, _: Constraint.regex(pattern),
    "choice": lambda texts, _: Constraint.choices(texts),
    "grammar": lambda grammar, _: Constraint.grammar(grammar),
}
