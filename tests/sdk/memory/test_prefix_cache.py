import dataclasses
import gc
import threading
import tracemalloc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_model import make_checkpoint
from model_features import LINEAR, config_with
from unchecked_export import export_unchecked

import edgelm
from edgelm import ChatSession, Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.decoding.answer import join
from edgelm.memory import prefix_cache
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import BLOCK, PrefixCache
from edgelm.memory.returned_memory import CAN_RETURN
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SHORT = GenerationConfig(max_new_tokens=4, ignore_eos=True)


@pytest.fixture
def model() -> LanguageModel:
    return edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))


def random_ids(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 320, length).tolist()


def cached(completion: edgelm.Completion) -> int:
    return completion.usage.cached_tokens


def computed(model: LanguageModel) -> int:
    assert isinstance(model.session, ScriptedDecoder)
    return sum(map(len, model.session.forwarded))


def filled(model: LanguageModel, ids: list[int]) -> KVCache:
    cache = model.session.new_cache()
    for start in range(0, len(ids), 128):
        model.session.forward(ids[start : start + 128], cache)
    return cache


def content(cache: KVCache, length: int) -> np.ndarray:
    return np.stack([buffer[0, :, :length] for buffer in cache.buffers])


def test_a_beginning_whose_copying_is_interrupted_is_not_taken_without_its_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_with(LINEAR | {"num_hidden_layers": 2, "layer_types": ("full_attention", "linear_attention")})
    prefixes, kept, ids = PrefixCache(config), KVCache(config), random_ids(2 * BLOCK + 2)
    kept.reserve(len(ids))
    kept.extend(ids[: 2 * BLOCK])
    kept.take_snapshot()
    prefixes.keep(kept, 2 * BLOCK)

    def interrupted(cache: KVCache, states: object) -> None:
        raise KeyboardInterrupt

    cache = KVCache(config)
    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "go_on_from", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prefixes.fill(cache, ids)
    assert cache.length == 0
    assert prefixes.fill(cache, ids) == 2 * BLOCK


def test_a_system_prompt_of_2000_tokens_is_computed_once() -> None:
    config = edgelm.ModelConfig.load(tiny_model_path()).to_dict() | {"max_position_embeddings": 4096}
    model = scripted_model("Fine.")
    model.session.config = edgelm.ModelConfig.from_dict(config)
    model.prefixes = PrefixCache(model.session.config)
    system, turns = random_ids(2000), [random_ids(20, seed) for seed in range(5)]
    for turn in turns:
        model.generate([*system, *turn], SHORT)
    with Engine(model) as engine:
        for turn in turns:
            join(engine.submit([*system, *turn, 7], SHORT))
    # Once whole; then each time the rest of the last block, and what is new.
    assert 2000 < computed(model) < 2000 + 10 * (BLOCK + 21 + SHORT.max_new_tokens + 1)


def test_a_reused_beginning_has_the_bits_of_a_fresh_one(model: LanguageModel) -> None:
    ids = random_ids(300)
    fresh = filled(model, ids)
    for shared in (32, 64, 100, 128, 200, 256, 298, 299, 300):
        prefixes = PrefixCache(model.config)
        prefixes.keep(filled(model, ids[:shared] + random_ids(50, seed=shared)), 350)
        cache = model.session.new_cache()
        assert prefixes.fill(cache, ids) == min(shared, 298) // BLOCK * BLOCK
        logits_V = edgelm.decoding.generate.prefill(model.session, ids, cache)
        np.testing.assert_array_equal(content(cache, 300), content(fresh, 300))
        again = model.session.new_cache()
        np.testing.assert_array_equal(logits_V, edgelm.decoding.generate.prefill(model.session, ids, again))


@pytest.mark.parametrize(("head_dim", "lengths"), [(32, (65, 97, 193)), (48, (97, 225))])
def test_a_reused_beginning_has_the_bits_of_a_fresh_one_where_heads_have_other_sizes(
    tmp_path: Path, head_dim: int, lengths: tuple[int, ...]
) -> None:
    """The attention computes the queries of a call in groups by the size of a head: of 64, and of 96."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", config_with({"head_dim": head_dim}))
    export_unchecked(HuggingFaceCheckpoint(checkpoint), tmp_path / "package", "fp32")
    session = edgelm.load(tmp_path / "package", edgelm.SessionOptions(threads=1)).session
    for length in lengths:
        ids, fresh = random_ids(length), session.new_cache()
        fresh_V = edgelm.decoding.generate.prefill(session, ids, fresh).copy()
        for kept in range(32, length - 2, 32):
            cache = session.new_cache()
            edgelm.decoding.generate.prefill(session, ids[: kept + 2], cache)
            cache.truncate(kept)
            np.testing.assert_array_equal(edgelm.decoding.generate.prefill(session, ids, cache), fresh_V)
            np.testing.assert_array_equal(content(cache, length), content(fresh, length))


def test_two_tokens_at_least_are_left_to_compute(model: LanguageModel) -> None:
    ids = random_ids(100)
    prefixes = PrefixCache(model.config)
    prefixes.keep(filled(model, ids), 100)
    for length, reused in ((33, 0), (34, 32), (65, 32), (66, 64)):
        assert prefixes.fill(model.session.new_cache(), ids[:length]) == reused


def test_what_a_cache_holds_already_is_neither_copied_nor_counted(model: LanguageModel) -> None:
    ids = random_ids(200)
    prefixes, cache = PrefixCache(model.config), filled(model, ids[:100])
    prefixes.keep(filled(model, ids[:64]), 64)
    assert (prefixes.extend(cache, ids), cache.length, prefixes.reused_tokens) == (0, 100, 0)
    prefixes.keep(filled(model, ids), 200)
    assert (prefixes.extend(cache, ids), cache.length, prefixes.reused_tokens) == (92, 192, 92)
    np.testing.assert_array_equal(content(cache, 192), content(filled(model, ids), 192))


def test_a_spent_cache_is_emptied_while_it_is_copied(model: LanguageModel) -> None:
    ids = random_ids(200)
    cache, other = filled(model, ids), model.session.new_cache()
    wanted, buffers = content(cache, 192).copy(), cache.buffers
    model.prefixes.keep(cache, 200, is_spent=True)
    assert cache.length == 0
    assert model.prefixes.fill(other, [*ids[:192], 5, 6]) == 192
    assert np.array_equal(content(other, 192), wanted)
    if CAN_RETURN:  # whole pages: those at an array's ends may be its neighbours', too
        pages = [buffer.reshape(-1)[1024:-1024] for buffer in buffers]
        assert all(page.size and not page.any() for page in pages)


def test_an_answer_without_a_cache_of_its_callers_spends_its_own(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: list[bool] = []
    keep = PrefixCache.keep

    def noting(self: PrefixCache, cache: KVCache, tokens: int, *, is_spent: bool = False) -> None:
        spent.append(is_spent)
        keep(self, cache, tokens, is_spent=is_spent)

    monkeypatch.setattr(PrefixCache, "keep", noting)
    given = model.new_cache()
    model.generate(random_ids(40), SHORT)
    join(model.stream(random_ids(40), SHORT, cache=given))
    assert (spent, given.length) == ([True, False], 40 + SHORT.max_new_tokens - 1)


def test_usage_tells_how_much_was_reused(model: LanguageModel) -> None:
    ids = random_ids(200)
    completions = [model.generate(ids, SHORT) for _ in range(2)]
    assert [cached(completion) for completion in completions] == [0, 192]
    assert [completion.timings.prefill_tokens for completion in completions] == [200, 8]
    assert completions[0].token_ids == completions[1].token_ids
    assert model.prefixes.reused_tokens == 192


def test_the_second_turn_of_a_conversation_reuses_the_answer_of_the_first(model: LanguageModel) -> None:
    ids = random_ids(100)
    config = GenerationConfig(max_new_tokens=100, ignore_eos=True)
    answer = list(model.generate(ids, config).token_ids)
    assert cached(model.generate(ids + answer + [9, 9], SHORT)) == 192
    model.prefixes = PrefixCache(model.config, answers=False)
    model.generate(ids, config)
    assert cached(model.generate(ids + answer + [9, 9], SHORT)) == 96


def test_a_chat_begins_with_what_another_chat_computed(model: LanguageModel) -> None:
    system = "You are a sailor who knows every sea. " * 20
    for name in ("first", "second"):
        chat = ChatSession(model, system=system)
        usage = list(chat.send(f"I am the {name}.", SHORT))[-1].usage
    assert usage is not None
    assert usage.cached_tokens > 300
    assert usage.cached_tokens == (usage.prompt_tokens - len(model.tokenizer.encode("second."))) // BLOCK * BLOCK or (
        usage.prompt_tokens - usage.cached_tokens < 2 * BLOCK + 20
    )


def test_several_samples_of_one_prompt_compute_it_once(model: LanguageModel) -> None:
    ids = random_ids(330)
    configs = [GenerationConfig(max_new_tokens=8, temperature=1.0, seed=seed) for seed in range(4)]
    with Engine(model) as engine:
        generations = [engine.submit(ids, config) for config in configs]
        got = [join(generation) for generation in generations]
    assert engine.stats.prompt_tokens == 330 + 3 * 10  # 320 of the 330 are whole blocks
    assert sum(cached(completion) for completion in got) == 3 * 320
    assert [c.token_ids for c in got] == [model.generate(ids, config).token_ids for config in configs]
    assert len({c.token_ids for c in got}) == 4


def test_what_was_used_longest_ago_goes_first(model: LanguageModel) -> None:
    block = BLOCK * model.config.kv_bytes_per_token
    prefixes = PrefixCache(model.config, 6 * block)
    texts = [random_ids(2 * BLOCK + 2, seed) for seed in range(4)]
    for ids in texts[:3]:
        prefixes.keep(filled(model, ids), len(ids))
    assert (prefixes.bytes, prefixes.tokens) == (6 * block, 6 * BLOCK)
    assert prefixes.fill(model.session.new_cache(), texts[0]) == 2 * BLOCK  # used again, so the second is the oldest
    prefixes.keep(filled(model, texts[3]), len(texts[3]))
    assert prefixes.bytes == 6 * block
    found = [prefixes.fill(model.session.new_cache(), ids) for ids in texts]
    assert found == [2 * BLOCK, 0, 2 * BLOCK, 2 * BLOCK]


def test_the_end_of_a_long_text_goes_before_its_beginning(model: LanguageModel) -> None:
    prefixes = PrefixCache(model.config, 3 * BLOCK * model.config.kv_bytes_per_token)
    ids = random_ids(6 * BLOCK)
    prefixes.keep(filled(model, ids), len(ids))
    assert prefixes.fill(model.session.new_cache(), ids) == 3 * BLOCK


def test_of_a_text_that_gives_way_the_beginning_stays_longest(model: LanguageModel) -> None:
    prefixes = PrefixCache(model.config, 5 * BLOCK * model.config.kv_bytes_per_token)
    texts = [random_ids(length * BLOCK + 2, seed=length) for length in (4, 3)]
    for ids in texts:
        prefixes.keep(filled(model, ids), len(ids))
    assert prefixes.tokens == 5 * BLOCK
    assert [prefixes.fill(model.session.new_cache(), ids) for ids in texts] == [2 * BLOCK, 3 * BLOCK]


def test_what_is_forgotten_is_freed_at_once(model: LanguageModel) -> None:
    """256 MiB would wait for Python to look for cycles: an idle program may never do."""

    def kept() -> list[weakref.ref[object]]:
        model.prefixes.keep(filled(model, random_ids(200)), 200)
        return [weakref.ref(block) for block in model.prefixes._by_use]

    gc.disable()
    try:
        blocks = kept()
        model.prefixes.clear()
        assert [block() for block in blocks] == [None] * 6
        blocks = kept()
        model.prefixes = PrefixCache(model.config)
        assert [block() for block in blocks] == [None] * 6
    finally:
        gc.enable()


def test_a_text_whose_beginning_an_interrupt_left_the_older_one_is_forgotten_behind_it(model: LanguageModel) -> None:
    ids = random_ids(2 * BLOCK)
    prefixes = PrefixCache(model.config, 2 * BLOCK * model.config.kv_bytes_per_token)
    prefixes.keep(filled(model, ids[:BLOCK]), BLOCK)

    class Interrupted(OrderedDict):  # type: ignore[type-arg]
        def move_to_end(self, key: object, last: bool = True) -> None:
            raise KeyboardInterrupt

    prefixes._by_use = Interrupted(prefixes._by_use)
    with pytest.raises(KeyboardInterrupt):
        prefixes.keep(filled(model, ids), 2 * BLOCK)
    prefixes._by_use = OrderedDict(prefixes._by_use)
    for seed in (1, 2):
        prefixes.keep(filled(model, random_ids(BLOCK, seed)), BLOCK)
    assert prefixes.fill(model.new_cache(), [*random_ids(BLOCK, 2), 5, 6]) == BLOCK
    assert prefixes.tokens == 2 * BLOCK


@pytest.mark.parametrize(("more", "kept"), [(-1, 0), (0, BLOCK)])
def test_a_budget_of_one_block_keeps_one(model: LanguageModel, more: int, kept: int) -> None:
    prefixes = PrefixCache(model.config, BLOCK * model.config.kv_bytes_per_token + more)
    prefixes.keep(filled(model, random_ids(100)), 100)
    assert prefixes.tokens == kept


def test_what_an_adapter_computed_is_forgotten_with_its_bytes(model: LanguageModel) -> None:
    prefixes, ids, adapted = PrefixCache(model.config), random_ids(100), model.session.new_cache()
    prefixes.keep(filled(model, ids), 100)
    cache = filled(model, ids)
    cache.adapter = "sea"
    prefixes.keep(cache, 100)
    assert prefixes.tokens == 2 * 96
    prefixes.forget_adapter("sea")
    assert prefixes.tokens == 96
    adapted.use_adapter("sea")
    assert prefixes.fill(adapted, ids) == 0
    assert prefixes.fill(model.session.new_cache(), ids) == 96


@pytest.mark.parametrize("lengths", [(60, 100, 60), (100, 60, 100)])
def test_beginnings_of_short_and_long_texts_are_kept_apart_where_they_turn_otherwise(
    lengths: tuple[int, ...], longrope_package: Path
) -> None:
    model, alone = edgelm.load(longrope_package), edgelm.load(longrope_package)
    alone.prefixes = PrefixCache(alone.config, 0)
    config, ids = GenerationConfig(max_new_tokens=3, ignore_eos=True, logprobs=0), random_ids(100)
    answers = [model.generate(ids[:length], config) for length in lengths]
    assert [answer.logprobs for answer in answers] == [
        alone.generate(ids[:length], config).logprobs for length in lengths
    ]
    assert [cached(answer) for answer in answers] == [0, 0, 32 if lengths[0] == 60 else 0]


def test_of_a_text_beyond_the_budget_only_what_is_kept_is_copied(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_cache, "available_memory", lambda **_: None)  # which reads files, and is no copy
    block = BLOCK * model.config.kv_bytes_per_token
    ids = random_ids(20 * BLOCK)
    prefixes, cache = PrefixCache(model.config, 3 * block), filled(model, ids)
    copied = []
    for _ in range(2):
        tracemalloc.start()
        prefixes.keep(cache, len(ids))
        copied.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert prefixes.tokens == 3 * BLOCK
    assert 3 * block <= copied[0] < 4 * block
    assert copied[1] < block


def test_a_cache_of_no_bytes_keeps_nothing_and_clear_forgets(model: LanguageModel) -> None:
    ids = random_ids(100)
    model.prefixes.keep(filled(model, ids), 100)
    assert model.prefixes.tokens == 96
    model.prefixes.clear()
    assert (model.prefixes.tokens, model.prefixes.fill(model.session.new_cache(), ids)) == (0, 0)
    nothing = PrefixCache(model.config, 0)
    nothing.keep(filled(model, ids), 100)
    assert nothing.bytes == 0


@pytest.mark.parametrize("size", [-1, 1.5, "1"])
def test_the_budget_is_checked(model: LanguageModel, size: int) -> None:
    with pytest.raises(
        edgelm.ConfigError, match=r"max_bytes is .*; it must be a whole number of bytes, 0 for no cache"
    ):
        PrefixCache(model.config, size)


def test_what_is_no_config_or_another_models_makes_no_prefix_cache(model: LanguageModel) -> None:
    with pytest.raises(edgelm.ConfigError, match=r"config is 1024; it must be an edgelm\.ModelConfig"):
        PrefixCache(1024)  # type: ignore[arg-type]
    model.prefixes = PrefixCache(dataclasses.replace(model.config, num_key_value_heads=2))
    with pytest.raises(edgelm.ConfigError, match="prefixes is the PrefixCache of another model"):
        model.generate("x")


def test_threads_share_a_prefix_cache_that_is_always_full(model: LanguageModel) -> None:
    model.prefixes = PrefixCache(model.config, 12 * BLOCK * model.config.kv_bytes_per_token, answers=False)
    base = random_ids(300)
    texts = [base[: 60 * (i % 5)] + random_ids(100, seed=i) for i in range(30)]
    alone = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))
    alone.prefixes = PrefixCache(alone.config, 0)
    expected = [alone.generate(ids, SHORT).token_ids for ids in texts]
    got: dict[int, tuple[int, ...]] = {}

    def work(first: int) -> None:
        for i in range(first, 30, 3):
            got[i] = model.generate(texts[i], SHORT).token_ids

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(30)] == expected
    assert model.prefixes.bytes <= model.prefixes.max_bytes


@pytest.mark.usefixtures("no_collection")
def test_an_answer_that_the_garbage_collector_ends_while_another_is_kept_waits_for_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, add, collections = PrefixCache._copies, weakref.WeakSet.add, []

    def abandon() -> None:
        chunks = model.stream(random_ids(70), SHORT.replace(max_new_tokens=40))
        next(chunks)
        cycle: list[object] = [chunks]
        cycle.append(cycle)

    def collect_first(function: Callable[..., Any]) -> Callable[..., Any]:
        def collecting(*arguments: Any, **named: Any) -> Any:
            collections.append(gc.collect())
            return function(*arguments, **named)

        return collecting

    def answer() -> None:
        for place, name, function in ((PrefixCache, "_copies", copies), (weakref.WeakSet, "add", add)):
            abandon()
            with monkeypatch.context() as patch:
                patch.setattr(place, name, collect_first(function))
                model.generate(random_ids(70, seed=1 + len(collections)), SHORT)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert any(collections)


def test_an_engine_refuses_at_once_what_does_not_fit_its_memory(model: LanguageModel) -> None:
    size = model.config.kv_bytes_per_token
    with Engine(model, EngineOptions(max_kv_bytes=100 * size)) as engine:
        with pytest.raises(
            edgelm.ContextLengthError,
            match=rf"150 tokens of prompt and answer take {150 * size} bytes .* has {100 * size} \(max_kv_bytes\)",
        ):
            engine.submit(random_ids(90), GenerationConfig(max_new_tokens=60))
        ends = join(engine.submit(random_ids(90), GenerationConfig(ignore_eos=True)))
    assert (ends.finish_reason, ends.usage.completion_tokens) == ("length", 11)
