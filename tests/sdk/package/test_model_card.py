"""The card of a pushed package: what the hub reads at its top, and what people read below."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from huggingface_hub import ModelCard

from edgelm.package.manifest import Manifest
from edgelm.package.model_card import base_model, model_card
from edgelm.testing import tiny_model_path


def manifest(**changes: Any) -> Manifest:
    return dataclasses.replace(Manifest.load(tiny_model_path()), **changes)


def fields(**changes: Any) -> dict[str, Any]:
    """Return what the hub's own library reads at the top of a card."""
    data: dict[str, Any] = ModelCard(model_card(manifest(**changes), "org/Tiny")).data.to_dict()
    return data


@pytest.mark.parametrize(
    ("license_", "expected"),
    [
        ("Apache-2.0", ("apache-2.0", None)),
        ("GPL-3.0-only", ("gpl-3.0", None)),
        ("gemma", ("gemma", None)),
        ("llama3.2", ("llama3.2", None)),
        ("bigscience-bloom-rail-1.0", ("bigscience-bloom-rail-1.0", None)),
        ("LGPL-2.1-only", ("lgpl-2.1", None)),
        ("odbl", ("odbl", None)),
        ("My own: terms", ("other", "My own: terms")),
        (None, (None, None)),
    ],
)
def test_the_licence_has_the_hubs_word_for_it(license_, expected):
    found = fields(license=license_)
    assert (found.get("license"), found.get("license_name")) == expected


def test_the_base_model_is_the_repository_that_the_source_came_from():
    source = {"format": "safetensors", "files": [], "repository": "org/base", "revision": "0" * 40}
    assert fields(source=source)["base_model"] == "org/base"
    assert fields(source=source)["base_model_relation"] == "quantized"
    assert base_model(manifest(source={"files": [], "imported_from": source})) == "org/base"
    assert "base_model" not in fields(source={"files": []})
    assert base_model(manifest(source={"files": [], "repository": "](http://evil)"})) is None


def test_the_card_says_what_it_is_how_good_and_how_to_run_it():
    quality = manifest().quality
    assert quality is not None
    text = model_card(manifest(notes=("Q4_1 went to 8 bits.",)), "org/Tiny")
    for part in (
        "edgelm pull hf:org/Tiny\nedgelm chat tiny\n",
        "| context | 1024 tokens |",
        f"| perplexity | {quality.perplexity:.3f} | {quality.source_perplexity:.3f} |",
        f"of {quality.greedy_tokens} |",
        "- Q4_1 went to 8 bits.",
    ):
        assert part in text
    assert "It was not measured." in model_card(manifest(quality=None), "org/Tiny")


def test_a_package_without_a_chat_template_is_run_not_talked_with():
    files = tuple(entry for entry in manifest().files if entry.path != "chat_template.jinja")
    text = model_card(manifest(files=files), "org/Tiny")
    assert 'edgelm pull hf:org/Tiny\nedgelm run tiny "The sea is blue."\n' in text


def test_no_text_of_a_manifest_breaks_the_cards_form():
    files = [{"path": "a|b\n# A title.gguf", "sha256": "0"}]
    text = model_card(manifest(name="one\n---\ntwo", source={"files": files}), "org/Tiny")
    assert "| made from | a\\|b # A title.gguf, SHA-256 0 |" in text
    assert "# one --- two" in text.splitlines()
