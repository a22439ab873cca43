"""Models with linear attention: their states go back to snapshots, and every answer is the one of a fresh start."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint
from model_features import LINEAR, MULTIPLIERS
from numpy.typing import NDArray

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel, SessionOptions
from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.quantization_recipe import PRECISIONS, scheme_for
from edgelm.batching.engine import Engine, EngineOptions
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ContextLengthError, PackageError
from edgelm.memory.cache_layout import state_tokens
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.memory.snapshots import Snapshots
from edgelm.runtime.binding import Graph
from edgelm.runtime.session import DecoderSession
from edgelm.runtime.stop_switch import StoppedError, StopSwitch
from edgelm.testing import tiny_model_path
from edgelm_export.checkpoints.folded import FoldedCheckpoint
from edgelm_export.exporter import export_package
from edgelm_export.quantize.channel_scales import ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.sensitivity import tensor_groups
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint

KINDS = ("linear_attention", "full_attention", "linear_attention")
LINEAR_CONFIG = replace(CONFIG, num_hidden_layers=3, layer_types=KINDS, max_position_embeddings=2048, **LINEAR)
MAMBA_CONFIG = replace(LINEAR_CONFIG, layer_types=tuple(kind.replace("linear_attention", "mamba2") for kind in KINDS))
HYBRID_CONFIG = replace(
    MAMBA_CONFIG, num_hidden_layers=2, layer_types=("hybrid", "hybrid"), multipliers=Multipliers(**MULTIPLIERS)
)
# What convolutions over four tokens read of 80 channels, and seven numbers of each, are as many numbers.
FIRST_MAMBA, SIZES_OF_MAMBA = ("mamba", "full_attention", "mamba"), dict(zip(LINEAR, (1, 80, 7, 1, 4), strict=True))
FIRST_MAMBA_CONFIG = replace(LINEAR_CONFIG, layer_types=FIRST_MAMBA, mamba_dt_rank=6, **SIZES_OF_MAMBA)
CONFIGS = {
    "linear attention": LINEAR_CONFIG,
    "Mamba": FIRST_MAMBA_CONFIG,
    "Mamba 2": MAMBA_CONFIG,
    "Mamba 2 beside attention": HYBRID_CONFIG,
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
IDS = np.random.default_rng(0).integers(3, 320, 1400).tolist()
# Two layers: what convolutions over four tokens read of 2 * 2 * 8 + 4 * 16 channels, and four matrices of 8 x 16.
STATE_BYTES = 2 * 4 * (3 * 96 + 4 * 8 * 16)
GREEDY = GenerationConfig(max_new_tokens=40, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module", params=CONFIGS)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export one of the models; but for linear attention, with a graph for prompts."""
    folder = tmp_path_factory.mktemp("linear")
    precision = PRECISIONS["int8"]
    precision = precision if request.param == "linear attention" else precision.with_prefill_graph()
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", CONFIGS[request.param]))
    export_package(checkpoint, folder / "package", precision, name="linear")
    return folder / "package"


@pytest.fixture(scope="module")
def loaded(package: Path) -> LanguageModel:
    return edgelm.load(package, SessionOptions(threads=1))


@pytest.fixture
def model(loaded: LanguageModel) -> LanguageModel:
    loaded.prefixes = PrefixCache(loaded.config)
    return loaded


def alone(model: LanguageModel, ids: Sequence[int], config: GenerationConfig = GREEDY) -> tuple[int, ...]:
    model.prefixes = PrefixCache(model.config, 0)
    return model.generate(ids, config).token_ids


def streamed(model: LanguageModel, ids: list[int], config: GenerationConfig, cache: KVCache) -> tuple[int, ...]:
    return tuple(id_ for chunk in model.stream(ids, config, cache=cache) for id_ in chunk.token_ids)


def states_of(cache: KVCache) -> list[NDArray[np.float32]]:
    return [buffer.copy() for buffer in cache.other_buffers]


def test_a_cache_goes_back_to_its_last_mark_and_on_to_the_same_bits(model: LanguageModel) -> None:
    expected = alone(model, IDS[:100])
    cache = model.new_cache()
    streamed(model, [*IDS[:90], *IDS[500:560]], GREEDY, cache)
    assert cache.length == 189
    assert sorted(cache.snapshots.states) == [128, 160]  # close to the prompt's end, and a multiple of 32 in the answer
    cache.truncate(170)
    assert cache.length == 160
    cache.truncate(100)
    assert cache.length == 0
    assert all((state == 0).all() for state in states_of(cache))
    streamed(model, IDS[:120], GREEDY, cache)
    assert 96 in cache.snapshots.states
    assert streamed(model, IDS[:100], GREEDY, cache) == expected


def test_marks_are_those_of_the_text_that_is_in_the_cache(model: LanguageModel) -> None:
    model.prefixes = PrefixCache(model.config, 0)
    cache = model.new_cache()
    streamed(model, IDS[:140], GREEDY.replace(max_new_tokens=200), cache)
    assert sorted(cache.snapshots.states) == [96, 288, 320]  # not in a prompt's last tokens; of an answer, the last two
    cache.truncate(cache.length)
    assert cache.length == 339
    first, copy = cache.snapshots.states[96], cache.clone()
    streamed(model, IDS[500:640], GREEDY.replace(max_new_tokens=2), cache)
    assert sorted(cache.snapshots.states) == [96]
    assert not np.array_equal(cache.snapshots.states[96][-1], first[-1])
    assert sorted(copy.snapshots.states) == [96, 288, 320]
    copy.truncate(200)
    assert copy.length == 96
    np.testing.assert_array_equal(states_of(copy)[-1], first[-1])


def test_a_prompt_that_is_asked_again_is_read_from_its_last_mark(model: LanguageModel) -> None:
    model.prefixes = PrefixCache(model.config, answers=False)
    expected = alone(model, IDS[:719])
    model.prefixes = prefixes = PrefixCache(model.config, answers=False)
    first = model.generate(IDS[:719], GREEDY)
    again = model.generate(IDS[:719], GREEDY)
    assert first.token_ids == again.token_ids == expected
    assert again.usage.cached_tokens == 672
    assert prefixes.bytes == 21 * 32 * model.config.kv_bytes_per_token + 2 * STATE_BYTES  # at 512 and 672
    cache = model.new_cache()
    streamed(model, IDS[:719], GREEDY.replace(max_new_tokens=2), cache)
    assert 672 in cache.snapshots.states
    longer = model.generate(IDS[:900], GREEDY)
    assert longer.usage.cached_tokens == 672
    assert longer.token_ids == alone(model, IDS[:900])
    kept = prefixes.bytes
    cache.truncate(0)
    model.session.forward(IDS[:64], cache)
    cache.take_snapshot()
    cache.adapter = "mine"
    prefixes.keep(cache, 64)
    assert prefixes.bytes == kept + 2 * 32 * model.config.kv_bytes_per_token + STATE_BYTES
    prefixes.forget_adapter("mine")
    assert prefixes.bytes == kept
    prefixes.clear()
    assert prefixes.bytes == 0


def test_a_budget_counts_the_states_that_are_kept(model: LanguageModel) -> None:
    block = 32 * model.config.kv_bytes_per_token
    for budget, kept in ((block + STATE_BYTES - 1, 0), (10 * block + 2 * STATE_BYTES, 1)):
        model.prefixes = prefixes = PrefixCache(model.config, budget, answers=False)
        for start in range(0, 600, 100):
            model.generate(IDS[start : start + 320], GREEDY.replace(max_new_tokens=2))
            assert kept <= prefixes.bytes <= budget
        assert model.generate(IDS[500:820], GREEDY.replace(max_new_tokens=2)).usage.cached_tokens == 288 * kept


def test_where_two_prompts_part_the_third_goes_on(model: LanguageModel) -> None:
    """A place that no prompt ended at gets a snapshot when it turns out that texts part there."""
    prompts = [[*IDS[:300], *IDS[start : start + 200]] for start in (400, 700, 1000)]
    expected = [alone(model, prompt) for prompt in prompts]
    model.prefixes = PrefixCache(model.config, answers=False)
    replies = [model.generate(prompt, GREEDY) for prompt in prompts]
    assert [reply.usage.cached_tokens for reply in replies] == [0, 0, 288]
    assert [reply.token_ids for reply in replies] == expected


def test_a_conversation_computes_what_is_new_alone(model: LanguageModel) -> None:
    session, usages = ChatSession(model), []
    for question in ("A question of some length: the sea, the sand, the blue, blue sky.", "Another."):
        *_, last = session.send(question, GREEDY)
        usages.append(last.usage)
    assert usages[0].cached_tokens == 0
    # Up to close to where the first answer begins: its text is split into other tokens than it was written in. But not
    # with the prompt's last token, which was a step, of another graph than it is in the midst of a prompt.
    assert usages[0].prompt_tokens - 48 <= usages[1].cached_tokens < usages[0].prompt_tokens
    model.prefixes = PrefixCache(model.config, 0)
    assert model.chat(session.messages[:-1], GREEDY).text == session.messages[-1]["content"]


def test_requests_together_have_the_tokens_that_they_have_alone(model: LanguageModel) -> None:
    random = np.random.default_rng(1)
    prompts = [IDS[: int(length)] for length in random.integers(1, 300, 5)]
    prompts += [[*IDS[:100], *IDS[600 : 600 + int(length)]] for length in random.integers(1, 200, 3)]
    configs = [
        GREEDY.replace(max_new_tokens=int(random.integers(1, 40)), **({"num_beams": 2} if i % 5 == 4 else {}))
        if i % 2
        else GREEDY.replace(max_new_tokens=20, temperature=0.8, seed=i)
        for i in range(len(prompts))
    ]
    expected = [alone(model, prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    for answers in (False, True):
        model.prefixes = PrefixCache(model.config, answers=answers)
        for _ in range(2):
            replies = model.generate_batch(prompts, configs, max_batch=4)
            assert [reply.token_ids for reply in replies] == expected
        assert sum(reply.usage.cached_tokens for reply in replies) > 400


def test_a_call_that_is_stopped_changes_nothing_and_one_that_fails_goes_back(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = model.new_cache()
    streamed(model, IDS[:120], GREEDY.replace(max_new_tokens=5), cache)
    before, length, switch = states_of(cache), cache.length, StopSwitch()
    switch.press()
    with pytest.raises(StoppedError):
        model.session.forward(IDS[:50], cache, stop=switch)
    assert cache.length == length
    for state, kept in zip(states_of(cache), before, strict=True):
        np.testing.assert_array_equal(state, kept)

    class Failing:
        def step(self, *_: object) -> NDArray[np.float32]:
            raise MemoryError

        run = step

    monkeypatch.setattr(model.session, "_bound", lambda *_: Failing())
    with pytest.raises(MemoryError):
        model.session.forward(IDS[:1], cache)
    assert cache.length == 96
    np.testing.assert_array_equal(states_of(cache)[-1], cache.snapshots.states[96][-1])


def test_states_are_those_of_the_tokens_wherever_an_interrupt_came(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    session, copied = model.session, model.new_cache()
    session.forward(IDS[:80], copied)
    reads = [session.read_prompt] if session.has_prefill_graph else []
    interruptions = [
        *((KVCache, "extend", lambda cache, compute=compute: compute(IDS[70:75], cache))
          for compute in (session.forward, session.forward_hidden, *reads)),
        (Snapshots, "copy", lambda cache: cache.copy_from(copied)),
    ]  # fmt: skip
    for owner, name, compute in interruptions:
        cache = model.new_cache()
        session.forward(IDS[:64], cache)
        cache.take_snapshot()
        session.forward(IDS[64:70], cache)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                compute(cache)
        assert cache.length == 64
        np.testing.assert_array_equal(states_of(cache)[-1], cache.snapshots.states[64][-1])


def test_a_piece_that_is_stopped_when_all_but_its_end_is_computed_changes_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = model.new_cache()
    model.session.forward(IDS[:40], cache)
    before, run = states_of(cache), Graph._run

    def stopped(graph: Graph, binding: object, stop: StopSwitch | None) -> None:
        run(graph, binding, stop)
        raise StoppedError

    monkeypatch.setattr(Graph, "_run", stopped)
    for compute in (model.session.forward, *([model.session.read_prompt] if model.session.has_prefill_graph else [])):
        with pytest.raises(StoppedError):
            compute(IDS[40:80], cache)
    assert cache.length == 40
    for state, kept in zip(states_of(cache), before, strict=True):
        np.testing.assert_array_equal(state, kept)


def test_rows_and_prompts_whose_calls_fail_go_back(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = KVBatch(model.config)
    rows = [batch.add() for _ in range(2)]
    for row in rows:
        model.session.forward(IDS[:64], row)
        row.take_snapshot()
        model.session.forward(IDS[64:70], row)
        batch.activate(row)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Graph, "_run", fail)
    with pytest.raises(MemoryError):
        model.session.forward_rows([5, 6], batch)
    assert [row.length for row in rows] == [64, 64]
    np.testing.assert_array_equal(states_of(rows[1])[-1], rows[1].snapshots.states[64][-1])
    if model.session.has_prefill_graph:
        rows[0].token_ids += IDS[64:70]
        with pytest.raises(MemoryError):
            model.session.read_prompt(IDS[70:90], rows[0])
        assert rows[0].length == 64


def test_a_graph_of_other_states_is_refused(package: Path, tmp_path: Path) -> None:
    config = ModelConfig.load(package)
    change, message = {"linear_value_head_dim": 8}, r"\(96, 3\), \(4, 8, 16\).* they are .*\(64, 3\), \(4, 8, 8\)"
    if "mamba" in config.layer_types:
        change, message = {"linear_key_head_dim": 8}, r"\(80, 3\), \(80, 7, 1\).* they are .*\(80, 3\), \(80, 8, 1\)"
    with pytest.raises(PackageError, match=message):
        DecoderSession(package, replace(config, **change), SessionOptions(prefill_graph=False))
    shutil.copytree(package, tmp_path / "package")
    graph = onnx.load(package / "model.onnx", load_external_data=False)
    graph.graph.output.remove(next(value for value in graph.graph.output if value.name == "present.0.conv_state"))
    (tmp_path / "package" / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(PackageError, match="takes 4 states of a text and gives 3; each layer has two"):
        DecoderSession(tmp_path / "package", config)


def test_rows_of_a_batch_begin_with_nothing_and_keep_their_own_states(model: LanguageModel) -> None:
    batch = KVBatch(model.config)
    rows = []
    for start in (0, 200, 400):
        rows.append(batch.add())
        model.session.forward(IDS[start : start + 50], rows[-1])
        batch.activate(rows[-1])
    expected = [states_of(row) for row in rows]
    batch.remove(rows.pop(0))
    for row, states in zip(rows, expected[1:], strict=True):
        for state, kept in zip(states_of(row), states, strict=True):
            np.testing.assert_array_equal(state, kept)
    assert all((state == 0).all() for state in states_of(batch.add()))


def test_a_saved_cache_goes_on(model: LanguageModel, tmp_path: Path) -> None:
    cache = model.new_cache()
    streamed(model, IDS[:100], GREEDY.replace(max_new_tokens=7), cache)
    cache.save(tmp_path / "cache.npz", "linear")
    loaded = KVCache.load(tmp_path / "cache.npz", model.config, "linear")
    for state, kept in zip(states_of(loaded), states_of(cache), strict=True):
        np.testing.assert_array_equal(state, kept)
    expected = model.session.forward(IDS[:1], cache).copy()
    np.testing.assert_array_equal(model.session.forward(IDS[:1], loaded), expected)
    with np.load(tmp_path / "cache.npz") as saved:
        parts = {name: saved[name] for name in saved if name != "state"}
    np.savez(tmp_path / "without.npz", allow_pickle=False, **parts)
    with pytest.raises(PackageError, match=r"expected .*, state of shape \(2, 1, (4, 8, 16|80, 7, 1)\), float32"):
        KVCache.load(tmp_path / "without.npz", model.config, "linear")


def test_memory_counts_the_states(package: Path) -> None:
    model = edgelm.load(package)
    assert model.config.state_bytes == STATE_BYTES
    shown = invoke("show", package).stdout
    assert "; 6.4 kB of states, however long the text" in shown
    row = 128 * model.config.kv_bytes_per_token
    with (
        Engine(model, EngineOptions(max_kv_bytes=row)) as engine,
        pytest.raises(ContextLengthError, match="120 tokens"),
    ):
        engine.submit(IDS[:100], GREEDY.replace(max_new_tokens=20))
    with Engine(model, EngineOptions(max_kv_bytes=row + STATE_BYTES)) as engine:
        assert [*engine.submit(IDS[:100], GREEDY.replace(max_new_tokens=20))][-1].finish_reason == "length"


def test_a_request_whose_states_do_not_fit_beside_another_waits(package: Path) -> None:
    model = edgelm.load(package)
    tokens = 190 + 2 * state_tokens(model.config)  # and each request takes 120, beside its states
    limits = EngineOptions(max_kv_bytes=tokens * model.config.kv_bytes_per_token)
    begun, goes_on = threading.Event(), threading.Event()

    def wait(logits_V: NDArray[np.float32], token_ids: Sequence[int]) -> None:
        if len(token_ids) == 110:
            begun.set()
            goes_on.wait()

    config = GREEDY.replace(max_new_tokens=20)
    with Engine(model, limits) as engine:
        first, second = engine.submit(IDS[:100], config.replace(processors=(wait,))), engine.submit(IDS[:100], config)
        begun.wait()
        active = engine.stats.active
        goes_on.set()
        assert active == 1
        assert [*first][-1].finish_reason == [*second][-1].finish_reason == "length"
        assert engine.stats.preempted == 0


def test_what_would_take_tokens_back_is_refused(model: LanguageModel) -> None:
    kind = model.config.state_kinds
    with pytest.raises(ConfigError, match=f"speculation is set, and linear has {kind}, which cannot take back"):
        model.generate(IDS[:10], GenerationConfig(speculation="prompt_lookup"))
    with pytest.raises(ConfigError, match=f"speculation is set, and linear has {kind}"):
        edgelm.load(tiny_model_path()).generate(IDS[:10], GenerationConfig(speculation=model))


@EACH
def test_documents_begin_with_nothing_also_where_a_chunk_of_training_does(config: ModelConfig, tmp_path: Path) -> None:
    model = load_checkpoint(make_checkpoint(tmp_path / "checkpoint", config))
    documents_BT = torch.tensor([[0] * 64 + [1] * 64 + [2] * 40])
    with torch.no_grad():
        logits_TV = model(torch.tensor([IDS[:168]]), documents_BT)[0]
        for start, end in ((0, 64), (64, 128), (128, 168)):
            alone_TV = model(torch.tensor([IDS[start:end]]))[0]
            np.testing.assert_allclose(logits_TV[start:end], alone_TV, rtol=0, atol=1e-4)  # 4e-6 measured


@EACH
@pytest.mark.parametrize("way", ["folded", "smooth", "awq"])
def test_a_transform_leaves_the_logits_as_they_are(way: str, config: ModelConfig, tmp_path: Path) -> None:
    config = replace(config, attention_output_gate=True)
    if way == "folded":
        config = replace(config, residual_multiplier=0.5, norm="rms_offset")
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    changed: object = FoldedCheckpoint(checkpoint)
    if way != "folded":
        recipe = PRECISIONS["int8"].recipe(config)
        scales = choose_scales(checkpoint, way, recipe, [IDS[:200]], lambda *_: None)
        readers = {
            "linear_attention": ("0.linear_attn.in_proj_a", "0.linear_attn.in_proj_qkv"),
            "mamba": ("0.mamba.in_proj_x", "0.mamba.in_proj_z"),
            "mamba2": ("0.mamba.in_proj_z", "0.mamba.in_proj_xbc", "0.mamba.in_proj_dt"),
            "hybrid": ("0.mamba.in_proj_z", "0.mamba.in_proj_xbc", "0.self_attn.q_proj", "1.mamba.in_proj_dt"),
        }
        for reader in (*readers[config.layer_types[0]], "1.self_attn.gate_proj"):
            assert f"model.layers.{reader}" in scales.multipliers
        changed = ScaledCheckpoint(checkpoint, scales)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [IDS[:100]]) for each in (checkpoint, changed))
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4 * np.abs(expected_TV).max())


def test_what_a_head_forgets_stays_in_floats(package: Path) -> None:
    for precision in ("int8", "int4", "int2", "fp16"):
        recipe = PRECISIONS[precision].recipe(LINEAR_CONFIG)
        schemes = {part: scheme_for(recipe, f"model.layers.0.linear_attn.in_proj_{part}.weight") for part in "abz"}
        assert schemes["a"] == schemes["b"] == "fp32" != schemes["z"]
        for name in ("in_proj_dt", "x_proj", "dt_proj"):
            assert scheme_for(recipe, f"model.layers.0.mamba.{name}.weight") == "fp32"
    with PackageCheckpoint(package) as read:
        groups = tensor_groups(read)
        layer, small, large = {
            "linear attention": ("model.layers.0.linear_attn", ("in_proj_a", "in_proj_b"), "in_proj_qkv"),
            "layers of Mamba": ("model.layers.0.mamba", ("x_proj", "dt_proj"), "in_proj_x"),
            "layers of Mamba 2": ("model.layers.0.mamba", ("in_proj_dt",), "in_proj_xbc"),
            "Mamba 2 beside attention": ("model.layers.0.mamba", ("in_proj_dt",), "in_proj_xbc"),
        }[read.config.state_kinds]
        stored = [read.stored_type(f"{layer}.{part}.weight") for part in (small[0], large)]
    assert stored == ["F32", "INT8"]
    assert f"{layer}.in_proj_z" in groups
    assert not [name for names in groups.values() for name in names if any(part in name for part in small)]


def test_the_onnx_standard_has_no_operator_for_it(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", LINEAR_CONFIG))
    with pytest.raises(edgelm.EdgeLMError, match="has linear attention, for which the ONNX standard has no operator"):
        export_package(checkpoint, tmp_path / "package", PRECISIONS["fp32"].with_standard_operators(), name="x")


def test_marks_stay_few_and_far_from_each_other() -> None:
    snapshots = Snapshots()
    for place in range(32, 1025, 32):
        snapshots.add(place, [])
    assert sorted(snapshots.states) == [288, 416, 672, 1024]
    for place in (1056, 1088, 1088, 1120):  # in an answer: the last two
        snapshots.add(place, [], is_passing=True)
    assert sorted(snapshots.states)[-3:] == [1024, 1088, 1120]
    assert [snapshots.last(place) for place in (1030, 1024, 1023, 31)] == [1024, 1024, 672, 0]
    copy = snapshots.copy()
    copy.forget_after(1088)
    for place in (1152, 1184):
        copy.add(place, [], is_passing=True)
    assert sorted(copy.states)[-3:] == [1024, 1152, 1184]
    assert max(snapshots.states) == 1120
