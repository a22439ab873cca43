"""Verification: an exported package beside its fp32 source, on the bundled text."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_recipe import Precision
from edgelm.config import ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.errors import VerificationError
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.malloc import map_arrays_from, return_freed_memory
from edgelm.package.manifest import Quality
from edgelm.runtime.session import DecoderSession
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.checkpoints.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.reference.model import log_softmax, reference_logits
from edgelm_export.verification.verification_text import verification_text

# Enough text for a perplexity that is stable to a percent, at a second or two per 100M parameters, in windows whose
# keys and values stay small beside a model. A large model loses less, and takes a quarter of it.
_WINDOWS, _WINDOW_TOKENS = 4, 256
_LARGE, _WINDOW_TOKENS_OF_LARGE = 10**9, 64
# Logits of so many tokens are computed and compared at once: of a whole window, each array of them would be new memory.
_ROWS_AT_ONCE = 32
_GREEDY_PROMPT, _GREEDY_TOKENS = 64, 32
_STEPS_AT_ONCE = 8  # of them: each reads half a megabyte of a large embedding's file
# Nats of divergence for each that the logarithm of the perplexity may grow by. SmolLM2-135M's packages diverge by 0.8
# to 1.3 times what it grew by where that was more than chance, and by a tenth of what int8 may.
_DIVERGENCE = 2.0
_ROUNDINGS = 1e-6  # nats that float32 may lose, also where a recipe lets the perplexity grow by nothing
# From what size an array's memory is given back as soon as it is freed: here, that of matrices, and not of temporaries
# that are made thousands of times; beside the package, all that numpy makes.
MATRIX_BYTES, _BESIDE_PACKAGE = 4 << 20, 1 << 17
_Columns = tuple[NDArray[np.float64], ...]  # what `_compare` returns


def measure_quality(folder: Path, checkpoint: Checkpoint, progress: Progress | None = None) -> Quality:
    """Compute the package's logits and those of the source, and compare them.

    progress: called with "check", how many of the source's tensors have been read, and how many there are.
    The source's come from the numpy forward pass (reference/), which shares no code with the graph.

    Raises:
        VerificationError: the tokenizer is another model's, or there is no room for what is compared.
    """
    checkpoint = CheckedCheckpoint(checkpoint, progress, "check")
    sources, windows, prompt = _texts(Tokenizer.load(folder), checkpoint.config)
    return_freed_memory()  # the package takes the most of all
    map_arrays_from(_BESIDE_PACKAGE)
    columns, after_prefill = [], []
    with _temporary_file() as kept:
        # The package is gone from memory when its source comes.
        session = DecoderSession(folder, ModelConfig.load(folder))
        has_prefill_graph = session.has_prefill_graph
        for read, ids in zip(sources, windows, strict=True):
            _keep_logits(session, ids, read, kept)
        chosen = _greedy(session, prompt, sources[0])
        del session
        map_arrays_from(MATRIX_BYTES)
        kept.seek(0)
        source = reference_logits(checkpoint, [prompt + chosen, *windows], [sources[0], *sources])
        # The source's choice after the prompt and after each chosen token but the last.
        agreed = next(source).argmax(-1)[len(prompt) - 1 : -1] == chosen
        for ids, source_TV in zip(windows, source, strict=True):
            columns += _compared(kept, source_TV, ids)
            if has_prefill_graph:
                half = len(ids) // 2
                after_prefill += _compared(kept, source_TV[half:], ids[half:])
    surprise, source_surprise, divergence, difference, same = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    return Quality(
        tokens=len(surprise),
        perplexity=float(np.exp(surprise.mean())),
        source_perplexity=float(np.exp(source_surprise.mean())),
        max_logit_difference=float(difference.max()),
        mean_kl_divergence=float(divergence.mean()),
        top1_agreement=float(same.mean()),
        greedy_tokens=len(agreed),
        greedy_agreement=len(agreed) if agreed.all() else int(agreed.argmin()),
        **_perplexities_after_prefill(after_prefill),
    )


@contextlib.contextmanager
def _temporary_file() -> Iterator[IO[bytes]]:
    """Open a file for logits: of a large vocabulary, a gigabyte.

    Raises:
        VerificationError: the disk that it is on is full.
    """
    try:
        with tempfile.TemporaryFile(prefix="edgelm-") as file:
            yield file
    except OSError as error:
        raise VerificationError(
            f"The check keeps logits in {tempfile.gettempdir()}, which fails: {error}. Nothing was written. Make room "
            "there, or name a folder on another disk as TMPDIR."
        ) from error


def _keep_logits(session: DecoderSession, ids: list[int], source_ids: list[int], kept: IO[bytes]) -> None:
    """Write the package's logits of a window to a file, and behind them those after its prefill graph, if any."""
    _keep_logits_behind(session, ids, _cache_for(session, source_ids, len(ids)), kept)
    if session.has_prefill_graph:
        half, cache = len(ids) // 2, _cache_for(session, source_ids, len(ids))
        session.read_prompt(ids[:half], cache)
        _keep_logits_behind(session, ids[half:], cache, kept)


def _perplexities_after_prefill(columns: list[_Columns]) -> dict[str, float]:
    if not columns:
        return {}
    surprise, source_surprise, *_ = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return {
        "perplexity_after_prefill": float(np.exp(surprise.mean())),
        "source_perplexity_after_prefill": float(np.exp(source_surprise.mean())),
    }


def _compared(kept: IO[bytes], source_TV: NDArray[np.float32], ids: list[int]) -> list[_Columns]:
    """Compare the logits at all of `ids` but the last with those that `_keep_logits_behind` kept."""
    columns = []
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        package_TV, targets = np.load(kept), np.array(ids[start + 1 : start + 1 + _ROWS_AT_ONCE])
        if len(targets):
            rows = slice(start, start + len(targets))
            columns.append(_compare(package_TV[: len(targets)], source_TV[rows], targets))
    return columns


def _compare(package_TV: NDArray[np.float32], source_TV: NDArray[np.float32], targets: NDArray[np.int64]) -> _Columns:
    """Return per position: the target's surprise in both (nats), KL(source || package), largest difference, same."""
    package_log, source_log = log_softmax(package_TV), log_softmax(source_TV)
    rows = np.arange(len(targets))
    return (
        -package_log[rows, targets],
        -source_log[rows, targets],
        (np.exp(source_log) * (source_log - package_log)).sum(-1),
        np.abs(package_TV - source_TV).max(-1).astype(np.float64),
        (package_TV.argmax(-1) == source_TV.argmax(-1)).astype(np.float64),
    )


def check_quality(quality: Quality, precision: Precision) -> None:
    """Refuse a package that is worse than its precision may be.

    A perplexity may also fall where a graph computes something else, or where rounding takes back what a model was
    fine-tuned for. So the divergence from the source is bounded too: on text of the source's own it is what the
    logarithm of the perplexity grows by, and on other text it may be somewhat more.

    Raises:
        VerificationError: with the figures and what to try.
    """
    way_out = "Nothing was written. Export with more bits (--precision int8 or fp32), or check the source."
    ratio = quality.perplexity / quality.source_perplexity
    if not ratio <= precision.perplexity_bound:  # a NaN fails too
        raise VerificationError(
            f"The {precision.name} package has a perplexity of {quality.perplexity:.2f} where its source has "
            f"{quality.source_perplexity:.2f}: {ratio:.3f} times, and {precision.perplexity_bound} is the bound. "
            + way_out
        )
    divergence, most = quality.mean_kl_divergence, max(_DIVERGENCE * math.log(precision.perplexity_bound), _ROUNDINGS)
    if not divergence <= most:
        raise VerificationError(
            f"The {precision.name} package computes something else than its source: their predictions diverge by "
            f"{divergence:.4f} nats a token, and {most:.4f} is the bound. {way_out} Where fp32 is refused too, please "
            "report it with the source's config.json."
        )
    after, source_after = quality.after_prefill or (1.0, 1.0)
    if not after / source_after <= precision.perplexity_bound:
        raise VerificationError(
            f"Behind a prompt that its prefill graph has read, the {precision.name} package has a perplexity of "
            f"{after:.2f} where its source has {source_after:.2f}: {after / source_after:.3f} times, and "
            f"{precision.perplexity_bound} is the bound. Nothing was written. Export it without --prefill-graph."
        )


def known_marks(tokenizer: Tokenizer, config: ModelConfig) -> list[int]:
    """Return the tokens that stand around a text that a model reads.

    Raises:
        VerificationError: the model does not have one of them.
    """
    marks = list(tokenizer.leading_ids if config.encoder is None else tokenizer.as_source(()))
    if unknown := [id_ for id_ in marks if id_ >= config.vocab_size]:
        raise VerificationError(
            f"The tokenizer puts token {unknown[0]} around a text; the model's are 0 to {config.vocab_size - 1}. "
            "Nothing was written. Take the tokenizer that belongs to the weights."
        )
    return marks


def _texts(tokenizer: Tokenizer, config: ModelConfig) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Return what an encoder reads for each window, the windows, and the prompt of the greedy tokens.

    A model with an encoder is asked to repeat what it reads: whatever it was trained for, the same text has a bearing
    on it. Without an encoder nothing is read.

    Raises:
        VerificationError: the tokenizer is another model's.
    """
    marks = known_marks(tokenizer, config)
    ids = [id_ for id_ in tokenizer.encode(verification_text()) if id_ < config.vocab_size]
    begin = marks if config.encoder is None else list(config.decoder_prompt_ids)
    around = max(len(begin), len(marks))
    context = min(stack.max_position_embeddings for stack in (config, config.encoder or config))
    is_large = config.count_parameters() > _LARGE
    length = _WINDOW_TOKENS_OF_LARGE if is_large else _WINDOW_TOKENS
    length = min(length, context - around, len(ids) // _WINDOWS)
    if length < 1 or length + len(begin) < 2:
        raise VerificationError(
            f"There is nothing to check: of its text the tokenizer makes {len(ids)} tokens that the model has, and the "
            f"context has room for {context}. Nothing was written. Take the tokenizer that belongs to the weights."
        )
    texts = [ids[i * length : (i + 1) * length] for i in range(_WINDOWS)]
    windows = [begin + text for text in texts]
    if config.encoder is None:
        return [[] for _ in texts], windows, windows[0][: min(_GREEDY_PROMPT, len(windows[0]) // 2)]
    return [tokenizer.as_source(text) for text in texts], windows, begin


def _cache_for(session: DecoderSession, source_ids: list[int], tokens: int) -> KVCache:
    """Return a cache with room for so many tokens: to grow, it would be there twice.

    The session makes the room, and gives back what the window before has read of the embedding's file.
    """
    cache = session.new_cache()
    cache.read_source(source_ids)
    session.reserve(cache, tokens)
    return cache


def _keep_logits_behind(session: DecoderSession, ids: list[int], cache: KVCache, kept: IO[bytes]) -> None:
    """Write the logits at `ids` behind what a cache holds, `_ROWS_AT_ONCE` rows an array."""
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        np.save(kept, session.forward(ids[start : start + _ROWS_AT_ONCE], cache, all_logits=True))


def _greedy(session: DecoderSession, prompt: list[int], source_ids: list[int]) -> list[int]:
    count = min(_GREEDY_TOKENS, session.config.max_position_embeddings - len(prompt))
    cache = _cache_for(session, source_ids, len(prompt) + count)
    logits_V = prefill(session, prompt, cache)
    assert logits_V is not None  # nothing cancels it
    ids: list[int] = []
    for place in range(count):
        if place % _STEPS_AT_ONCE == 0:
            session.reserve(cache, len(prompt) + count)  # what the steps until now have read is given back
        ids.append(int(logits_V.argmax()))
        logits_V = session.forward(ids[-1:], cache)[0]
    return ids
