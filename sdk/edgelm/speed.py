"""Speed: how fast a model is on this machine, beside what the machine's memory allows."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgelm.architecture.quantization_scheme import FLOATS
from edgelm.batching.engine import Engine, EngineOptions
from edgelm.config import ModelConfig
from edgelm.decoding.generate import decode, prefill
from edgelm.decoding.sampling import Sampler
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.loading import load
from edgelm.memory.available_memory import peak_memory
from edgelm.package.graph_file import DATA_FILE
from edgelm.package.manifest import Manifest
from edgelm.runtime.cpu import usable_cores
from edgelm.runtime.providers import CPU
from edgelm.runtime.session_options import SessionOptions

PROMPT_TOKENS, SHORT_PROMPT_TOKENS, NEW_TOKENS, REQUESTS = 512, 32, 64, 8
# More than any processor's caches hold.
_BANDWIDTH_BYTES = 1 << 29
_TOKENS = "tokens/s"
# Of which a token has a row each.
_TABLES = ("embed_tokens.weight", "embed_tokens_per_layer.weight", "embed_positions.weight")

_Row = tuple[str, str, float]  # name, unit, value

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Something measured several times; `unit` is what one of `values` counts in."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value in the middle: a burst of other work on the machine does not move it."""
        return statistics.median(self.values)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What the memory allows: each step reads the weights once, and the cache of what stands before.

    bandwidth: bytes a second that the threads of a step read from memory together. tokens_per_second: that, over the
    bytes of a step after `after` tokens. Weights that stay in the processor's cache are read faster than that.
    """

    bandwidth: float
    step_bytes: int
    after: int

    @property
    def tokens_per_second(self) -> float:
        """How many steps a second the memory can feed."""
        return self.bandwidth / self.step_bytes


@dataclass(frozen=True, kw_only=True)
class SpeedReport:
    """What `measure` found."""

    name: str
    precision: str
    threads: int
    rates: tuple[Rate, ...]
    bound: Bound | None  # None where the weights of a step are not known, or lie in a device's memory
    peak_memory: int | None  # bytes; None where the system does not say


def measure(
    folder: str | Path, options: SessionOptions | None = None, *, rounds: int = 3, progress: Progress | None = None
) -> SpeedReport:
    """Load a model and measure it: the load, a prompt, answers after a short and a long prompt, and eight at once.

    What is not the load is measured `rounds` times, one thing after the other in each round, with filled caches.

    Raises:
        ConfigError: the model's context is too short to measure in, or it has an encoder.
    """
    report = progress or (lambda *_: None)
    report("Loading", 0, 1)
    started = time.perf_counter()
    model = load(folder, options)
    seconds = time.perf_counter() - started
    if model.config.encoder is not None:
        raise ConfigError(f"{model.name} has an encoder; what is measured is how models continue one text.")
    needed = PROMPT_TOKENS + NEW_TOKENS
    if model.context_length < needed:
        raise ConfigError(f"{model.name} has a context of {model.context_length} tokens; measuring needs {needed}.")
    list(_single_rates(model, _random_prompts(model, 0)[0]))  # the first run of each shape pays for allocations
    peak = peak_memory()
    found: dict[tuple[str, str], list[float]] = {("load", "s"): [seconds]}
    for round_ in range(rounds):
        report("Measuring", round_, rounds)
        prompts = _random_prompts(model, round_)  # fresh ones: the model keeps what it computed of earlier ones
        rows = [*_single_rates(model, prompts[0]), _batch_rate(model, prompts)]
        for name, unit, value in rows:
            found.setdefault((name, unit), []).append(value)
    options = options or SessionOptions()
    threads = options.threads or usable_cores()
    step_bytes = _step_bytes(model.manifest, model.config, PROMPT_TOKENS) if options.provider == CPU else None
    return SpeedReport(
        name=model.name,
        precision=model.manifest.precision,
        threads=threads,
        rates=tuple(Rate(name=name, unit=unit, values=tuple(values)) for (name, unit), values in found.items()),
        bound=(
            Bound(bandwidth=read_bandwidth(threads), step_bytes=step_bytes, after=PROMPT_TOKENS) if step_bytes else None
        ),
        peak_memory=peak,
    )


def _random_prompts(model: LanguageModel, seed: int) -> list[list[int]]:
    """Return as many prompts as there are requests: what the tokens are does not change how long they take."""
    random = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(model.config.vocab_size), sorted(model.tokenizer.control_token_ids))
    return [random.choice(allowed, PROMPT_TOKENS).tolist() for _ in range(REQUESTS)]


def _single_rates(model: LanguageModel, long_prompt: list[int]) -> Iterator[_Row]:
    """Yield the speed of one sequence: its prompt, and its answer after a long and a short prompt."""
    for prompt in (long_prompt, long_prompt[:SHORT_PROMPT_TOKENS]):
        cache = model.session.new_cache()
        started = time.perf_counter()
        logits_V = prefill(model.session, prompt, cache)
        prefilled = time.perf_counter()
        assert logits_V is not None
        if prompt is long_prompt:
            yield f"prompt of {len(prompt)} tokens", _TOKENS, len(prompt) / (prefilled - started)
        tokens = decode(model.session, logits_V, cache, Sampler(GenerationConfig()))
        for _ in range(NEW_TOKENS):
            next(tokens)
        yield f"answer after {len(prompt)} tokens", _TOKENS, (NEW_TOKENS - 1) / (time.perf_counter() - prefilled)


def _batch_rate(model: LanguageModel, prompts: Sequence[list[int]]) -> _Row:
    """Return the new tokens of all answers together over the time from the first request to the last token."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    with Engine(model, EngineOptions(max_batch=len(prompts))) as engine:
        started = time.perf_counter()
        generations = [engine.submit(prompt[:SHORT_PROMPT_TOKENS], config) for prompt in prompts]
        count = sum(len(chunk.token_ids) for generation in generations for chunk in generation)
        return f"{len(prompts)} answers at once", _TOKENS, count / (time.perf_counter() - started)


def _step_bytes(manifest: Manifest, config: ModelConfig, after: int) -> int | None:
    """Return the bytes that one step reads: the weights, but for rows and experts that it passes over, and the cache.

    None for a foreign graph, of which nobody knows which weights a step reads.
    """
    weights = next((entry.size for entry in manifest.files if entry.path == DATA_FILE), None)
    if weights is None or not manifest.recipe:
        return None
    if all(scheme in FLOATS for scheme in manifest.recipe_values("scheme")):
        weights = 4 * config.count_parameters()  # 16 bits are widened when they are loaded
    read = sum(math.prod(shape) * _share_read(config, name) for name, shape in config.tensor_shapes().items())
    return round(weights * read / config.count_parameters()) + after * config.kv_bytes_per_token


def _share_read(config: ModelConfig, name: str) -> float:
    """Return how much of a tensor one step reads: of tables next to nothing, of experts those that it chooses."""
    if ".experts." in name:
        return config.num_experts_per_tok / config.num_experts
    is_head = name == "model.embed_tokens.weight" and config.tie_word_embeddings
    return 0.0 if name.endswith(_TABLES) and not is_head else 1.0


def read_bandwidth(threads: int) -> float:
    """Measure how many bytes a second `threads` threads read from memory together; the best of some tries."""
    parts = np.array_split(np.ones(_BANDWIDTH_BYTES // 8, np.int64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # one operation a word: the memory is what it waits for
            best = min(best, time.perf_counter() - started)
    return _BANDWIDTH_BYTES / best
