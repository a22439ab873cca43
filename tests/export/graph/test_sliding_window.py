"""Layers with a window, or a convolution, give back the memory of what has left it, and every answer is the one of a
cache that keeps all.

The oracles are the same package with nothing given back, bit for bit, transformers, and this project's Transformer.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint
from transformers import AutoModelForCausalLM

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel
from edgelm.architecture.hf_config import hf_config
from edgelm.config import SECTION, ModelConfig
from edgelm.decoding.answer import join
from edgelm.errors import PackageError
from edgelm.memory import kv_cache
from edgelm.memory.cache_layout import cache_layout
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.memory.returned_memory import CAN_RETURN
from edgelm_training.checkpoints.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not CAN_RETURN, reason="Memory is given back on Linux.")

WINDOW = 40
MOST_HELD = WINDOW + 3 * 128  # what guesses may take back, what is given back at once, and a chunk
WINDOWED = dataclasses.replace(
    CONFIG,
    qk_norm=True,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=WINDOW,
    layer_types=("sliding_attention", "full_attention", "sliding_attention"),
)
CONVOLVING = dataclasses.replace(
    WINDOWED, sliding_window=None, layer_types=("conv", "full_attention", "conv"), conv_L_cache=3, hidden_size=64
)
SHARING = dataclasses.replace(
    WINDOWED,
    num_hidden_layers=5,
    layer_types=("sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"),
    num_kv_shared_layers=2,
    rope_local_theta=500.0,
    global_head_dim=32,
    num_global_key_value_heads=1,
    attention_multiplier=0.25,
    v_norm=True,
    hidden_size_per_layer_input=8,
)
IDS = np.random.default_rng(0).integers(3, 320, 620).tolist()
ANSWER = GenerationConfig(max_new_tokens=140, ignore_eos=True, temperature=0.0, logprobs=0)


@pytest.fixture(scope="module", params=[WINDOWED, CONVOLVING, SHARING], ids=["windows", "convolutions", "shared keys"])
def checkpoint(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("window") / "checkpoint", request.param)


@pytest.fixture(scope="module")
def packages(checkpoint: Path) -> Callable[[str], Path]:
    def package(kept_in: str) -> Path:
        folder = checkpoint.parent / kept_in
        if not folder.exists():
            result = invoke("export", checkpoint, "-o", folder, "--precision", "fp32", "--kv-cache", kept_in)
            assert result.exit_code == 0, result.output
        return folder

    return package


@pytest.fixture(params=["fp32", "int8"])
def either_model(packages: Callable[[str], Path], request: pytest.FixtureRequest) -> LanguageModel:
    return edgelm.load(packages(request.param), edgelm.SessionOptions(threads=1))


@pytest.fixture
def model(packages: Callable[[str], Path]) -> LanguageModel:
    return edgelm.load(packages("fp32"), edgelm.SessionOptions(threads=1))


@pytest.fixture
def keeping_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Let caches give nothing back for a while."""

    @contextmanager
    def patched() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(kv_cache, "CAN_RETURN", False)
            yield

    return patched


KeepingAll = Callable[[], AbstractContextManager[None]]


def said(model: LanguageModel, ids: Sequence[int], config: GenerationConfig, cache: KVCache) -> tuple[object, ...]:
    """What an answer says, and with which probabilities."""
    completion = join(model.stream(ids, config, cache=cache))
    return completion.token_ids, completion.logprobs


def alone(model: LanguageModel, ids: Sequence[int], config: GenerationConfig = ANSWER) -> tuple[object, ...]:
    """The same with a cache that keeps all, and nothing that was computed before."""
    prefixes, model.prefixes = model.prefixes, PrefixCache(model.config, 0)
    cache = model.session.new_cache()
    answer = said(model, ids, config, cache)
    model.prefixes = prefixes
    assert cache.released == 0
    return answer


def check_whole_pages_hold_nothing(cache: KVCache) -> None:
    """Check that where a window is, the whole pages of what was given back hold nothing, and the others all."""
    windows = [buffer.window for buffer in cache_layout(cache.config)]
    assert None in windows
    assert set(windows) != {None}
    for buffer, window in zip(cache.buffers, windows, strict=True):
        tokens = mmap.PAGESIZE // (buffer.shape[3] * buffer.itemsize) + 1  # of one head, in a page
        assert cache.released > 2 * tokens
        assert buffer[0, :, tokens : cache.released - tokens].any() == (window is None)


def test_an_answer_is_that_of_a_cache_which_keeps_all(
    either_model: LanguageModel, keeping_all: KeepingAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = either_model, []
    forward, cache = model.session.forward, model.session.new_cache()
    cache.reserve(1024)  # a cache that grows takes nothing along of what was given back

    def recorded(ids: Sequence[int], cache: KVCache, **options: bool) -> object:
        logits_TV = forward(ids, cache, **options)
        held.append(cache.length - cache.released)
        return logits_TV

    config = ANSWER.replace(max_new_tokens=200)  # until whole pages of int8 are given back in the midst of it
    with keeping_all():
        expected = alone(model, IDS, config)
    monkeypatch.setattr(model.session, "forward", recorded)
    assert said(model, IDS, config, cache) == expected
    assert max(held) <= MOST_HELD
    assert cache.length - cache.released < WINDOW + 2 * 128
    check_whole_pages_hold_nothing(cache)


def test_the_probabilities_are_those_of_other_runtimes(model: LanguageModel, checkpoint: Path) -> None:
    cache = model.session.new_cache()
    completion = join(model.stream(IDS, ANSWER, cache=cache))
    assert cache.released > 0
    ids = torch.tensor([[*IDS, *completion.token_ids]])
    with torch.no_grad():
        if hf_config(model.config)["model_type"] == SECTION:  # transformers knows it not; test_families.py compares
            logits_TV = load_checkpoint(checkpoint)(ids)[0, len(IDS) - 1 : -1]
        else:
            theirs = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
            assert theirs.config.sliding_window == WINDOW
            logits_TV = theirs(ids).logits[0, len(IDS) - 1 : -1]
    expected_T = torch.log_softmax(logits_TV, -1)[range(len(completion.token_ids)), list(completion.token_ids)]
    # Float32 in another order of sums.
    np.testing.assert_allclose([each.logprob for each in completion.logprobs], expected_T.numpy(), atol=1e-4)


@pytest.mark.parametrize(("drafted", "exact"), [(False, False), (False, True), (True, False)])
def test_wrong_guesses_leave_the_cache_again(
    drafted: bool, exact: bool, model: LanguageModel, packages: Callable[[str], Path], keeping_all: KeepingAll
) -> None:
    draft = edgelm.load(packages("int8"), edgelm.SessionOptions(threads=1))
    config = ANSWER.replace(speculation=draft if drafted else "prompt_lookup", exact_speculation=exact)
    ids = IDS[:30] * 16
    with keeping_all():
        expected = alone(model, ids, ANSWER if exact else config)
    cache = model.session.new_cache()
    cache.reserve(1024)
    assert said(model, ids, config, cache)[0] == expected[0]
    check_whole_pages_hold_nothing(cache)


def test_what_was_given_back_is_taken_from_the_kept_beginnings(
    either_model: LanguageModel, keeping_all: KeepingAll
) -> None:
    model = either_model
    model.prefixes = PrefixCache(model.config, answers=False)
    cache = model.session.new_cache()
    said(model, IDS, ANSWER, cache)
    other = [*IDS[:300], *IDS[:50]]  # parts within what is no longer there
    with keeping_all():
        expected = alone(model, other)
    completion = join(model.stream(other, ANSWER, cache=cache))
    assert (completion.token_ids, completion.logprobs) == expected
    assert completion.usage.cached_tokens == 288
    # All of the first prompt but its end is kept, though the cache never held it together.
    assert join(model.stream(IDS, ANSWER)).usage.cached_tokens == 608


def test_what_is_kept_no_more_is_not_kept_again_when_it_was_given_back(model: LanguageModel) -> None:
    cache = model.session.new_cache()
    said(model, IDS, ANSWER, cache)
    prefixes = PrefixCache(model.config)
    prefixes.keep(cache, len(IDS))
    assert prefixes.tokens == 0


def test_a_cache_that_has_given_back_too_much_begins_again(model: LanguageModel, keeping_all: KeepingAll) -> None:
    model.prefixes = PrefixCache(model.config, 0)
    cache = model.session.new_cache()
    said(model, IDS, ANSWER, cache)
    least = cache.released + (WINDOW if model.config.sliding_window else 3)
    for length, left in ((least, least), (least - 1, 0)):
        copy = cache.clone()
        copy.truncate(length)
        assert copy.length == left
        ids = [*cache.token_ids[:length], 9, 10, 11]
        with keeping_all():
            expected = alone(model, ids, ANSWER.replace(max_new_tokens=8))
        assert said(model, ids, ANSWER.replace(max_new_tokens=8), copy)[0] == expected[0]


def test_rows_of_a_batch_and_beams_answer_as_alone(
    model: LanguageModel, keeping_all: KeepingAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_rows, held = model.session.forward_rows, []

    def recorded(ids: Sequence[int], batch: KVBatch, guesses: Sequence[Sequence[int]] = ()) -> object:
        logits_BV = forward_rows(ids, batch, guesses)
        held.extend(row.length - row.released for row in batch.rows)
        return logits_BV

    model.prefixes = PrefixCache(model.config, 0)
    prompts, config = [IDS[:length] for length in (500, 7, 350, 130)], ANSWER.replace(max_new_tokens=72)
    beams = ANSWER.replace(num_beams=3, max_new_tokens=16)
    with keeping_all():
        expected = [alone(model, ids, config) for ids in prompts]
        searched = alone(model, IDS, beams)
    monkeypatch.setattr(model.session, "forward_rows", recorded)
    answers = model.generate_batch([*prompts, *prompts], config, max_batch=3)  # rows end, move and are used again
    assert [(answer.token_ids, answer.logprobs) for answer in answers] == [*expected, *expected]
    assert max(held) <= WINDOW + 2 * 128
    assert said(model, IDS, beams, model.session.new_cache()) == searched


def test_a_saved_conversation_goes_on(model: LanguageModel, keeping_all: KeepingAll, tmp_path: Path) -> None:
    def talk() -> list[str]:
        session = ChatSession(model)
        said = ["".join(chunk.text for chunk in session.send("The sea " * 60, ANSWER))]
        session.save(tmp_path / "chat")
        assert session._cache.released == KVCache.load(path, model.config, model.fingerprint).released
        assert (session._cache.released > 0) == kv_cache.CAN_RETURN
        session = ChatSession.load(model, tmp_path / "chat")
        return [*said, "".join(chunk.text for chunk in session.send("And the sky?", ANSWER))]

    path = tmp_path / "chat" / "cache.npz"
    model.prefixes = PrefixCache(model.config, 0)
    with keeping_all():
        expected = talk()
    assert talk() == expected


def test_a_saved_cache_that_leaves_too_much_out_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    cache = model.session.new_cache()
    model.session.forward(IDS[:50], cache)
    allowed = 10 if model.config.sliding_window else 47
    cache.save(tmp_path / "cache.npz", "tiny")
    with np.load(tmp_path / "cache.npz") as saved:
        np.savez(tmp_path / "cache.npz", **dict(saved) | {"released": np.array(allowed + 1)})
    with pytest.raises(PackageError, match=f"leaves out {allowed + 1} of 50 tokens; the windows of this model allow"):
        KVCache.load(tmp_path / "cache.npz", model.config, "tiny")


def test_show_says_what_a_full_context_takes(packages: Callable[[str], Path], checkpoint: Path) -> None:
    shown = invoke("show", packages("fp32")).stdout
    # Keys and values of 2 heads of 16 floats: 256 bytes a layer; of 1,024 tokens in one, of 424 in those with a window.
    # Or of 387 what two convolutions read, 512 bytes.
    window = 3 if ModelConfig.load(checkpoint).conv_channels else 40
    assert f"fp32, 0.8 KiB per token, 0.8 MB when full (0.5 MB on Linux: 2 layers with a window of {window})" in shown
