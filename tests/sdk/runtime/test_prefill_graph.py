"""Prompts that a graph of their own reads: one computation, whatever its pieces, its company and what is reused."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import invoke
from held_engine import held
from make_tiny_model import CONFIG, make_checkpoint
from model_features import LONGROPE
from unchecked_export import export_unchecked

import edgelm
from edgelm import ChatSession, EngineOptions, GenerationConfig, LanguageModel
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.batching.engine import Engine
from edgelm.batching.running_batch import SHARED_CHUNK
from edgelm.config import ModelConfig
from edgelm.decoding.generate import compute_piece, next_chunk, prefill
from edgelm.errors import PackageError
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import BLOCK, PrefixCache
from edgelm.package.manifest import Manifest, describe_file
from edgelm.runtime.session import PREFILL_CHUNK, PREFILL_GRAPH_CHUNK, DecoderSession
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.stop_switch import StoppedError, StopSwitch
from edgelm_export.reference.model import log_softmax
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_export.verification.verification_text import verification_text

ANSWER = GenerationConfig(max_new_tokens=20, ignore_eos=True)
# Around the ends of pieces of 64 and 256, and of blocks of 32.
LENGTHS = [1, 2, 3, 33, 34, 35, 65, 66, 67, 130, 257, 258, 259, 514]
# So wide that MatMulNBits has several blocks to a row: else both graphs multiply the same integers.
WIDE = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2)
CONFIGS = {
    "plain": WIDE,
    "in a window": dataclasses.replace(WIDE, sliding_window=40),
    "longrope": ModelConfig.from_dict(
        WIDE.to_dict() | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 300}}
    ),
    "int8": dataclasses.replace(WIDE, kv_cache="int8"),
}
Packages = Callable[[str], Path]


def random_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, CONFIG.vocab_size, count).tolist()


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """Give a package in int8 with both graphs, by the name of its config."""
    folder = tmp_path_factory.mktemp("prefill")

    def package(name: str) -> Path:
        target = folder / name
        if not target.exists():
            config = dataclasses.replace(CONFIGS[name], kv_cache="fp32")
            checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / f"{name} checkpoint", config))
            precision = PRECISIONS["int8"].with_prefill_graph()
            if CONFIGS[name].kv_cache == "int8":
                precision = precision.with_int8_cache()
            export_unchecked(checkpoint, target, precision)
        return target

    return package


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest, packages: Packages) -> LanguageModel:
    return edgelm.load(packages(request.param), SessionOptions(threads=1))


@pytest.fixture
def plain(packages: Packages) -> LanguageModel:
    return edgelm.load(packages("plain"), SessionOptions(threads=1))


def content(cache: KVCache) -> list[bytes]:
    return [buffer[:, :, cache.filled(i)].tobytes() for i, buffer in enumerate(cache.buffers)]


def test_a_prompt_has_one_result_whatever_its_pieces(model: LanguageModel) -> None:
    session = model.session
    for length in LENGTHS:
        ids = random_ids(length)
        whole, pieces = session.new_cache(), session.new_cache()
        whole_V = prefill(session, ids, whole)
        pieces_V = None
        while pieces_V is None:
            pieces_V = compute_piece(session, ids, pieces, shared_chunk=64)
        np.testing.assert_array_equal(pieces_V, whole_V)
        assert content(pieces) == content(whole)


def test_a_last_token_behind_a_block_of_the_attention_is_computed_with_that_block_alone() -> None:
    """The real model's prompts of 130 tokens had other logits beside other requests than alone, by 0.4."""
    for length, size in itertools.product(range(1, 700), (SHARED_CHUNK, PREFILL_CHUNK, PREFILL_GRAPH_CHUNK)):
        for start in range(0, max(1, length - 1), BLOCK):  # where a kept beginning may end
            sizes = []
            while start < length:
                sizes.append(len(next_chunk(range(length), start, size)))
                start += sizes[-1]
            assert start == length
            assert max(sizes) <= size
            assert length % BLOCK != 1 or sizes[-1] == min(length, BLOCK + 1)


def test_a_reused_beginning_has_the_bits_of_a_fresh_one(model: LanguageModel) -> None:
    session, longest = model.session, 290
    ids = random_ids(longest)
    fresh = session.new_cache()
    fresh_V = prefill(session, ids, fresh).copy()
    for shared in (32, 33, 64, 65, 100, 128, 200, 256, 257, 288, 289, 290):
        prefixes = PrefixCache(model.config, answers=False)
        before = session.new_cache()
        # The prompt before ends where this one goes on: its last token was a step, and is not kept as a prompt's.
        prefill(session, ids[:shared], before)
        prefixes.keep(before, shared - 1)
        cache = session.new_cache()
        assert prefixes.fill(cache, ids[:-1]) == min(shared - 1, longest - 3) // BLOCK * BLOCK
        np.testing.assert_array_equal(prefill(session, ids, cache), fresh_V)
        assert content(cache) == content(fresh)


def test_a_chat_reuses_what_the_graph_has_read_and_no_more(plain: LanguageModel) -> None:
    """With answers=False, reuse changes no bit: also where a prompt ends at the end of a block."""
    for length in (64, 65, 96, 97):
        prompt = random_ids(length, seed=length)
        plain.prefixes = PrefixCache(plain.config, answers=False)
        plain.generate(prompt, ANSWER)
        longer = [*prompt, *random_ids(40, seed=1)]
        reused = plain.generate(longer, ANSWER.replace(logprobs=3))
        plain.prefixes = PrefixCache(plain.config, 0)
        fresh = plain.generate(longer, ANSWER.replace(logprobs=3))
        assert reused.logprobs == fresh.logprobs
        assert reused.usage.cached_tokens == (length - 1) // BLOCK * BLOCK


def test_the_last_token_is_the_decoders_step(model: LanguageModel) -> None:
    session, ids = model.session, random_ids(200)
    cache = session.new_cache()
    session.read_prompt(ids[:-1], cache)
    step_V = session.forward(ids[-1:], cache)[0].copy()
    np.testing.assert_array_equal(prefill(session, ids, session.new_cache()), step_V)


@pytest.mark.parametrize("name", ["plain", "in a window", "int8"])
def test_answers_in_company_are_those_of_each_alone(packages: Packages, name: str) -> None:
    model = edgelm.load(packages(name), SessionOptions(threads=1))
    model.prefixes = PrefixCache(model.config, answers=False)
    system = random_ids(70, seed=9)
    prompts = [random_ids(length, seed=length) for length in LENGTHS[1::2]] + [
        [*system, *random_ids(length, seed=length)] for length in (26, 27, 200)
    ]
    configs = [
        ANSWER.replace(max_new_tokens=25 + i % 9, temperature=0.8 * (i % 2), seed=i) for i in range(len(prompts))
    ]
    alone = [model.generate(prompt, config).token_ids for prompt, config in zip(prompts, configs, strict=True)]
    model.prefixes.clear()
    for options in (
        EngineOptions(max_batch=4),
        EngineOptions(max_batch=8, max_kv_bytes=560 * model.config.kv_bytes_per_token),
    ):
        with Engine(model, options) as engine:
            with held(engine):
                generations = [engine.submit(*pair) for pair in zip(prompts, configs, strict=True)]
            got = [tuple(id_ for chunk in generation for id_ in chunk.token_ids) for generation in generations]
        assert got == alone
        assert (engine.stats.preempted > 0) == (options.max_batch == 8)


def test_speculation_and_forced_tokens_are_the_decoders(plain: LanguageModel) -> None:
    prompt = random_ids(10) * 5
    config = ANSWER.replace(speculation="prompt_lookup", exact_speculation=True)
    assert plain.generate(prompt, config).token_ids == plain.generate(prompt, ANSWER).token_ids


@pytest.mark.parametrize("name", ["plain", "in a window", "int8"])
def test_exact_guesses_beams_and_shifts_are_as_alone_in_an_engine_and_from_the_disk(
    packages: Packages, name: str, tmp_path: Path
) -> None:
    model = edgelm.load(packages(name), SessionOptions(threads=1))
    model.session.config = dataclasses.replace(model.config, max_position_embeddings=300)
    model.prefixes = PrefixCache(model.config, answers=False)
    prompt, plain = random_ids(30) * 9, ANSWER.replace(max_new_tokens=60, context_shift=4)
    exact = plain.replace(speculation="prompt_lookup", exact_speculation=True)
    beams = ANSWER.replace(num_beams=3)
    alone = [model.generate(prompt, config).token_ids for config in (plain, exact, beams)]
    assert alone[0] == alone[1]
    with Engine(model) as engine:
        generations = [engine.submit(prompt, config) for config in (plain, exact, beams)]
        assert [edgelm.join(generation).token_ids for generation in generations] == alone
    model.prefixes = PrefixCache(model.config, 0)
    session = ChatSession(model)
    plain, exact = (config.replace(max_new_tokens=20) for config in (plain, exact))
    list(session.send("Hello " * 8, plain))
    session.save(tmp_path / "chat")
    restored = ChatSession.load(model, tmp_path / "chat")
    answers = [edgelm.join(chat.send("And then?", config)) for chat, config in ((session, plain), (restored, exact))]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[1].usage.cached_tokens > 50


def test_what_a_draft_has_read_serves_its_own_answers(plain: LanguageModel, packages: Packages) -> None:
    """A draft reads a prompt by the graph that it has for prompts, as anybody does who asks it directly."""
    draft, prompt = edgelm.load(packages("plain"), SessionOptions(threads=1)), random_ids(150)
    config = ANSWER.replace(logprobs=3)
    draft.prefixes = PrefixCache(draft.config, 0)
    fresh = draft.generate(prompt, config)
    draft.prefixes = PrefixCache(draft.config, answers=False)
    plain.generate(prompt, ANSWER.replace(speculation=draft))
    reused = draft.generate(prompt, config)
    assert reused.usage.cached_tokens == 128
    assert reused.logprobs == fresh.logprobs


def test_without_the_graph_prompts_are_read_by_the_decoders(packages: Packages) -> None:
    folder = packages("plain")
    model = edgelm.load(folder, SessionOptions(threads=1, prefill_graph=False))
    ids = random_ids(200)
    assert not model.session.has_prefill_graph
    assert not model.session.reads_prompts(model.new_cache())
    cache = model.session.new_cache()
    model.session.forward(ids[:128], cache)
    expected_V = model.session.forward(ids[128:], cache)[0].copy()
    np.testing.assert_array_equal(prefill(model.session, ids, model.session.new_cache()), expected_V)
    both = edgelm.load(folder, SessionOptions(threads=1))
    read_V = prefill(both.session, ids, both.session.new_cache())
    assert not np.array_equal(read_V, expected_V)
    np.testing.assert_allclose(read_V, expected_V, atol=0.3)  # 8-bit rounding; 0.11 measured


def test_scores_and_embeddings_are_the_decoders(packages: Packages) -> None:
    models = [edgelm.load(packages("plain"), SessionOptions(threads=1, prefill_graph=uses)) for uses in (True, False)]
    scores = [model.score(random_ids(300)).tokens for model in models]
    assert scores[0] == scores[1]
    for pooling in ("values", "mean", "last"):
        vectors = [model.embed(["The sea is wide."], pooling=pooling) for model in models]
        np.testing.assert_array_equal(*vectors)


def test_a_text_that_outgrows_longrope_is_as_one_that_was_long_from_the_start(packages: Packages) -> None:
    session = edgelm.load(packages("longrope"), SessionOptions(threads=1)).session
    ids = random_ids(320)
    grown, fresh = session.new_cache(), session.new_cache()
    prefill(session, ids[:290], grown)
    for id_ in ids[290:]:
        session.forward((id_,), grown)  # past 300 tokens, all before are read again
    prefill(session, ids[:-19], fresh)
    for id_ in ids[-19:]:
        session.forward((id_,), fresh)
    # 300 tokens were read again at once, of which the fresh one had the last as a step.
    before = [buffer[:, :, :300].tobytes() for buffer in fresh.buffers]
    assert [buffer[:, :, :300].tobytes() for buffer in grown.buffers] == before


@pytest.mark.parametrize("kept", [0, 40])
def test_a_prompt_beyond_the_original_context_of_longrope_is_read_once(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    session, ids, read = edgelm.load(packages("longrope"), SessionOptions(threads=1)).session, random_ids(320), []
    cache = session.new_cache()
    if kept:
        prefill(session, ids[:kept], cache)
    read_prompt = session._read_prompt
    monkeypatch.setattr(session, "_read_prompt", lambda ids, *rest: read.append(len(ids)) or read_prompt(ids, *rest))
    logits_V = prefill(session, ids, cache).copy()
    assert read == [256, 63]
    np.testing.assert_array_equal(prefill(session, ids, session.new_cache()), logits_V)


def test_what_longrope_reads_again_counts_as_read(packages: Packages) -> None:
    model = edgelm.load(packages("longrope"), SessionOptions(threads=1))
    cache, ids = model.session.new_cache(), random_ids(320)
    for length, again in ((40, 40), (60, 20), (320, 320)):
        *_, last = model.stream(ids[:length], GenerationConfig(max_new_tokens=1), cache=cache)
        assert last.usage is not None
        assert last.timings is not None
        assert (last.usage.cached_tokens, last.timings.prefill_tokens) == (length - again, again)


def test_caches_of_adapters_are_the_decoders(plain: LanguageModel) -> None:
    cache = plain.session.new_cache()
    assert plain.session.reads_prompts(cache)
    cache.use_adapter("mine")
    assert not plain.session.reads_prompts(cache)


def test_a_stopped_piece_leaves_the_cache_as_it_was(plain: LanguageModel) -> None:
    session, ids, switch = plain.session, random_ids(300), StopSwitch()
    cache = session.new_cache()
    session.read_prompt(ids[:100], cache)
    switch.press()
    with pytest.raises(StoppedError):
        session.read_prompt(ids[100:200], cache, stop=switch)
    assert cache.token_ids == ids[:100]
    logits_V = prefill(session, ids, cache)
    assert logits_V is not None
    session.read_prompt(ids[:100], fresh := session.new_cache())
    np.testing.assert_array_equal(prefill(session, ids, fresh), logits_V)


def test_a_saved_conversation_goes_on_with_the_same_bits(plain: LanguageModel, tmp_path: Path) -> None:
    session = ChatSession(plain)
    list(session.send("Hello", ANSWER))
    session.save(tmp_path / "chat")
    restored = ChatSession.load(plain, tmp_path / "chat")
    answers = [[chunk.text for chunk in chat.send("And then?", ANSWER)] for chat in (session, restored)]
    assert "".join(answers[0]) == "".join(answers[1])


def test_a_damaged_file_is_refused_by_its_name(packages: Packages, tmp_path: Path) -> None:
    for name in ("prefill.onnx", "prefill.onnx.data"):
        folder = tmp_path / name
        shutil.copytree(packages("plain"), folder)
        content_ = bytearray((folder / name).read_bytes())
        content_[len(content_) // 2] ^= 1
        (folder / name).write_bytes(content_)
        with pytest.raises(PackageError, match=rf"{name} does not match the SHA-256 in the manifest"):
            edgelm.load(folder)
        verified = invoke("verify", folder)
        assert verified.exit_code == 1
        assert name in verified.output


def test_a_graph_that_does_not_fit_the_decoders_is_refused(packages: Packages, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    shutil.copytree(packages("plain"), folder)
    model = onnx.load(folder / "prefill.onnx", load_external_data=False)
    del model.graph.output[-1]
    (folder / "prefill.onnx").write_bytes(model.SerializeToString())
    message = r"prefill\.onnx gives 'present\.1\.value' as nothing; beside this decoder it must be tensor\(float\) \["
    with pytest.raises(PackageError, match=message):
        DecoderSession(folder, ModelConfig.load(folder))
    shutil.copyfile(folder / "model.onnx", folder / "prefill.onnx")
    with pytest.raises(PackageError, match=r"prefill\.onnx gives 'last_hidden_state' as tensor\(float\)"):
        DecoderSession(folder, ModelConfig.load(folder))
    manifest = Manifest.load(folder)
    files = tuple(describe_file(folder / entry.path) for entry in manifest.files)
    dataclasses.replace(manifest, files=files).save(folder)
    with pytest.raises(PackageError, match=r"prefill\.onnx gives 'last_hidden_state'"):
        edgelm.load(folder)
    assert not edgelm.load(folder, SessionOptions(prefill_graph=False)).session.has_prefill_graph


def test_commands_leave_the_graph_out(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    started = DecoderSession.__init__

    def watched(
        self: DecoderSession, folder: Path, config: ModelConfig, options: SessionOptions, **rest: object
    ) -> None:
        started(self, folder, config, options, **rest)  # type: ignore[arg-type]
        seen.append(self.has_prefill_graph)

    monkeypatch.setattr(DecoderSession, "__init__", watched)
    for option in ((), ("--no-prefill-graph",)):
        assert invoke("run", packages("plain"), "Hello", "--max-new-tokens", "2", *option).exit_code == 0
    assert seen == [True, False]


def test_pieces_of_a_prompt_are_counted_by_the_engine(plain: LanguageModel) -> None:
    plain.prefixes = PrefixCache(plain.config, 0)
    with Engine(plain) as engine:
        list(engine.submit(random_ids(2 * PREFILL_GRAPH_CHUNK + 5), ANSWER))
        assert engine.stats.prompt_tokens == 2 * PREFILL_GRAPH_CHUNK + 5


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory, smollm2_package: Path) -> LanguageModel:
    """The real model's package in int8, with the graph beside its own: what was smoothed and packed stays so."""
    folder = tmp_path_factory.mktemp("smollm2") / "package"
    with open_checkpoint(smollm2_package) as checkpoint:
        export_unchecked(checkpoint, folder, PRECISIONS["keep"].with_prefill_graph())
    return edgelm.load(folder, SessionOptions(threads=2))


@pytest.mark.real_model
@pytest.mark.timeout(600)
def test_the_real_model_reads_prompts_to_one_result_and_within_three_percent(smollm2: LanguageModel) -> None:
    session, text = smollm2.session, smollm2.tokenizer.encode(verification_text()[:1000])[:194]
    ids = text[:130]
    fresh, pieces, reused = session.new_cache(), session.new_cache(), session.new_cache()
    fresh_V = prefill(session, ids, fresh).copy()
    pieces_V = None
    while pieces_V is None:
        pieces_V = compute_piece(session, ids, pieces, shared_chunk=64)
    prefixes = PrefixCache(smollm2.config, answers=False)
    prefixes.keep(fresh, len(ids) - 1)
    assert prefixes.fill(reused, ids[:-1]) == (len(ids) - 3) // BLOCK * BLOCK
    reused_V = prefill(session, ids, reused)
    np.testing.assert_array_equal(pieces_V, fresh_V)
    np.testing.assert_array_equal(reused_V, fresh_V)
    expected = [token.logprob for token in smollm2.score(text).tokens[130:]]  # by the decoder alone
    after_TV = log_softmax(session.forward(text[130:], fresh, all_logits=True))
    logprobs = after_TV[np.arange(63), text[131:]]
    assert np.exp(-logprobs.mean()) == pytest.approx(np.exp(-np.mean(expected)), rel=0.03)  # 0.015 measured
    greedy = GenerationConfig(max_new_tokens=4, temperature=0.0)
    assert "Paris" in smollm2.generate("The capital of France is", greedy).text
