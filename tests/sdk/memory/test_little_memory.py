"""What the limits of a process leave it, what does not fit is refused, and what happens where memory runs out."""

import dataclasses
import math
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from held_engine import held
from numpy.typing import DTypeLike
from waiting import wait_for

import edgelm
from edgelm import (
    ContextLengthError,
    Engine,
    EngineOptions,
    GenerationConfig,
    LanguageModel,
    OutOfMemoryError,
    loading,
)
from edgelm.architecture.tensor_shapes import tensor_shapes
from edgelm.batching import engine as engine_module
from edgelm.batching.running_batch import RunningBatch
from edgelm.config import ModelConfig
from edgelm.files import control_groups
from edgelm.memory import available_memory, huge_pages, kv_batch, kv_cache, prefix_cache
from edgelm.memory.kv_cache import KeysOrValues, KVCache
from edgelm.memory.out_of_memory import out_of_memory
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.load_memory import memory_to_load
from edgelm.package.package import open_package
from edgelm.runtime import session
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path

PROMPT = [11, 12, 13, 14] * 75
SHORT = GenerationConfig(max_new_tokens=40, ignore_eos=True)
UNLIMITED_V1 = "9223372036854771712\n"
FULL_V1 = "active_file 1\ntotal_active_file 20\ntotal_inactive_file 30\n"
LIMITS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "no limit": ("0::/app\n", {"app/memory.max": "max\n", "app/memory.current": "7\n"}, None),
    "a group's own": (
        "0::/app\n",
        {"app/memory.max": "900\n", "app/memory.current": "700\n", "app/memory.stat": "anon 650\n"},
        200,
    ),
    "memory that holds files can be had": (
        "0::/app\n",
        {
            "app/memory.max": "900\n",
            "app/memory.current": "700\n",
            "app/memory.stat": "anon 600\nfile 100\ninactive_file 60\nactive_file 40\n",
        },
        300,
    ),
    "a name that is no UTF-8": (
        "0::/app-\udcff\n",
        {"memory.max": "900\n", "memory.current": "700\n", "memory.stat": ""},
        200,
    ),
    "a name with what else ends a line": (
        "0::/app\x85\u2028\r\n",
        {"memory.max": "900\n", "memory.current": "700\n", "memory.stat": ""},
        200,
    ),
    "the group around it": (
        "0::/app/inner\n",
        {
            "app/inner/memory.max": "max\n",
            "app/memory.max": "900\n",
            "app/memory.current": "950\n",
            "app/memory.stat": "",
        },
        0,
    ),
    "a container sees its own as the outermost": (
        "0::/machine/7\n",
        {"memory.max": "900\n", "memory.current": "100\n", "memory.stat": ""},
        800,
    ),
    "v1": (
        "5:cpu:/docker/7\n4:memory:/docker/7\n0::/\n",
        {
            "memory/memory.limit_in_bytes": "900\n",
            "memory/memory.usage_in_bytes": "700\n",
            "memory/memory.stat": FULL_V1,
        },
        250,
    ),
    "v1 without a limit": (
        "4:memory:/\n",
        {
            "memory/memory.limit_in_bytes": UNLIMITED_V1,
            "memory/memory.usage_in_bytes": "700\n",
            "memory/memory.stat": "",
        },
        None,
    ),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_the_limits_of_control_groups_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    groups, files, left = LIMITS[kind]
    (tmp_path / "cgroup").write_bytes(os.fsencode(groups))
    for name, content in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(content)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert available_memory.memory_within_limits() == left
    assert available_memory.memory_limit() == (None if left is None else 900)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nobody says how much a process has")
def test_the_limit_of_the_address_space_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "none")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + (1 << 30), resource.RLIM_INFINITY))
    left = available_memory.memory_within_limits()
    assert left is not None
    assert (1 << 30) - (64 << 20) < left <= (1 << 30) + (64 << 20)  # what is mapped meanwhile
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, resource.RLIM_INFINITY))
    assert available_memory.memory_within_limits() == 0


def test_limits_bound_what_is_free_and_swap_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     500 kB\nSwapFree:    300 kB\n")
    monkeypatch.setattr(available_memory, "_MEMORY_INFO", tmp_path / "meminfo")
    for within, free, with_swap in ((None, 500, 800), (600 << 10, 500, 600), (100 << 10, 100, 100)):
        monkeypatch.setattr(available_memory, "memory_within_limits", lambda within=within: within)
        assert available_memory.available_memory() == free << 10
        assert available_memory.available_memory(with_swap=True) == with_swap << 10


@pytest.mark.parametrize(("limit", "left"), [(400, 300), (800, 200)])
def test_an_engine_takes_a_quarter_of_its_limit_or_half_of_what_that_leaves(
    monkeypatch: pytest.MonkeyPatch, limit: int, left: int
) -> None:
    model = scripted_model("Fine.")
    monkeypatch.setattr(engine_module, "memory_limit", lambda: limit * model.config.kv_bytes_per_token)
    monkeypatch.setattr(engine_module, "memory_within_limits", lambda: left * model.config.kv_bytes_per_token)
    with (
        Engine(model) as engine,
        pytest.raises(ContextLengthError, match=r"103 tokens of prompt and answer take \d+ bytes .* the engine has"),
    ):
        engine.submit([5] * 100, GenerationConfig(max_new_tokens=3))


def test_a_model_that_the_free_memory_cannot_hold_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = open_package(tiny_model_path())
    needed = memory_to_load(package.manifest, package.config(), prefill_graph=True)
    monkeypatch.setattr(loading, "available_memory", lambda **_: needed)
    edgelm.load(package.folder)
    monkeypatch.setattr(loading, "available_memory", lambda **_: needed - 1)
    with pytest.raises(OutOfMemoryError, match=r"^To load tiny-random takes about 34 MB of memory, and .* Free memory"):
        edgelm.load(package.folder)


# Of int8 in blocks of 64: a byte and a scale of 16 bits in the file; packed, a byte and three float32 for the scale.
@pytest.mark.parametrize(
    ("precision", "in_file", "in_memory"),
    [("fp32", 4.0, 4.0), ("fp16", 2.0, 4.0), ("int8", 1 + 2 / 64, 1 + 12 / 64), ("int4", 0.5 + 2 / 64, 0.5 + 12 / 64)],
)
def test_weights_take_the_memory_of_what_they_become(precision: str, in_file: float, in_memory: float) -> None:
    package = open_package(tiny_model_path())
    tied = dataclasses.replace(package.config(), hidden_size=1024)
    weights = sum(math.prod(shape) for shape in tensor_shapes(tied).values())
    data = package.manifest.entry("model.onnx.data")

    def taken(config: ModelConfig, precision: str, size: float) -> int:
        files = (dataclasses.replace(data, size=int(size)),)
        manifest = dataclasses.replace(package.manifest, precision=precision, files=files)
        return memory_to_load(manifest, config, prefill_graph=False)

    beside = taken(tied, "fp32", weights * 4) - weights * 4
    assert taken(tied, precision, weights * in_file) - beside == pytest.approx(weights * in_memory, rel=1e-3)
    # The rows of tables of their own stay in the file: of the embedding beside a head, and of the layers' own.
    features = tied.num_hidden_layers * 512
    for width, changes in (
        (tied.hidden_size, {"tie_word_embeddings": False}), (features, {"hidden_size_per_layer_input": 512}),
    ):  # fmt: skip
        config = dataclasses.replace(tied, **changes)
        table = tied.vocab_size * width
        rest = sum(math.prod(shape) for shape in tensor_shapes(config).values()) - table
        size_of_table = {"fp32": 4.0, "fp16": 2.0}.get(precision, 1.0)
        size = rest * in_file + table * size_of_table
        assert taken(config, precision, size) - beside == pytest.approx(rest * in_memory, rel=1e-3)


def test_a_graph_that_reads_prompts_takes_the_memory_of_its_weights_where_it_is_loaded() -> None:
    package = open_package(tiny_model_path())
    data = dataclasses.replace(package.manifest.entry("model.onnx.data"), path="prefill.onnx.data", size=10**6)
    both = dataclasses.replace(package.manifest, files=(*package.manifest.files, data))
    needed = [memory_to_load(both, package.config(), prefill_graph=with_it) for with_it in (True, False)]
    assert needed[0] - needed[1] == 10**6
    assert needed[1] == memory_to_load(package.manifest, package.config(), prefill_graph=True)


def test_a_load_that_finds_no_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise RuntimeError("Exception during initialization: std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(OutOfMemoryError, match=r"no memory left to load .*model\.onnx \(.* Free memory"):
        edgelm.load(tiny_model_path())


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.generate(PROMPT),
        lambda model: model.stream(PROMPT),
        lambda model: model.score(PROMPT),
        lambda model: model.embed(["the sea " * 60]),
    ],
    ids=["generate", "stream", "score", "embed"],
)
def test_what_cannot_fit_the_memory_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[LanguageModel], object]
) -> None:
    model = scripted_model("Fine.")
    assert isinstance(model.session, ScriptedDecoder)
    left = 80 * model.config.kv_bytes_per_token
    monkeypatch.setattr(kv_cache, "available_memory", lambda **_: left)
    with pytest.raises(OutOfMemoryError, match=rf"\d+ tokens take \d+ more bytes .*; {left} bytes of memory are left"):
        ask(model)
    assert model.session.forwarded == []


def test_what_a_cache_holds_already_needs_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted_model("Fine.")
    cache = model.new_cache()
    edgelm.join(model.stream(PROMPT, SHORT, cache=cache))
    monkeypatch.setattr(kv_cache, "available_memory", lambda **_: 60 * model.config.kv_bytes_per_token)
    answer = edgelm.join(model.stream([*PROMPT, 7], SHORT, cache=cache))
    assert answer.usage.cached_tokens == len(PROMPT) - 1


@pytest.mark.parametrize("place", ["cache", "model"])
def test_where_memory_runs_out_the_error_is_one_of_edgelms(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    model = scripted_model("Fine.")

    def no_memory(*arguments: object, **named: object) -> None:
        raise MemoryError("Cannot map 7 bytes.")

    def none_for_tokens(count: int, shape: tuple[int, ...], dtype: DTypeLike) -> list[np.ndarray]:
        return no_memory() if shape[2] else [np.zeros(shape, dtype) for _ in range(count)]

    if place == "cache":
        monkeypatch.setattr(huge_pages, "zeros", none_for_tokens)
    else:
        monkeypatch.setattr(model.session, "forward", no_memory)
    asks = model.generate, lambda text: model.generate_batch([text]), model.score, lambda text: model.embed([text])
    for ask in asks:
        with pytest.raises(OutOfMemoryError, match=r"There is no memory left: Cannot map 7 bytes\. Shorten"):
            ask("the sea")


def test_where_there_is_no_memory_to_keep_an_answer_it_is_still_given(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config))

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_memory)
        cache = model.session.new_cache()
        model.session.forward(PROMPT[:128], cache)
        model.prefixes.keep(cache, 128)
    assert model.prefixes.bytes == 0
    model.prefixes.keep(cache, 128)
    assert model.prefixes.tokens == 128


def test_no_more_beginnings_are_kept_than_memory_stays_free(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefixes, memory = PrefixCache(model.config), 128 * model.config.kv_bytes_per_token

    def keep(seed: int) -> None:
        cache = model.session.new_cache()
        model.session.forward([seed, *PROMPT[:127]], cache)
        prefixes.keep(cache, 128)

    monkeypatch.setattr(prefix_cache, "available_memory", lambda **_: memory - prefixes.bytes)
    keep(7)
    assert prefixes.tokens == 64
    keep(8)
    assert prefixes.tokens == 64  # and not both
    memory = 0  # taken by others meanwhile
    keep(9)
    assert prefixes.tokens == 0


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))


def with_room_for(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let all rows of a batch have room for so many tokens, and no more."""
    zeros = kv_batch.zeros

    def limited(config: edgelm.ModelConfig, rows: int, capacity: int) -> list[KeysOrValues]:
        if rows * capacity > tokens:
            raise out_of_memory(MemoryError(f"no room for {rows} x {capacity}"))
        return zeros(config, rows, capacity)

    monkeypatch.setattr(kv_batch, "zeros", limited)


def submit_both(
    engine: Engine, prompts: Sequence[Sequence[int]], *configs: GenerationConfig
) -> list[edgelm.Generation]:
    with held(engine):
        return [engine.submit(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_requests_that_have_no_memory_together_one_waits(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    prompts = [PROMPT, [8, 9]][:: 1 if is_first else -1]
    alone = [model.generate(prompt, SHORT).token_ids for prompt in prompts]
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config))
    with_room_for(monkeypatch, 512)  # for the long one alone, or two of 256
    with Engine(model) as engine:
        answers = submit_both(engine, prompts, SHORT, SHORT)
        assert [edgelm.join(answer).token_ids for answer in answers] == alone
        assert engine.stats.preempted > 0


@pytest.mark.parametrize("is_first", [True, False])
def test_rows_that_are_computed_one_after_the_other_find_memory_for_all_or_for_none(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    prompts = [PROMPT[:120], [8, 9]][:: 1 if is_first else -1]
    alone = [model.generate(prompt, SHORT).token_ids for prompt in prompts]
    monkeypatch.setattr(session, "works_in_place", lambda _: False)  # as with a graph that passes keys and values on
    with_room_for(monkeypatch, 256)  # for two of 128, which the long one outgrows in its answer
    with Engine(model) as engine:
        answers = submit_both(engine, prompts, SHORT, SHORT)
        assert [edgelm.join(answer).token_ids for answer in answers] == alone
        assert engine.stats.preempted > 0


@pytest.mark.parametrize("is_first", [True, False])
def test_a_request_that_has_no_memory_alone_ends_with_an_error_and_those_beside_it_go_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    short = model.generate([8, 9], SHORT).token_ids
    with_room_for(monkeypatch, 256)
    with Engine(model) as engine:
        prompts = [PROMPT, [8, 9]][:: 1 if is_first else -1]
        answers = submit_both(engine, prompts, SHORT, SHORT)
        long, other = answers[:: 1 if is_first else -1]
        with pytest.raises(OutOfMemoryError, match="no room for 1 x 384"):
            edgelm.join(long)
        assert edgelm.join(other).token_ids == short
        assert edgelm.join(engine.submit([8, 9], SHORT)).token_ids == short


@pytest.mark.parametrize("tokens", [128 * 4, 128 * 8])
def test_a_search_without_memory_for_its_beams_begins_again_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    search = GenerationConfig(num_beams=4, max_new_tokens=15, ignore_eos=True)
    wanted = [model.generate(prompt, config).token_ids for prompt, config in (([8, 9], SHORT), ([5, 6, 7], search))]
    with_room_for(monkeypatch, tokens)
    with Engine(model) as engine:
        answers = submit_both(engine, [[8, 9], [5, 6, 7]], SHORT, search)
        assert edgelm.join(answers[0]).token_ids == wanted[0]
        if tokens == 128 * 8:  # a row of the prompt, and four of beams, in places that double
            assert edgelm.join(answers[1]).token_ids == wanted[1]
        else:
            with pytest.raises(OutOfMemoryError, match="no room for 8 x 128"):
                edgelm.join(answers[1])
        assert edgelm.join(engine.submit([8, 9], SHORT)).token_ids == wanted[0]


def test_a_request_that_there_is_no_row_for_waits_for_the_others(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [model.generate(prompt, SHORT).token_ids for prompt in ([8, 9], [5, 6, 7])]
    with_room_for(monkeypatch, 128)
    with Engine(model, EngineOptions(max_batch=3)) as engine:
        answers = submit_both(engine, [[8, 9], [5, 6, 7]], SHORT, SHORT)
        assert [edgelm.join(answer).token_ids for answer in answers] == wanted


def test_answers_end_though_there_is_no_memory_for_an_empty_batch(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("none for a step")

    zeros = kv_batch.zeros

    def for_rows_alone(config: ModelConfig, rows: int, capacity: int) -> list[KeysOrValues]:
        if not rows:
            raise OutOfMemoryError("none at all")
        return zeros(config, rows, capacity)

    with Engine(model) as engine:
        monkeypatch.setattr(kv_batch, "zeros", for_rows_alone)
        answer = engine.submit([8, 9], SHORT)
        wait_for(lambda: answer.has_ended)
        assert edgelm.join(answer).token_ids == model.generate([8, 9], SHORT).token_ids
        with monkeypatch.context() as patch:
            patch.setattr(RunningBatch, "step", no_memory)
            answers = [engine.submit([8, 9], SHORT) for _ in range(2)]
            wait_for(lambda: all(answer.has_ended for answer in answers))
        assert edgelm.join(engine.submit([8, 9], SHORT)).token_ids == model.generate([8, 9], SHORT).token_ids


def test_the_engine_goes_on_where_memory_fails_while_a_request_gives_way(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("none for that either")

    with Engine(model) as engine:
        with monkeypatch.context() as patch:
            with_room_for(patch, 256)
            patch.setattr(RunningBatch, "put_aside", no_memory)
            answers = submit_both(engine, [PROMPT, [8, 9]], SHORT, SHORT)
            wait_for(lambda: all(answer.has_ended for answer in answers))
        for answer in answers:
            with pytest.raises(OutOfMemoryError, match="none for that either"):
                edgelm.join(answer)
        assert edgelm.join(engine.submit([8, 9], SHORT)).usage.completion_tokens == SHORT.max_new_tokens
        assert engine.stats.active == 0


def test_a_cache_tells_how_many_tokens_it_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(edgelm.ModelConfig.load(tiny_model_path()))
    monkeypatch.setattr(kv_cache, "available_memory", lambda **_: 0)
    with pytest.raises(OutOfMemoryError, match=r"9 tokens take \d+ more bytes of keys and values; 0 bytes"):
        cache.reserve(9)
    monkeypatch.setattr(kv_cache, "available_memory", lambda **_: None)
    cache.reserve(9)
