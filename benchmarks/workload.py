"""What is measured: the prompts, the number of new tokens, and the text whose perplexity is computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from edgelm.text.tokenizer import Tokenizer

THREADS = 2
PERPLEXITY_TOKENS = CONTEXT = 1024


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A prompt of `prompt_tokens`, and `new_tokens` greedy ones after it."""

    prompt_tokens: int
    new_tokens: int

    @property
    def name(self) -> str:
        return f"{self.prompt_tokens}+{self.new_tokens}"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    rounds: int
    workloads: tuple[Workload, ...]
    perplexity_windows: int
    starts: int  # fresh processes whose import and load times are measured


FULL = Effort(
    rounds=7,
    workloads=(Workload(prompt_tokens=512, new_tokens=128), Workload(prompt_tokens=32, new_tokens=256)),
    perplexity_windows=4,
    starts=10,
)
QUICK = Effort(
    rounds=2,
    workloads=(Workload(prompt_tokens=512, new_tokens=32), Workload(prompt_tokens=32, new_tokens=64)),
    perplexity_windows=1,
    starts=2,
)


@dataclass(frozen=True, kw_only=True)
class Text:
    """Python's language reference as token ids; the prompts lie behind the windows of the perplexity."""

    windows: list[list[int]]
    prompts: dict[str, list[int]]  # by the workload's name


def read_text(checkpoint: Path, effort: Effort) -> Text:
    """Read windows of PERPLEXITY_TOKENS, and the prompts; each begins as the model's author lets a text begin."""
    leading = list(Tokenizer.load(checkpoint).leading_ids)
    ids = text_ids(checkpoint)

    def part(start: int, tokens: int) -> list[int]:
        return [*leading, *ids[start : start + tokens - len(leading)]]

    starts = [i * PERPLEXITY_TOKENS for i in range(FULL.perplexity_windows + 1)]
    return Text(
        windows=[part(start, PERPLEXITY_TOKENS) for start in starts[: effort.perplexity_windows]],
        prompts={workload.name: part(starts[-1], workload.prompt_tokens) for workload in effort.workloads},
    )


def text_ids(checkpoint: Path) -> list[int]:
    """Encode all of Python's language reference, without what may begin a text."""
    return Tokenizer.load(checkpoint).encode("\n\n".join(topics[name] for name in sorted(topics)))
