"""Folders of onnxruntime-genai's builder and of Optimum: transformers' tokens, and errors that name what is missing."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from command_line import invoke
from foreign_models import (
    genai_package,
    greedy_tokens,
    in_float16,
    merged,
    optimum_package,
    renamed,
    save_llama,
    save_longrope,
)
from json_files import change_json, edited_json
from onnx import helper
from tiny_adapter import write_tiny_adapter

import edgelm
from edgelm.cli.main import main
from edgelm.errors import ModelNotFoundError, PackageError
from edgelm.library.library import Library
from edgelm.package.foreign_graph import find_foreign_graph
from edgelm.package.package import open_package
from edgelm.runtime.binding import DeviceBinding
from edgelm.runtime.stop_switch import RunOptions, StoppedError, StopSwitch
from edgelm.testing import tiny_model_path

COUNT = 24
PLAIN = edgelm.GenerationConfig(max_new_tokens=COUNT, ignore_eos=True)
# Longer than a chunk of a prompt, so that later chunks meet a cache; the other leaves the cache's first capacity.
PROMPTS = [np.random.default_rng(seed).integers(3, 320, length).tolist() for seed, length in ((0, 7), (1, 150))]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("hf")
    return folder, save_llama(folder)


@pytest.fixture(scope="module")
def expected(llama: tuple[Path, Any]) -> list[list[int]]:
    return [greedy_tokens(llama[1], prompt, COUNT) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def optimum(llama: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Optimum writes it, and its graph's text."""
    folder = tmp_path_factory.mktemp("optimum") / "tiny-llama"
    optimum_package(folder, *llama)
    return folder


@pytest.fixture
def folder(optimum: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(optimum, tmp_path / "tiny-llama")


def tokens(path: Path, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    model = edgelm.load(path)
    return [list(model.generate(prompt, PLAIN).token_ids) for prompt in prompts]


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto], name: str = "model.onnx") -> Path:
    graph = change(onnx.load(folder / "onnx" / "model.onnx"))
    (folder / "onnx" / "model.onnx").unlink()
    (folder / "onnx" / name).write_bytes(graph.SerializeToString())
    return folder


def test_a_folder_of_optimum_generates_the_tokens_of_transformers(optimum: Path, expected: list[list[int]]) -> None:
    assert tokens(optimum) == expected
    assert tokens(optimum / "onnx" / "model.onnx", PROMPTS[:1]) == expected[:1]
    assert tokens(optimum / "onnx", PROMPTS[:1]) == expected[:1]


def test_the_engine_gives_each_request_of_a_foreign_package_its_solo_tokens(
    optimum: Path, expected: list[list[int]]
) -> None:
    model = edgelm.load(optimum)
    prompts = [*PROMPTS, PROMPTS[0][:3], PROMPTS[1]]
    together = model.generate_batch(prompts, PLAIN)
    assert [list(answer.token_ids) for answer in together[:2]] == expected
    alone = [edgelm.load(optimum).generate(prompt, PLAIN).token_ids for prompt in prompts[2:]]
    assert [answer.token_ids for answer in together[2:]] == alone


def test_an_adapter_beside_a_foreign_package_is_refused_with_what_can_be_done(optimum: Path, tmp_path: Path) -> None:
    trained = tmp_path / "peft"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    for adapter in (trained, write_tiny_adapter(tmp_path / "exported")):
        result = invoke("run", optimum, "Hi", "--adapter", adapter)
        assert result.exit_code == 1
        assert "model.onnx takes no adapters here" in result.stderr
        assert "edgelm merge ADAPTER --base CHECKPOINT -o merged/, then edgelm export merged/" in result.stderr
        assert "export-adapter" not in result.stderr


def test_what_a_foreign_package_computed_is_used_again(optimum: Path, expected: list[list[int]]) -> None:
    model = edgelm.load(optimum)
    first = model.generate(PROMPTS[1], PLAIN)
    again = model.generate(PROMPTS[1], PLAIN)
    assert again.usage.cached_tokens >= 128
    assert list(first.token_ids) == list(again.token_ids) == expected[1]
    cache = model.session.new_cache()
    list(model.stream(PROMPTS[1], PLAIN, cache=cache))
    cache.truncate(100)
    copy = cache.clone()
    for continued in (cache, copy):
        assert [*model.stream(PROMPTS[0], PLAIN, cache=continued)][-1].usage.completion_tokens == COUNT


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda graph: renamed(graph, "past_key_values.", "past."), "model_quantized.onnx"),
        (merged, "decoder_model_merged.onnx"),
        (lambda graph: renamed(graph, "past_key_values", "past_key_values"), "my own name.onnx"),
    ],
    ids=["past.N", "merged", "own name"],
)
def test_other_names_and_forms_of_a_graph_give_the_same_tokens(
    folder: Path, expected: list[list[int]], change: Callable[[onnx.ModelProto], onnx.ModelProto], name: str
) -> None:
    assert tokens(change_graph(folder, change, name)) == expected


def test_a_graph_that_takes_one_token_behind_a_cache_is_stopped_between_two_and_leaves_the_cache(folder: Path) -> None:
    class Second(StopSwitch):
        """Pressed with the second call that it is to stop."""

        calls = 0

        def connect(self, options: RunOptions) -> None:
            self.calls += 1
            if self.calls == 2:
                self.press()
            super().connect(options)

    session = edgelm.load(change_graph(folder, merged, "decoder_model_merged.onnx")).session
    cache, alone = session.new_cache(), session.new_cache()
    session.forward(PROMPTS[1][:20], cache)
    with pytest.raises(StoppedError):
        session.forward(PROMPTS[1][20:25], cache, stop=Second())
    rows_TV = session.forward(PROMPTS[1][20:25], cache, all_logits=True)
    expected_TV = session.forward(PROMPTS[1][:25], alone, all_logits=True)[20:]
    np.testing.assert_allclose(rows_TV, expected_TV, atol=1e-4)  # sums in another order: 1e-6 measured


def test_a_float16_cache_gives_the_logits_of_a_float32_one(folder: Path, optimum: Path) -> None:
    expected = edgelm.load(optimum)
    model = edgelm.load(change_graph(folder, in_float16, "model_fp16.onnx"))
    assert model.manifest.precision == "fp16"
    cache, reference = model.session.new_cache(), expected.session.new_cache()
    for start in range(0, 30, 10):
        ours = model.session.forward(PROMPTS[1][start : start + 10], cache)
        theirs = expected.session.forward(PROMPTS[1][start : start + 10], reference)
        # Keys, values and logits lose 13 bits: logits of up to 5 differ by 0.003 at the most here.
        np.testing.assert_allclose(ours, theirs, atol=0.02)
    assert cache.buffers[0].dtype == np.float32


@pytest.mark.timeout(600)
def test_a_package_of_onnxruntime_genais_builder_generates_its_tokens(
    llama: tuple[Path, Any], expected: list[list[int]], tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    genai = pytest.importorskip("onnxruntime_genai")
    package = genai_package(tmp_path / "genai", llama[0], "fp32")
    assert tokens(package) == expected
    model = edgelm.load(package)
    assert (model.context_length, model.config.eos_token_ids) == (1024, (2,))
    ids = list(model.generate(PROMPTS[0], PLAIN.replace(ignore_eos=False)).token_ids)
    theirs = genai.Model(str(package))
    parameters = genai.GeneratorParams(theirs)
    parameters.set_search_options(max_length=len(PROMPTS[0]) + COUNT, do_sample=False)
    generator = genai.Generator(theirs, parameters)
    generator.append_tokens(np.array(PROMPTS[0], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0))[len(PROMPTS[0]) :] == ids


@pytest.mark.timeout(600)
def test_a_graph_that_gives_the_logits_of_the_last_position_alone_answers_and_scores(
    llama: tuple[Path, Any], expected: list[list[int]], tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    pytest.importorskip("onnxruntime_genai")
    package = genai_package(tmp_path / "genai", llama[0], "fp32", extra_options=["prune_lm_head=true"])
    assert tokens(package) == expected
    scores = edgelm.load(package).score(PROMPTS[0])
    with torch.no_grad():
        logits = llama[1](torch.tensor([PROMPTS[0]])).logits[0, :-1].log_softmax(-1)
    theirs = [float(row[id_]) for row, id_ in zip(logits, PROMPTS[0][1:], strict=True)]
    found = [token.logprob for token in scores.tokens if token.logprob is not None]
    np.testing.assert_allclose(found, theirs, atol=1e-4)  # sums in another order: 1.3e-6 measured


@pytest.mark.timeout(600)
def test_a_graph_that_fails_at_several_tokens_behind_a_cache_gets_them_one_by_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The builder makes no GroupQueryAttention in float16 for a CPU."""
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    pytest.importorskip("onnxruntime_genai")
    theirs = save_llama(tmp_path / "hf", kv_heads=4)
    package = genai_package(tmp_path / "genai", tmp_path / "hf", "fp16")
    capfd.readouterr()
    session = edgelm.load(package).session
    cache = session.new_cache()
    session.forward(PROMPTS[1][:20], cache)
    rows_TV = session.forward(PROMPTS[1][20:25], cache, all_logits=True)
    with torch.no_grad():
        expected = theirs(torch.tensor([PROMPTS[1][:25]])).logits[0, 20:].numpy()
    np.testing.assert_allclose(rows_TV, expected, atol=0.1)  # float16 has 11 bits: 0.014 measured, of logits up to 5.3
    assert "onnxruntime" not in capfd.readouterr().err  # the trial is silent


@pytest.mark.timeout(600)
def test_a_text_beyond_the_original_context_turns_as_a_long_one_from_its_first_token(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    pytest.importorskip("onnxruntime_genai")
    theirs = save_longrope(tmp_path / "hf")
    model = edgelm.load(genai_package(tmp_path / "genai", tmp_path / "hf", "fp32"))
    assert model.config.short_context == 64
    # Short until its end; one that turns into a long one; long from the start, in several chunks, and beside others.
    prompts = [PROMPTS[1][:20], PROMPTS[1][:50], PROMPTS[1]]
    expected = [greedy_tokens(theirs, prompt, COUNT) for prompt in prompts]
    assert [list(model.generate(prompt, PLAIN).token_ids) for prompt in prompts] == expected
    assert [list(answer.token_ids) for answer in model.generate_batch(prompts, PLAIN)] == expected


@pytest.mark.timeout(600)
def test_a_float16_package_for_directml_runs_on_the_cpu_too(llama: tuple[Path, Any], tmp_path: Path) -> None:
    """Its GroupQueryAttention leaves the rotation to nodes that read position_ids."""
    pytest.importorskip("onnx_ir", reason="onnxruntime-genai's builder needs onnx-ir")
    pytest.importorskip("onnxruntime_genai")
    model = edgelm.load(genai_package(tmp_path / "genai", llama[0], "fp16", "dml"))
    cache = model.session.new_cache()
    with torch.no_grad():
        expected = llama[1](torch.tensor([PROMPTS[1]])).logits[0].numpy()
    start = 0
    for count in (100, 1, 1, 26, 1):  # over the first growth of the cache
        logits_TV = model.session.forward(PROMPTS[1][start : start + count], cache)
        start += count
        # float16 has 11 bits, and everything is computed in it: logits of up to 7 differ by 0.018 at the most.
        np.testing.assert_allclose(logits_TV[0], expected[start - 1], atol=0.1)
    assert isinstance(cache.binding, DeviceBinding)


def test_the_commands_show_run_chat_and_measure_a_foreign_package(optimum: Path) -> None:
    def run(*arguments: str, typed: str | None = None) -> str:
        result = CliRunner().invoke(main, arguments, input=typed, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = run("show", str(optimum))
    assert "tiny-llama" in shown
    assert "onnx/model.onnx" in shown
    assert "without a manifest" in shown
    assert "KV cache              not stated" in shown  # of which type it is stands in the graph alone
    facts = json.loads(run("show", str(optimum), "--json"))
    assert facts["config"]["num_key_value_heads"] == 2
    assert facts["kv_cache_bytes_per_token"] is None
    assert json.loads(run("run", str(optimum), "--json", "--max-new-tokens", "3", "Hi"))["usage"]["prompt_tokens"] > 10
    assert run("chat", str(optimum), "--max-new-tokens", "3", typed="Hello\n")
    measured = json.loads(run("bench", str(optimum), "--rounds", "1", "--json"))
    assert measured["bound"] is None
    assert {rate["name"] for rate in measured["rates"]} >= {"load", "answer after 512 tokens", "8 answers at once"}


def test_the_server_offers_a_foreign_package(optimum: Path) -> None:
    from edgelm.server.model_pool import ModelPool
    from edgelm.server.options import ServerOptions

    pool = ModelPool((str(optimum),), ServerOptions())
    assert list(pool.packages()) == ["tiny-llama"]
    assert pool.package("tiny-llama").modified > 0
    assert pool.package("tiny-llama").config().hidden_size == 64


def test_a_checkpoint_of_edgelm_that_another_program_exported_is_foreign(folder: Path) -> None:
    change_json(folder / "config.json", edgelm={"model_type": "llama"})
    found = find_foreign_graph(folder)
    assert found is not None
    assert found.graph == Path("onnx/model.onnx")


def test_the_chat_template_is_found_in_the_tokenizers_config(optimum: Path) -> None:
    model = edgelm.load(optimum)
    assert model.encode_chat([{"role": "user", "content": "Hi"}])[0] == model.tokenizer.control_tokens["<|im_start|>"]


def test_no_name_leads_to_a_foreign_package(optimum: Path, own_library: Path) -> None:
    shutil.copytree(optimum, own_library / "models" / "foreign")
    with pytest.raises(ModelNotFoundError, match="There is no model 'tiny-llama'"):
        Library().find("tiny-llama")
    assert find_foreign_graph(tiny_model_path()) is None


def test_a_package_of_edgelm_without_its_manifest_is_none(package: Path) -> None:
    (package / "edgelm.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"is not a model package: it has no edgelm\.json"):
        edgelm.load(package)
    with pytest.raises(ModelNotFoundError, match=r"model\.onnx is a file, not a model package\. Name the folder"):
        edgelm.load(package / "model.onnx")


def test_a_foreign_package_is_refused_where_a_signature_is_required(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    key = tmp_path / "key.pem"
    key.write_text("a public key")
    monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(key))
    with pytest.raises(PackageError, match="is not signed"):
        edgelm.load(folder)


def test_a_path_that_leads_up_has_no_configs_from_below(folder: Path) -> None:
    (folder / "config.json").rename(folder / "onnx" / "config.json")
    (folder / "onnx" / "model.onnx").rename(folder / "model.onnx")
    found = find_foreign_graph(folder / "onnx" / "..")
    assert found is not None
    assert (found.folder, found.graph) == (folder.resolve(), Path("model.onnx"))


@pytest.mark.skipif(sys.platform == "win32", reason="not every user may make links there")
def test_a_graph_on_another_disk_has_the_configs_beside_the_link(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "onnx", tmp_path / "disk")
    (folder / "onnx").symlink_to(tmp_path / "disk")
    found = find_foreign_graph(folder)
    assert found is not None
    assert (found.folder, found.graph) == (folder, Path("onnx/model.onnx"))


def with_input(name: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def change(graph: onnx.ModelProto) -> onnx.ModelProto:
        graph.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]))
        return graph

    return change


def without_output(name: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def change(graph: onnx.ModelProto) -> onnx.ModelProto:
        values = graph.graph.output
        kept = [value for value in values if not value.name.startswith(name)]
        del values[:]
        values.extend(kept)
        return graph

    return change


def with_type(name: str, type_: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def change(graph: onnx.ModelProto) -> onnx.ModelProto:
        for value in graph.graph.output:
            if value.name == name:
                graph.graph.node.append(helper.make_node("Cast", [name], ["changed"], to=type_))
                value.CopyFrom(helper.make_tensor_value_info("changed", type_, ["batch_size", "sequence_length", 320]))
        return renamed(renamed(graph, name, "before"), "changed", name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_input("encoder_hidden_states"),
            "takes the input 'encoder_hidden_states'. It is the half of an enco",
        ),
        (with_input("inputs_embeds"), "'inputs_embeds'. It is a part of a model that also reads pictures"),
        (
            with_input("past_conv.0"),
            r"'past_conv.0'. edgelm gives input_ids, attention_mask, position_ids, ",
        ),
        (without_output("logits"), "has no output 'logits', so it is no decoder of text. It has: present.0.key"),
        (
            without_output("present"),
            "it has 4 such inputs and 0 such outputs. Export the model with its cache: ",
        ),
        (with_type("logits", onnx.TensorProto.DOUBLE), r"takes 'logits' as tensor\(double\); edgelm gives"),
    ],
)
def test_what_a_graph_lacks_is_named(
    folder: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        edgelm.load(change_graph(folder, change))


def test_a_pipeline_of_onnxruntime_genais_is_refused_for_what_it_is(tmp_path):
    for name in ("embeddings", "context", "lm_head"):
        (tmp_path / f"{name}.onnx").write_bytes(b"")
    stages = {name: {"filename": f"{name}.onnx"} for name in ("embeddings", "context", "lm_head")}
    genai = {"model": {"type": "decoder-pipeline", "decoder": {"pipeline": [stages]}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(genai))
    with pytest.raises(PackageError, match=r"genai_config\.json names a pipeline of several graphs.*edgelm export"):
        edgelm.load(tmp_path)


def test_what_a_folder_lacks_is_named(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(PackageError, match="has 4 keys and values; by the model's config they are 6"):
        edgelm.load(folder)
    with edited_json(folder / "config.json") as config:
        del config["num_hidden_layers"]
    with pytest.raises(
        PackageError, match=r"does not say num_hidden_layers: neither config\.json \(num_hidden_layers, n_"
    ):
        edgelm.load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(PackageError, match=r"Cannot read .*config\.json: it is no JSON object"):
        edgelm.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(PackageError, match=r"Cannot read .*config\.json"):
        edgelm.load(folder)
    (folder / "config.json").unlink()
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "../outside.onnx"}}}')
    with pytest.raises(PackageError, match=r"names the graph '\.\./outside\.onnx', which is not a file in"):
        edgelm.load(folder)


def test_the_halves_of_an_encoder_decoder_are_refused_as_such_and_not_for_a_size(folder: Path) -> None:
    # As T5's config, which has no longest text: it would not help to add one.
    change_json(folder / "config.json", is_encoder_decoder=True, max_position_embeddings=None)
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "decoder_model_merged.onnx")
    with pytest.raises(PackageError, match=r"config\.json says is_encoder_decoder: .*edgelm export CHECKPOINT"):
        edgelm.load(folder)


def test_a_graph_among_several_unknown_ones_must_be_named(folder: Path, expected: list[list[int]]) -> None:
    shutil.copy(folder / "onnx" / "model.onnx", folder / "onnx" / "b.onnx")
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "a.onnx")
    with pytest.raises(PackageError, match=r"has several graphs: a\.onnx, b\.onnx\. Name one of them"):
        edgelm.load(folder)
    assert tokens(folder / "onnx" / "b.onnx", PROMPTS[:1]) == expected[:1]


def test_a_link_in_place_of_the_graph_and_a_missing_tokenizer_are_told(folder: Path, tmp_path: Path) -> None:
    graph = folder / "onnx" / "model.onnx"
    graph.rename(tmp_path / "blob")
    graph.symlink_to(tmp_path / "blob")
    with pytest.raises(PackageError, match="hf download ORG/REPO --local-dir FOLDER"):
        edgelm.load(folder)
    graph.unlink()
    (tmp_path / "blob").rename(graph)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PackageError, match=r"has no tokenizer\.json.*save_pretrained\(FOLDER\)"):
        edgelm.load(folder)


def test_the_defaults_of_sampling_are_the_authors(folder: Path) -> None:
    change_json(folder / "generation_config.json", do_sample=True, temperature=0.3, eos_token_id=[0, 7])
    package = open_package(folder)
    assert package.generation_config().temperature == 0.3
    assert package.config().eos_token_ids == (0, 7, 2)  # the last one is the tokenizer's
    (folder / "generation_config.json").unlink()
    search = {"do_sample": True, "top_k": 5, "top_p": 0.5}
    (folder / "onnx" / "model.onnx").rename(folder / "model.onnx")
    genai = {"model": {"decoder": {"filename": "model.onnx"}}, "search": search}
    (folder / "genai_config.json").write_text(json.dumps(genai))
    config = open_package(folder).generation_config()
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 5, 0.5)


@pytest.mark.parametrize("value", ["x", -1, True, 1e9, [1, "a"], {"a": 1}, 10**30])
def test_configs_with_anything_in_them_are_read_or_refused(folder: Path, value: Any) -> None:
    package = open_package(folder)
    (folder / "genai_config.json").write_text(json.dumps({"model": value, "search": value}))
    for name in ("config.json", "generation_config.json"):
        original = (folder / name).read_text()
        for key in json.loads(original):
            change_json(folder / name, **{key: value})
            with contextlib.suppress(edgelm.EdgeLMError):
                package.config()
                package.generation_config()
        (folder / name).write_text(original)
