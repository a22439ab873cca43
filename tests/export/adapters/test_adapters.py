"""Adapters beside a package: loaded, mixed in one batch, unloaded; PEFT's own sums are the oracle."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_adapters import ADAPTERS, CLOSE, IDS, Exported, merged_logits, our_logits, with_adapters
from make_tiny_model import CONFIG, make_checkpoint
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import edgelm
from edgelm.batching.request import Request
from edgelm.batching.running_batch import RunningBatch
from edgelm.completion import FinishReason
from edgelm.decoding.answer import join
from edgelm.decoding.generate import prefill
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.manifest import sha256_of
from edgelm.runtime.session_options import SessionOptions
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


def test_an_adapter_gives_the_logits_of_the_merged_model(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "fp32", tmp_path, *ADAPTERS)
    plain = merged_logits(exported, None)
    for name in ADAPTERS:
        expected = merged_logits(exported, name)
        assert np.abs(expected - plain).max() > 1
        np.testing.assert_allclose(our_logits(model, name), expected, **CLOSE)


def test_beside_a_prefill_graph_an_adapters_prompt_is_read_by_the_graph_that_applies_it(
    exported: Exported, tmp_path: Path
) -> None:
    model, prompt = with_adapters(exported, "fp32 with a prefill graph", tmp_path, *ADAPTERS), IDS * 30
    for name in (None, *ADAPTERS):
        cache = model.session.new_cache()
        cache.use_adapter(name)
        logits_V = prefill(model.session, prompt, cache)
        assert logits_V is not None
        # Sums in another order, of more tokens than above; measured: 1.8e-6. The prefill graph rounds to 8 bits.
        difference = np.abs(logits_V - merged_logits(exported, name, prompt)[-1]).max()
        assert difference < 5e-5 if name else difference > 1e-3


def test_beside_8_bits_an_adapter_loses_what_the_merged_model_loses_in_8_bits(
    exported: Exported, tmp_path: Path
) -> None:
    """Both round weights and what the products read; the adapter's own matrices stay in float32."""
    expected = merged_logits(exported, "all")
    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(exported.checkpoint), exported.adapters["all"]
    ).merge_and_unload()
    shutil.copytree(exported.checkpoint, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    with HuggingFaceCheckpoint(tmp_path / "merged") as source:
        export_package(source, tmp_path / "merged-int8", "int8")
    theirs = our_logits(edgelm.load(tmp_path / "merged-int8"), None) - expected
    ours = our_logits(with_adapters(exported, "int8", tmp_path, "all"), "all") - expected
    # Measured: 0.034 and 0.029, of logits that differ by up to 3.9 from the base's.
    assert np.sqrt((ours**2).mean()) < 1.5 * np.sqrt((theirs**2).mean())


def test_without_an_adapter_the_bits_are_those_of_the_package_alone(exported: Exported, tmp_path: Path) -> None:
    plain = our_logits(edgelm.load(exported.packages["int8"]), None)
    model = with_adapters(exported, "int8", tmp_path, "all")
    np.testing.assert_array_equal(our_logits(model, None), plain)
    inputs = {value.name for value in model.session._graph.session.get_inputs()}
    model.unload_adapter("all")
    np.testing.assert_array_equal(our_logits(model, None), plain)
    gone = inputs - {value.name for value in model.session._graph.session.get_inputs()}
    assert len(gone) == 2 * 4 * 2 + 3  # A and B of four products in each of two layers, and three gates


def test_the_weights_are_there_once_and_the_package_stays_as_it_is(exported: Exported, tmp_path: Path) -> None:
    files = {path: sha256_of(path) for path in exported.packages["int8"].iterdir()}
    model = edgelm.load(exported.packages["int8"])
    cache, batch = model.session.new_cache(), KVBatch(model.config)
    model.session.forward(IDS, cache)  # both are bound to the first graph from here on
    batch.add()
    model.session.forward_rows([5], batch)
    model.session.forward_single_steps([3, 4], cache)
    first = weakref.ref(model.session._graph.session)
    export_adapter(exported.adapters["all"], exported.packages["int8"], tmp_path / "all")
    model.load_adapter(tmp_path / "all")
    assert first() is None
    bank = model.session._graph.adapters
    assert (
        sum(a.nbytes + b.nbytes for a, b in bank.matrices.values())
        < 2 * (tmp_path / "all" / "adapter_model.safetensors").stat().st_size + 100_000
    )
    assert {path: sha256_of(path) for path in exported.packages["int8"].iterdir()} == files


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8 with a prefill graph"])
def test_in_one_batch_each_request_has_its_own_adapter(precision: str, exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, precision, tmp_path, *ADAPTERS)
    names = (None, "all", "values", None, "ranks", "all")
    configs = [GenerationConfig(max_new_tokens=12, ignore_eos=True, adapter=name) for name in names]
    prompts = ["The sea is blue. " * 8 + f"The sea is {i} blue" for i in range(len(names))]
    alone = []
    for prompt, config in zip(prompts, configs, strict=True):
        model.prefixes.clear()
        alone.append(model.generate(prompt, config).token_ids)
    assert len(set(alone)) == len(names)
    model.prefixes.clear()
    together = model.generate_batch(prompts, configs)
    assert [answer.token_ids for answer in together] == alone


def test_a_row_has_the_same_bits_in_any_company(tmp_path: Path) -> None:
    """With products so wide that ONNX Runtime cuts their sums by how many rows and columns there are."""
    wide = replace(CONFIG, hidden_size=320, intermediate_size=384, num_hidden_layers=1, head_dim=64)
    checkpoint = make_checkpoint(tmp_path / "ckpt", replace(wide, num_attention_heads=5, num_key_value_heads=1))
    with HuggingFaceCheckpoint(checkpoint) as source:
        export_package(source, tmp_path / "pkg", "int8")
    model = edgelm.load(tmp_path / "pkg", SessionOptions(threads=2))
    names = ("first", "second", "third")
    fields: dict[str, Any] = {"target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    for name, rank in zip(names, (16, 24, 16), strict=True):
        config = LoraConfig(r=rank, **fields)
        base = AutoModelForCausalLM.from_pretrained(checkpoint)
        get_peft_model(base, config).save_pretrained(tmp_path / f"peft-{name}")
        export_adapter(tmp_path / f"peft-{name}", tmp_path / "pkg", tmp_path / name)
        model.load_adapter(tmp_path / name)
    prompt = (IDS * 7)[:70]
    batch, rows = KVBatch(model.config), (None, *names, "first", "first")
    for name in rows:
        row = batch.add()
        row.use_adapter(name)
        for piece in (prompt[:64], prompt[64:]):  # an engine's pieces
            model.session.forward(piece, row)
        batch.activate(row)
    together = model.session.forward_rows([7] * len(rows), batch)
    for name, row_V in zip(rows, together, strict=True):
        cache = model.session.new_cache()
        cache.use_adapter(name)
        model.session.forward(prompt, cache)
        np.testing.assert_array_equal(row_V, model.session.forward((7,), cache)[0])


def test_exact_speculation_stays_exact_with_an_adapter(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "int8", tmp_path, "all")
    prompt = "The sea, the sea, the sea, the sea, the sea, the"
    config = GenerationConfig(max_new_tokens=24, ignore_eos=True, adapter="all")
    model.prefixes = PrefixCache(model.config, 0)
    guessed = model.generate(prompt, config.replace(speculation="prompt_lookup", exact_speculation=True))
    assert guessed.token_ids == model.generate(prompt, config).token_ids


def test_keys_and_values_of_adapters_never_mix(exported: Exported, tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True)
    prompt = "The sea is blue. " * 8
    fresh = {}
    for name in (None, "all", "values"):
        model = with_adapters(exported, "fp32", tmp_path / str(name), *([name] if name else []))
        fresh[name] = model.generate(prompt, config.replace(adapter=name)).token_ids
    model = with_adapters(exported, "fp32", tmp_path / "both", "all", "values")
    cache = model.session.new_cache()
    for name in (None, "all", "values", "all", None):
        (*_, answer) = model.stream(prompt, config.replace(adapter=name), cache=cache)
        assert tuple(cache.token_ids[-7:]) == fresh[name][:7]
        assert answer.usage is not None
    assert answer.usage.cached_tokens > 32  # the second time, from the blocks that the model alone had computed


def test_a_saved_conversation_keeps_what_its_adapter_computed(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "fp32", tmp_path, "all", "values")
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, adapter="all")
    session = edgelm.ChatSession(model)
    for _ in session.send("What is the sea?", config):
        pass
    session.save(tmp_path / "kept")
    again = edgelm.load(exported.packages["fp32"])  # has no adapters: the conversation goes on, its cache does not
    assert edgelm.ChatSession.load(again, tmp_path / "kept").context_used == 0
    again.load_adapter(tmp_path / "values")
    again.load_adapter(tmp_path / "all", "another-name")
    resumed = edgelm.ChatSession.load(again, tmp_path / "kept")
    assert resumed.messages == session.messages
    for current, name in ((session, "all"), (resumed, "another-name")):
        (*_, last) = current.send("And the sky?", config.replace(adapter=name))
        assert last.usage is not None
        assert last.usage.cached_tokens >= 20
    assert resumed.messages == session.messages


def test_an_adapter_in_use_stays_also_when_another_has_come(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "int8", tmp_path, "all", "values")
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, adapter="values")
    held = edgelm.ChatSession(model)
    for _ in held.send("What is the sea?", config):
        pass
    held.save(tmp_path / "kept")
    model.unload_adapter("all")
    in_use = r"The adapter 'values' is in use by 1 KV caches"
    with pytest.raises(ConfigError, match=in_use):
        model.unload_adapter("values")
    held.clear()
    resumed = edgelm.ChatSession.load(model, tmp_path / "kept")  # has computed nothing here yet
    with pytest.raises(ConfigError, match=in_use):
        model.unload_adapter("values")
    resumed.clear()
    with edgelm.Engine(model) as engine:
        generation = engine.submit("The sea is", config.replace(max_new_tokens=900))
        next(generation)  # its row only takes part in the batch's steps from now on
        model.load_adapter(tmp_path / "all")
        with pytest.raises(ConfigError, match=in_use):
            model.unload_adapter("values")
        generation.cancel()
        *_, last = generation
        assert last.finish_reason == "cancelled"
    model.unload_adapter("values")


def test_what_an_adapter_computed_is_never_that_of_another_with_its_name(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "int8", tmp_path, "values")
    export_adapter(exported.adapters["all"], exported.packages["int8"], tmp_path / "another")
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, adapter="values")
    prompt = "The sea is blue. " * 16
    adapted = model.adapted("values")
    adapted.prefixes = PrefixCache(model.config)
    engine = edgelm.Engine(model)
    model.prefixes = PrefixCache(model.config)  # which the engine does not have
    expected = model.generate(prompt, config).token_ids
    assert (
        adapted.generate(prompt, config).token_ids
        == edgelm.join([*engine.submit(prompt, config)]).token_ids
        == expected
    )
    cache = adapted.new_cache()
    model.session.forward(model.tokenizer.encode(prompt), cache)
    clone = cache.clone()
    del cache
    with pytest.raises(ConfigError, match=r"The adapter 'values' is in use by 1 KV caches"):
        model.unload_adapter("values")
    del clone
    model.unload_adapter("values")
    model.load_adapter(tmp_path / "another", "values")

    fresh = edgelm.load(exported.packages["int8"])
    fresh.load_adapter(tmp_path / "another", "values")
    other = fresh.generate(prompt, config).token_ids
    assert other != expected
    assert model.generate(prompt, config).token_ids == other
    assert adapted.generate(prompt, config).token_ids == other
    with engine:
        assert edgelm.join([*engine.submit(prompt, config)]).token_ids == other


@pytest.mark.parametrize(("tokens", "num_beams"), [(1, 1), (3, 1), (3, 2)])
def test_an_adapter_goes_as_soon_as_the_reader_of_its_last_answer_has_the_end(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int, num_beams: int
) -> None:
    model = with_adapters(exported, "fp32", tmp_path, "values")
    finish, goes_on = RunningBatch._finish, threading.Event()

    def slow_finish(batch: RunningBatch, request: Request, text: str, reason: FinishReason) -> None:
        finish(batch, request, text, reason)
        goes_on.wait()  # the step that made the last token is not over

    monkeypatch.setattr(RunningBatch, "_finish", slow_finish)
    config = GenerationConfig(max_new_tokens=tokens, ignore_eos=True, adapter="values", num_beams=num_beams)
    with edgelm.Engine(model) as engine:
        assert join(engine.submit("The sea is", config)).usage.completion_tokens == tokens
        try:
            model.unload_adapter("values")
        finally:
            goes_on.set()


def test_an_error_about_an_adapter_in_use_does_not_keep_it_in_use(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "fp32", tmp_path, "values")
    cache = model.adapted("values").new_cache()
    model.session.forward(IDS, cache)
    with pytest.raises(ConfigError, match="in use by 1 KV caches") as caught:
        model.unload_adapter("values")
    del cache
    model.unload_adapter("values")
    assert caught.value.__traceback__ is not None


def test_adapters_come_and_go_while_answers_are_made(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "int8", tmp_path, "values")
    export_adapter(exported.adapters["ranks"], exported.packages["int8"], tmp_path / "ranks")
    configs = [GenerationConfig(max_new_tokens=16, ignore_eos=True, adapter=name) for name in (None, "values")]
    alone = [model.generate("The sea is", config).token_ids for config in configs]
    begun, changed = threading.Event(), threading.Event()

    def pause(logits_V: NDArray[np.float32], ids: Sequence[int]) -> None:
        if len(ids) == prompt_tokens + 4:
            begun.set()
            changed.wait()

    prompt_tokens = len(model.tokenizer.encode_prompt("The sea is"))
    with edgelm.Engine(model) as engine:
        running = [engine.submit("The sea is", config.replace(processors=(pause,))) for config in configs]
        begun.wait()
        first = weakref.ref(model.session._graph.session)
        model.load_adapter(tmp_path / "ranks")
        assert first() is None  # it changes other layers, so there is another graph
        changed.set()
        answers = [join(generation).token_ids for generation in running]
    assert answers == alone


def test_an_unloaded_adapter_leaves_nothing_behind(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "fp32", tmp_path, "all", "values")
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, adapter="values")
    prompt = "The sea is blue. " * 8
    session = edgelm.ChatSession(model)
    for _ in session.send(prompt, config):
        pass
    with pytest.raises(ConfigError, match=r"The adapter 'values' is in use by 1 KV caches\. First end those answers"):
        model.unload_adapter("values")
    session.clear()
    expected = model.generate(prompt, config).token_ids
    model.unload_adapter("all")  # before it, so that its place moves
    model.prefixes.clear()
    assert model.generate(prompt, config).token_ids == expected
    model.unload_adapter("values")
    with pytest.raises(ConfigError, match=r"fp32 has no adapter 'values'; loaded: none\. Load it: load_adapter, --ad"):
        model.generate(prompt, config)
    with pytest.raises(ConfigError, match=r"No adapter 'values' is loaded\. Loaded: none\."):
        model.unload_adapter("values")
    export_adapter(exported.adapters["all"], exported.packages["fp32"], tmp_path / "all-again")
    model.load_adapter(tmp_path / "all-again", "values")
    completion = model.generate(prompt, config)
    assert completion.usage.cached_tokens == 0  # what the first of that name computed is gone
    other = completion.token_ids
    assert other == model.adapted("values").generate(prompt, config).token_ids != expected
    with pytest.raises(ConfigError, match=r"An adapter 'values' is loaded already\. Unload it first, or give this one"):
        model.load_adapter(tmp_path / "values", "values")


def test_an_adapted_model_scores_and_embeds_with_its_adapter(exported: Exported, tmp_path: Path) -> None:
    model = with_adapters(exported, "fp32", tmp_path, "all").adapted("all")
    logits = torch.log_softmax(torch.tensor(merged_logits(exported, "all")), -1)
    expected = [float(logits[i, id_]) for i, id_ in enumerate(IDS[1:])]
    assert [token.logprob for token in model.score(IDS).tokens] == pytest.approx(expected, abs=1e-4)
    plain = edgelm.load(exported.packages["fp32"])
    assert np.abs(model.embed(["The sea"]) - plain.embed(["The sea"])).max() > 0.01
