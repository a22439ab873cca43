"""How people write a model of the Hugging Face hub who come from its pages or from another program."""

from __future__ import annotations

import re
from urllib.parse import unquote

_ADDRESS = re.compile(
    r"(?P<hub>hf:|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?::[\w.-]+)?"  # a quantization, by which Ollama and llama.cpp ask the hub for one of the GGUF files
    r"(?:/(?:blob|resolve|tree)/(?P<revision>[^/?]+))?"
    r"(?:/(?P<file>[^?@]+\.gguf))?(?:@(?P<tag>.+)|/?(?:\?.*)?)",
    re.ASCII,
)


def as_reference(text: str) -> str | None:
    """Return hf:ORG/REPO or hf:ORG/REPO/FILE.gguf, as `edgelm pull` takes them, for what else names a model of the hub.

    That is an address of the hub's pages, or ORG/REPO alone, also with a quantization behind it (`:Q4_K_M`), which is
    left out: the names of a repository's files say it, and `edgelm pull` lists them. What is such a reference already,
    with @REVISION or without, comes back. None: it names nothing there.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or (match["file"] and not match["hub"]):  # a path here has that form too
        return None
    file = f"/{match['file']}" if match["file"] else ""
    if match["revision"] is None:
        return f"hf:{match['repo']}{file}" + (f"@{match['tag']}" if match["tag"] else "")
    revision = "" if match["revision"] == "main" else f"@{match['revision']}"
    return unquote(f"hf:{match['repo']}{file}{revision}")  # of an address, which has %20 for a space
