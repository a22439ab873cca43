"""What is fuzzed: for each kind of foreign file its seeds, its mutations, and the code that reads it."""

from __future__ import annotations

from fuzz import (
    checkpoint_files,
    constraints,
    gguf_files,
    http_bodies,
    kept_files,
    package_files,
    settings_files,
    tokenizer_files,
    tool_calls,
)
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    **gguf_files.ROWS,
    **checkpoint_files.ROWS,
    **tokenizer_files.ROWS,
    **package_files.ROWS,
    **settings_files.ROWS,
    **kept_files.ROWS,
    "constraint": Target(
        file="form", prepare=constraints.prepare, mutate=constraints.mutate,
        read=lambda folder: constraints.read(folder / "form"), count=120, long_count=50_000,
    ),
    "tool-calls": Target(
        file="calls", prepare=tool_calls.prepare, mutate=tool_calls.mutate,
        read=lambda folder: tool_calls.read(folder / "calls"), count=120, long_count=50_000,
    ),
    "http-body": Target(
        file="request", prepare=lambda _: http_bodies.seeds(), mutate=http_bodies.mutate,
        read=lambda folder: http_bodies.send(folder / "request"), count=160, long_count=100_000,
    ),
}  # fmt: skip
