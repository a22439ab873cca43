"""What a generation_config.json asks of answers that edgelm does not do, or leaves to each request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# transformers' settings, and what each says where it changes nothing; null does so too.
_NOT_DONE: Mapping[str, object] = {
    "min_length": 0,  # without an encoder, where it counts the prompt
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": [],
    "begin_suppress_tokens": [],
    "sequence_bias": [],
    "bad_words_ids": [],
    "diversity_penalty": 0.0,
}
_BEAMS: Mapping[str, object] = {"num_beams": 1, "length_penalty": 1.0}


def notes_on_answers(values: Mapping[str, Any], *, encodes: bool) -> tuple[str, ...]:
    """Say what the package will not do of a generation_config.json.

    encodes: whether the model has an encoder; then `min_length` is done, and single tokens of `bad_words_ids` are never
    generated.
    """
    done = ("min_length", "bad_words_ids") if encodes else ()
    left = {key: neutral for key, neutral in _NOT_DONE.items() if key not in done}
    listed = _listed(values, left)
    notes = [f"Of generation_config.json, edgelm does not do {listed}."] if listed else []
    if (beams := _listed(values, _BEAMS)) and values.get("num_beams") not in (None, 1):
        notes.append(f"Its generation_config.json asks for {beams}: here each request asks for its beams.")
    return tuple(notes)


def _listed(values: Mapping[str, Any], neutral: Mapping[str, object]) -> str:
    asked = {key: values[key] for key, none in neutral.items() if values.get(key) not in (None, none)}
    return ", ".join(f"{key} = {value!r:.60}" for key, value in asked.items())
