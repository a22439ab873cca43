"""Adapters beside a package: exported for it, loaded, mixed in one batch; PEFT's own sums are the oracle."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from make_tiny_model import CONFIG, make_checkpoint
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.cli.main import main
from edgelm.config import ModelConfig
from edgelm.decoding.answer import join
from edgelm.decoding.generate import prefill
from edgelm.errors import CheckpointError, ConfigError, ExportError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.manifest import Manifest, describe_file, sha256_of
from edgelm.runtime.session import SessionOptions
from edgelm_export.adapter_exporter import export_adapter
from edgelm_export.calibration_text import CalibrationOptions
from edgelm_export.exporter import export_package
from edgelm_export.huggingface import HuggingFaceCheckpoint
from edgelm_export.package_checkpoint import PackageCheckpoint
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE, ChannelScales

IDS = [5, 17, 3, 44, 8, 60, 200, 7, 9, 41]
# The names of the adapters, with what they change: all, one part of a fused product, another rank in one layer.
ADAPTERS: Mapping[str, dict[str, object]] = {
    "all": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "values": {"r": 3, "target_modules": ["v_proj"], "use_rslora": True},
    "ranks": {"r": 4, "target_modules": ["up_proj", "down_proj"], "rank_pattern": {"down_proj": 2}},
}


@dataclass(frozen=True)
class Exported:
    """Packages of one checkpoint, by precision; adapters, by name, as PEFT saved them."""

    checkpoint: Path
    packages: Mapping[str, Path]
    adapters: Mapping[str, Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("adapters")
    checkpoint = make_checkpoint(folder / "ckpt")
    packages = {}
    recipes: dict[str, str | Precision] = {precision: precision for precision in ("fp32", "int8")}
    recipes |= {
        f"{name} with a prefill graph": replace(PRECISIONS[name].with_prefill_graph(), perplexity_bound=1.5)
        for name in ("fp32", "int8")
    }
    for name, recipe in recipes.items():
        packages[name] = folder / name
        with HuggingFaceCheckpoint(checkpoint) as source:
            export_package(source, packages[name], recipe)
    for seed, (name, fields) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        config = LoraConfig(lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **fields)
        get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), config).save_pretrained(folder / name)
    return Exported(checkpoint, packages, {name: folder / name for name in ADAPTERS})


@torch.no_grad()
def merged_logits(exported: Exported, name: str | None, ids: Sequence[int] = IDS) -> NDArray[np.float32]:
    model = AutoModelForCausalLM.from_pretrained(exported.checkpoint)
    if name is not None:
        model = PeftModel.from_pretrained(model, exported.adapters[name]).merge_and_unload()
    return model.eval()(torch.tensor([ids])).logits[0].numpy()


def our_logits(model: LanguageModel, name: str | None) -> NDArray[np.float32]:
    cache = model.session.new_cache()
    cache.use_adapter(name)
    first = model.session.forward(IDS[:6], cache, all_logits=True)
    rest = [model.session.forward((id_,), cache).copy() for id_ in IDS[6:]]
    return np.concatenate([first, *rest])


def with_adapters(exported: Exported, precision: str, folder: Path, *names: str) -> LanguageModel:
    model = edgelm.load(exported.packages[precision])
    for name in names:
        export_adapter(exported.adapters[name], exported.packages[precision], folder / name)
        model.load_adapter(folder / name)
    return model


# Sums in another order. Measured: 6.5e-6.
CLOSE = {"atol": 2e-5, "rtol": 0}


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
    assert bank.nbytes < 2 * (tmp_path / "all" / "adapter_model.safetensors").stat().st_size + 100_000
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
        assert edgelm.join([*generation]).finish_reason == "cancelled"
    model.unload_adapter("values")


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
    with pytest.raises(
        ConfigError, match=r"fp32 has no adapter 'values'; loaded: none\. See LanguageModel.load_adapter"
    ):
        model.generate(prompt, config)
    with pytest.raises(ConfigError, match=r"No adapter 'values' is loaded\. Loaded: none\."):
        model.unload_adapter("values")
    export_adapter(exported.adapters["all"], exported.packages["fp32"], tmp_path / "all-again")
    model.load_adapter(tmp_path / "all-again", "values")
    other = model.generate(prompt, config).token_ids
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


@pytest.mark.parametrize("transforms", [(), ("smooth",)])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("granite", {"residual_multiplier": 0.5}),
        ("stablelm", {"partial_rotary_factor": 0.5, "hidden_size": 64, "num_attention_heads": 4}),
        ("qwen2", {}),  # biases, which come behind
    ],
)
def test_what_the_exporter_folds_into_weights_is_folded_into_adapters(
    family: str,
    fields: dict[str, object],
    transforms: tuple[str, ...],
    save_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    base = save_model(family, tmp_path / "ckpt", **fields)
    floats = replace(PRECISIONS["fp32"], transforms=transforms)
    with HuggingFaceCheckpoint(tmp_path / "ckpt") as source:
        export_package(source, tmp_path / "pkg", floats, calibration=CalibrationOptions(max_tokens=256))
    config = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "adapter")
    model = edgelm.load(tmp_path / "pkg")
    model.load_adapter(tmp_path / "adapter")
    assert np.abs(our_logits(model, None) - expected).max() > 0.1
    np.testing.assert_allclose(our_logits(model, "adapter"), expected, atol=1e-4, rtol=0)


def peft_folder(exported: Exported, folder: Path, metadata: Mapping[str, str] | None = None, **changed: Any) -> Path:
    """Copy the adapter `values`, with other metadata and other tensors."""
    shutil.copytree(exported.adapters["values"], folder)
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights) | changed, weights, metadata=dict(metadata or {}))
    return folder


def test_the_command_takes_the_best_adapter_of_a_run(exported: Exported, tmp_path: Path) -> None:
    weights = sha256_of(exported.checkpoint / "model.safetensors")
    peft_folder(
        exported, tmp_path / "run" / "best", {"edgelm.base_sha256": weights, "edgelm.base_grid": "int4-block64"}
    )
    command = ["export-adapter", str(tmp_path / "run"), "--base", str(exported.packages["int8"])]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "mine"), "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["name"], facts["base"], facts["rank"], facts["alpha"]) == ("mine", "int8", 3, 6)
    assert facts["target_modules"] == ["v_proj"]
    assert facts["notes"] == [
        "The adapter learned on weights on the grid int4-block64; 2 of its 2 layers are stored otherwise in this "
        "package."
    ]
    with safe_open(tmp_path / "mine" / "adapter_model.safetensors", framework="numpy") as file:
        assert "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight" in file.keys()  # noqa: SIM118
    command = ["export-adapter", str(exported.adapters["all"]), "--base", str(exported.packages["int8"])]
    result = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "mine")])  # replaces the one before
    assert result.exit_code == 0, result.output
    assert "note  Nothing tells whether the package was exported from the weights that the adapter" in result.stdout
    answer = CliRunner().invoke(
        main, ["run", str(exported.packages["int8"]), "--raw", "The sea", "--adapter", str(tmp_path / "mine"), "--json"]
    )
    assert answer.exit_code == 0, answer.output
    model = edgelm.load(exported.packages["int8"])
    model.load_adapter(tmp_path / "mine")
    config = GenerationConfig(max_new_tokens=1024, adapter="mine")
    assert json.loads(answer.stdout)["token_ids"] == list(model.generate("The sea", config).token_ids)


def test_projections_that_are_no_longer_one_product_are_adapted_one_by_one(exported: Exported, tmp_path: Path) -> None:
    rules = Rule(pattern="q_proj|up_proj", scheme="fp16"), Rule(pattern=".", scheme="fp32")
    with HuggingFaceCheckpoint(exported.checkpoint) as source:
        export_package(source, tmp_path / "pkg", Precision(rules=rules))
    export_adapter(exported.adapters["all"], tmp_path / "pkg", tmp_path / "adapter")
    model = edgelm.load(tmp_path / "pkg")
    model.load_adapter(tmp_path / "adapter")
    # The rounding of some weights to 16 bits. Measured: 3.7e-3.
    np.testing.assert_allclose(our_logits(model, "adapter"), merged_logits(exported, "all"), atol=1e-2, rtol=0)


def test_a_package_on_the_grid_that_an_adapter_learned_on_is_its_base(exported: Exported, tmp_path: Path) -> None:
    rules = Rule(pattern="layers", scheme="int4-block64"), Rule(pattern=".", scheme="int8-block64")
    with HuggingFaceCheckpoint(exported.checkpoint) as source:
        export_package(source, tmp_path / "pkg", Precision(rules=rules, perplexity_bound=100.0))
    weights = sha256_of(exported.checkpoint / "model.safetensors")
    metadata = {"edgelm.base_sha256": weights, "edgelm.base_grid": "int4-block64"}
    trained = peft_folder(exported, tmp_path / "qlora", metadata)
    assert export_adapter(trained, tmp_path / "pkg", tmp_path / "adapter").notes == ()


def test_an_adapter_that_does_not_go_with_the_package_is_refused(exported: Exported, tmp_path: Path) -> None:
    package = exported.packages["fp32"]
    others = peft_folder(exported, tmp_path / "others", {"edgelm.base_sha256": "0" * 64, "edgelm.base_name": "x"})
    with pytest.raises(
        CheckpointError, match=r"was trained on x \(weights 0{12}…\); the package fp32 was exported from"
    ):
        export_adapter(others, package, tmp_path / "out")
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    wide = peft_folder(exported, tmp_path / "wide", **{name.format("A"): np.zeros((3, 31), np.float32)})
    with pytest.raises(CheckpointError, match=r"v_proj: it is \[16, 32\], the adapter's A and B are \[3, 31\]"):
        export_adapter(wide, package, tmp_path / "out")
    changed = {name.format("A"): np.zeros((600, 32), np.float32), name.format("B"): np.zeros((16, 600), np.float32)}
    with pytest.raises(CheckpointError, match=r"v_proj: rank 600, and ranks are 1 to 512"):
        export_adapter(peft_folder(exported, tmp_path / "thick", **changed), package, tmp_path / "out")
    head = {f"base_model.model.lm_head.lora_{part}.weight": np.zeros((3, 3), np.float32) for part in "AB"}
    with pytest.raises(CheckpointError, match=r"lm_head: there is no such projection"):
        export_adapter(peft_folder(exported, tmp_path / "head", **head), package, tmp_path / "out")
    broken = peft_folder(exported, tmp_path / "nan", **{name.format("A"): np.full((3, 32), np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"v_proj\.lora_A\.weight has NaN or infinite values; the adapter is"):
        export_adapter(broken, package, tmp_path / "out")
    (broken / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read: .* Copy it again\."):
        export_adapter(broken, package, tmp_path / "out")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"file/out cannot be written: .* What was there before is as it was\."):
        export_adapter(exported.adapters["values"], package, tmp_path / "file" / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match=r"out is not replaced: it exists and is not an exported adapter\. Choose"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")


def test_a_package_that_takes_no_adapters_says_so(exported: Exported, tmp_path: Path) -> None:
    package = shutil.copytree(exported.packages["fp32"], tmp_path / "pkg")
    manifest = Manifest.load(package)
    replace(manifest, recipe=({"transform": "rotate"}, *manifest.recipe)).save(package)
    with pytest.raises(ExportError, match=r"pkg has rotated weights, so what its layers read is not what"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")
    replace(manifest, recipe=({"transform": "smooth"}, *manifest.recipe)).save(package)
    with pytest.raises(ExportError, match=r"pkg has smooth folded into its weights, and no channel_scales"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")
    for number, precision in enumerate(("int8", "int8-wide")):
        with PackageCheckpoint(package if number else exported.packages["int8"]) as source:
            package = tmp_path / precision
            export_package(source, package, precision)
        with pytest.raises(ExportError, match=rf"{precision} was made of a package that has smooth folded into its"):
            export_adapter(exported.adapters["values"], package, tmp_path / "out")
    config = replace(ModelConfig.load(package), num_experts=2, num_experts_per_tok=1)
    (package / "config.json").write_text(json.dumps({"edgelm": config.to_dict()}))
    with pytest.raises(ExportError, match=r"is a model with experts, which takes no adapters beside it\. Merge"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "scales", "message"),
    [
        (
            "model.layers.0.input_layernorm",
            np.ones((1, 31), np.float32),
            r"shape \[1, 31\], from 1 up; by config",
        ),
        (
            "model.layers.0.input_layernorm",
            np.zeros((1, 32), np.float32),
            r"shape \[1, 32\], from 0 up; by config",
        ),
        ("model.layers.9.input_layernorm", np.ones((1, 32), np.float32), r"layers\.9\.input_layernorm of the shape"),
    ],
)
def test_scales_that_do_not_fit_the_package_are_refused(
    name: str, scales: NDArray[np.float32], message: str, exported: Exported, tmp_path: Path
) -> None:
    package = shutil.copytree(exported.packages["int8"], tmp_path / "pkg")
    save_file({name: scales}, package / CHANNEL_SCALES_FILE)
    manifest = Manifest.load(package)
    files = tuple(describe_file(package / entry.path) for entry in manifest.files)
    manifest = replace(manifest, files=files)
    manifest.save(package)
    with pytest.raises(ExportError, match=message):
        ChannelScales.load(package, manifest, ModelConfig.load(package))
