from __future__ import annotations

import pytest

from edgelm.library.hub_address import as_reference
from edgelm.library.hub_source import HubSource


@pytest.mark.parametrize(
    ("written", "reference"),
    [
        ("org/repo", "hf:org/repo"),
        ("hf:org/repo", "hf:org/repo"),
        ("hf.co/org/repo", "hf:org/repo"),
        ("https://huggingface.co/org/repo/", "hf:org/repo"),
        ("https:/huggingface.co/org/repo", "hf:org/repo"),  # as a path has it
        ("https://huggingface.co/org/repo/tree/main", "hf:org/repo"),
        ("https://huggingface.co/org/repo/tree/v1.0", "hf:org/repo@v1.0"),
        ("https://huggingface.co/org/repo/blob/main/a-Q4_K_M.gguf", "hf:org/repo/a-Q4_K_M.gguf"),
        ("https://hf.co/org/repo/resolve/v1/q4/a.gguf?download=true", "hf:org/repo/q4/a.gguf@v1"),
        ("hf.co/org/repo:Q4_K_M", "hf:org/repo"),
        ("org/repo:Q4_K_M", "hf:org/repo"),
        ("hf:org/repo@v1", "hf:org/repo@v1"),
        ("hf:org/repo/q4/a.gguf@v1", "hf:org/repo/q4/a.gguf@v1"),
        ("https://hf.co/org/repo/blob/refs%2Fpr%2F1/a%20b.gguf", "hf:org/repo/a b.gguf@refs/pr/1"),
    ],
)
def test_other_ways_to_name_a_model_of_the_hub_lead_to_what_pull_takes(written: str, reference: str) -> None:
    assert as_reference(written) == reference
    assert HubSource.parse(reference).reference == reference


@pytest.mark.parametrize("text", ["repo", "./org/repo", "/org/repo", "org/repo/a.gguf", "registry.ollama.ai/a/b", ""])
def test_what_names_a_path_or_another_place_is_none_of_the_hubs(text: str) -> None:
    assert as_reference(text) is None
