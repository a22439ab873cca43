"""How people write a model of the Hugging Face hub who come from its pages or from another program."""

from __future__ import annotations

import re

_ADDRESS = re.compile(
    r"(?P<hub>hf:|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?::[\w.-]+)?"  # of its GGUF files one by its quantization: Ollama and llama.cpp ask the hub which that is
    r"(?:/(?:blob|resolve|tree)/(?P<revision>[^/?]+))?"
    r"(?:/(?P<file>[^?@]+\.gguf))?/?(?:\?.*)?",
    re.ASCII,
)


def as_reference(text: str) -> str | None:
    """Return hf:ORG/REPO or hf:ORG/REPO/FILE.gguf, as `edgelm pull` takes them, for what else names a model of the hub.

    That is an address of the hub's pages, or ORG/REPO alone, also with a quantization behind it (`:Q4_K_M`), which is
    left out: the names of a repository's files say it, and `edgelm pull` lists them. None: it names nothing there.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or (match["file"] and not match["hub"]):  # a path here has that form too
        return None
    file = f"/{match['file']}" if match["file"] else ""
    revision = "" if match["revision"] in (None, "main") else f"@{match['revision']}"
    return f"hf:{match['repo']}{file}{revision}"
