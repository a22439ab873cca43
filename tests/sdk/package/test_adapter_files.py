"""Adapter folders as a loader meets them: another package's, changed, broken; and the graph with places for them."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import invoke
from held_engine import held
from tiny_adapter import LAYER, PACKAGE, describe, write_tiny_adapter
from waiting import wait_for

import edgelm
from edgelm import language_model
from edgelm.batching.request import Request
from edgelm.batching.running_batch import RunningBatch
from edgelm.config import ModelConfig
from edgelm.decoding.draft_model import DraftModel
from edgelm.errors import ConfigError, PackageError
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.adapter import read_adapter
from edgelm.package.onnx_walk import walk_onnx
from edgelm.package.peft_format import does_not_fit
from edgelm.runtime import row_steps
from edgelm.runtime.adapter_bank import AdapterBank
from edgelm.runtime.adapter_graph import products_of, with_adapters
from edgelm.shared_use import SharedUse
from edgelm.testing import scripted_model, tiny_model_path

CONFIG = ModelConfig.load(tiny_model_path())


def edit_manifest(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


def edit_weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        describe(folder)

    return edit


def link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "mistyped": (shutil.rmtree, r"There is no adapter at .*\. Check the path\."),
    "in a circle": (link_to_itself, r"The adapter at .* cannot be read: .*\. Check the path\."),
    "not exported": (lambda folder: (folder / "adapter.json").unlink(), r"has no adapter\.json, so it is no exported"),
    "no JSON": (lambda folder: (folder / "adapter.json").write_text("["), r"describes no adapter: .* Export or copy"),
    "later version": (
        edit_manifest('"schema_version": 1', '"schema_version": 2'),
        r"adapter\.json has schema_version 2; this edgelm reads 1\. Update edgelm\.",
    ),
    "no whole version": (
        edit_manifest('"schema_version": 1', '"schema_version": true'),
        "schema_version True; this",
    ),
    "later field": (edit_manifest('"rank"', '"dora": true, "rank"'), "'dora'. If a newer edgelm wrote it, update this"),
    "no name": (edit_manifest('"name": "mine"', '"name": 3'), "describes no adapter: name is 3"),
    "no rank": (edit_manifest('"rank": 2', '"rank": 0'), "describes no adapter: rank is 0; it must be a number from 1"),
    "other file": (
        edit_manifest('"path": "adapter', '"path": "../adapter'),
        r"no adapter: the file is '\.\./",
    ),
    "odd targets": (edit_manifest('"o_proj"', "7"), r"describes no adapter: target_modules are \(7,\)"),
    "other package": (
        edit_manifest(PACKAGE.fingerprint, "0" * 64),
        r"belongs to the package tiny-random \(0{12}\), not to tiny-random \([0-9a-f]{12}\)\. Export it for this one",
    ),
    "changed": (
        lambda folder: flip_last_bit(folder / "adapter_model.safetensors"),
        "does not match the SHA-256 .* damaged: export or download its folder again",
    ),
    "huge": (edit_manifest('"size": ', '"size": 99999999'), r"has \d+ bytes; an adapter of this model has at most"),
    "wrong shape": (
        lambda folder: write_tiny_adapter(folder, ((2, 31), (32, 2))),
        r"\[2, 31\] and \[32, 2\] for .*o_proj",
    ),
    "half": (
        lambda folder: write_tiny_adapter(folder, dtype="f2"),
        r"a tensor is 'F16' of shape \[2, 32\]; only F32 matrices",
    ),
    "cut": (edit_weights(lambda data: data[:-4]), r"a matrix of shape \[.*\] lies at \d+ to \d+ of \d+ bytes"),
    "no header": (
        edit_weights(lambda data: b"\xff" * 8 + data[8:]),
        r"its header of 18446744073709551615 bytes is",
    ),
    "NaN": (edit_weights(lambda data: data[:-4] + b"\xff" * 4), r"lora_B\.weight has NaN or infinite values"),
}


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_is_not_whole_or_not_this_packages_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "adapter")
    read_adapter(folder, PACKAGE, CONFIG)
    change, message = BROKEN[name]
    change(folder)
    with pytest.raises(PackageError, match=message):
        read_adapter(folder, PACKAGE, CONFIG)


def test_the_graph_with_places_for_adapters_passes_the_walk() -> None:
    path = tiny_model_path() / "model.onnx"
    graph = path.read_bytes()
    sizes = {"model.onnx.data": (tiny_model_path() / "model.onnx.data").stat().st_size}
    products = products_of(graph, path)
    assert "model.layers.1.self_attn.qkv_proj" in products
    assert "model.layers.1.mlp.gate_up_proj" in products
    widths = dict.fromkeys(products, 32)
    plain, adapted = walk_onnx(graph, path, sizes), walk_onnx(with_adapters(graph, path, widths), path, sizes)
    used = {("com.microsoft", "FusedMatMul"), *(("", name) for name in ("Add", "Mul", "Reshape", "Concat"))}
    assert adapted.operators == plain.operators | used
    assert with_adapters(graph, path, {}) == graph


def test_products_without_names_or_with_names_that_are_no_text_have_no_adapters() -> None:
    path = tiny_model_path() / "model.onnx"
    products = products_of(path.read_bytes(), path)
    model = onnx.load(path, load_external_data=False)
    model.graph.node.add(op_type="MatMul", input=["a", "b"])
    model.graph.node.add(op_type="MatMul", output=["z.output"])
    model.graph.node.add(op_type="zz", input=["zz"], output=["zz"])
    graph = model.SerializeToString().replace(b"\x02zz", b"\x02\xff\xff")
    assert products_of(graph, path) == products
    assert with_adapters(graph, path, {}) == graph


def test_a_layer_without_a_product_of_its_own_cannot_be_adapted(tmp_path: Path) -> None:
    adapter = read_adapter(write_tiny_adapter(tmp_path / "adapter"), PACKAGE, CONFIG)
    with pytest.raises(PackageError, match=rf"The graph has no product for {LAYER}, which the adapter mine changes"):
        AdapterBank().with_adapter("mine", adapter, {})


def test_a_graph_of_another_program_takes_no_adapters(tmp_path: Path) -> None:
    from edgelm.runtime.session import DecoderSession

    session = DecoderSession(tiny_model_path(), CONFIG, foreign_graph=Path("model.onnx"))
    adapter = read_adapter(write_tiny_adapter(tmp_path / "adapter"), PACKAGE, CONFIG)
    with pytest.raises(ConfigError, match=r"model\.onnx takes no adapters here: they run on the CPU, beside packages"):
        session.load_adapter("mine", adapter)


def test_when_the_adapted_graph_does_not_start_the_model_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgelm.load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=4)
    expected = model.generate("The sea", config).token_ids
    monkeypatch.setattr("edgelm.runtime.session.with_adapters", lambda graph, path, products: b"broken")
    with pytest.raises(edgelm.ProviderError, match="does not load"):
        model.load_adapter(write_tiny_adapter(tmp_path / "adapter"))
    assert not model.adapters
    assert model.generate("The sea", config).token_ids == expected


def test_weights_that_were_changed_meanwhile_are_not_read_again(package: Path, tmp_path: Path) -> None:
    model, config = edgelm.load(package), GenerationConfig(max_new_tokens=8)
    expected = model.generate("The sea", config).token_ids
    flip_last_bit(package / "model.onnx.data")
    with pytest.raises(PackageError, match=r"model\.onnx\.data does not match the SHA-256"):
        model.load_adapter(write_tiny_adapter(tmp_path / "adapter"))
    assert model.generate("The sea", config).token_ids == expected  # it goes on with what it has


def test_a_model_of_a_relative_path_takes_adapters_when_the_program_works_elsewhere(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(package.parent)
    model = edgelm.load("./package")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.load_adapter(write_tiny_adapter(tmp_path / "adapter"))
    assert list(model.adapters) == ["mine"]


@pytest.mark.parametrize("use", [edgelm.LanguageModel.adapted, edgelm.LanguageModel.unload_adapter])
@pytest.mark.parametrize("name", ["other", ["mine"]])
def test_what_names_no_loaded_adapter_is_refused(use, name) -> None:
    with pytest.raises(edgelm.ConfigError, match=f"adapter {re.escape(repr(name))}.*oaded: none"):
        use(edgelm.load(tiny_model_path()), name)


def test_the_scripted_model_takes_adapters_too(tmp_path: Path) -> None:
    model = scripted_model("blue")
    model.load_adapter(write_tiny_adapter(tmp_path / "adapter"))
    assert model.adapted("mine").generate("The sea is").text == "blue"
    model.unload_adapter("mine")
    assert not model.adapters


def test_the_chat_answers_with_the_first_adapter(tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "adapter")
    options = ["--adapter", f"other={folder}", "--adapter", str(folder), "--max-new-tokens", "8"]
    result = invoke("chat", tiny_model_path(), *options, stdin="Hello\n")
    assert result.exit_code == 0, result.output
    model = edgelm.load(tiny_model_path())
    model.load_adapter(folder)
    config = GenerationConfig(max_new_tokens=8, adapter="mine")
    said = [edgelm.Message(role="user", content="Hello")]
    answers = [model.chat(said, config.replace(adapter=name)).text for name in ("mine", None)]
    assert result.stdout.strip() == answers[0].strip() != answers[1].strip()


def test_one_answer_takes_an_adapter_by_another_name_too(tmp_path: Path) -> None:
    folder = write_tiny_adapter(tmp_path / "adapter")
    plain, adapted, named = (
        invoke("run", tiny_model_path(), "Hello", "--max-new-tokens", "8", *options).stdout
        for options in ([], ["--adapter", str(folder)], ["--adapter", f"other={folder}"])
    )
    assert plain != adapted == named


def test_a_draft_guesses_with_its_own_adapter(tmp_path: Path) -> None:
    model, draft = edgelm.load(tiny_model_path()), edgelm.load(tiny_model_path())
    draft.load_adapter(write_tiny_adapter(tmp_path / "mine"))
    said = []
    for guesses in (draft, draft.adapted("mine")):
        drafter = DraftModel(guesses, model)
        drafter.extend([5, 6, 7, 8, 9])
        said.append(drafter.guess(8))
        config = guesses.generation_config.replace(max_new_tokens=8, ignore_eos=True)
        assert said[-1] == list(guesses.generate([5, 6, 7, 8, 9], config).token_ids)
    assert said[0] != said[1]


def test_an_adapter_stays_for_answers_that_wait_or_were_put_aside(tmp_path: Path) -> None:
    model, folder = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)), write_tiny_adapter(tmp_path / "a")
    model.load_adapter(folder)
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True, adapter="mine")
    alone = model.generate([5, 6, 7], config).token_ids
    in_use = "The adapter 'mine' is in use by 1 KV caches"
    with edgelm.Engine(model, edgelm.EngineOptions(max_batch=1, max_unread=1)) as engine:
        with held(engine):
            waiting = engine.submit([5, 6, 7], config)
            with pytest.raises(ConfigError, match=in_use):
                model.unload_adapter("mine")
        wait_for(lambda: waiting.is_full and not engine.stats.active)
        with pytest.raises(ConfigError, match=in_use):
            model.unload_adapter("mine")
        assert edgelm.join(waiting).token_ids == alone
        model.unload_adapter("mine")
        assert not model.adapters


def test_an_adapter_stays_while_an_answer_fills_its_row_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, add = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)), RunningBatch.add
    refused: list[Request] = []
    model.load_adapter(write_tiny_adapter(tmp_path / "a"))

    def unload_and_add(batch: RunningBatch, request: Request) -> None:
        try:
            model.unload_adapter("mine")
        except ConfigError:
            refused.append(request)
        add(batch, request)

    monkeypatch.setattr(RunningBatch, "add", unload_and_add)
    config = GenerationConfig(max_new_tokens=20, ignore_eos=True, adapter="mine", context_shift=4)
    with edgelm.Engine(model) as engine:
        assert edgelm.join(engine.submit([5] * 1020, config)).usage.completion_tokens == 20
    assert len(refused) == 2  # as it came, and behind the end of its context


def test_an_adapter_stays_once_an_answer_has_what_it_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fill = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)), PrefixCache.fill
    model.load_adapter(write_tiny_adapter(tmp_path / "a"))
    prompt, config = [5, 6, 7] * 20, GenerationConfig(max_new_tokens=8, ignore_eos=True, adapter="mine")
    alone = model.generate(prompt, config).token_ids

    def fill_and_unload(*arguments: Any) -> int:
        cached = fill(*arguments)
        with pytest.raises(ConfigError, match="The adapter 'mine' is in use by 1 KV caches"):
            model.unload_adapter("mine")
        return cached

    monkeypatch.setattr(PrefixCache, "fill", fill_and_unload)
    answer = model.generate(prompt, config)
    assert (answer.token_ids, answer.usage.cached_tokens) == (alone, 32)


def test_what_is_bound_for_adapters_in_company_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_steps, "_MOST_BINDINGS", 3)
    model = edgelm.load(tiny_model_path())
    names = [None, "a", "b", "c", "d"]
    for name in names[1:]:
        model.load_adapter(write_tiny_adapter(tmp_path / "adapter"), name)
    batch = KVBatch(model.config)
    rows = [batch.add(), batch.add()]
    for row in rows:
        batch.activate(row)
    for pair in itertools.combinations(names, 2):
        for row, name in zip(rows, pair, strict=True):
            row.truncate(0)
            row.use_adapter(name)
            model.session.forward((5, 6), row)
        one_V, other_V = model.session.forward_rows((7, 7), batch)
        assert np.array_equal(one_V, other_V) == (pair[0] is not None)  # all adapters are one, by four names
        assert 0 < len(batch.bindings) <= 3


def test_of_many_layers_that_do_not_fit_an_error_lists_some() -> None:
    told = does_not_fit(Path("mine"), "package", (f"layer {i}: none" for i in range(20)))
    assert "package:\n  layer 0: none\n" in told
    assert "\n  layer 15: none\n  and 4 more\nName the package" in told


def test_an_adapter_is_named_by_a_text() -> None:
    with pytest.raises(ConfigError, match="adapter is 3; it must be the name of a loaded adapter, or None"):
        GenerationConfig(adapter=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name is 3; it must be a text, or None for the adapter's own name"):
        edgelm.load(tiny_model_path()).load_adapter("adapter/", 3)  # type: ignore[arg-type]


def test_of_two_threads_that_load_adapters_of_one_name_one_is_refused(tmp_path: Path) -> None:
    model = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))
    folder, refused = write_tiny_adapter(tmp_path / "adapter"), []

    def load() -> None:
        try:
            model.load_adapter(folder)
        except ConfigError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(2)]
    with model.session._use:  # type: ignore[attr-defined]
        for thread in threads:
            thread.start()
            thread.join(0.2)  # until it waits to be alone
    for thread in threads:
        thread.join()
    assert refused == ["An adapter 'mine' is loaded already. Unload it first, or give this one another name."]


def test_an_adapter_that_was_loaded_as_another_thread_unloaded_one_of_its_name_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)), write_tiny_adapter(tmp_path / "a")
    model.load_adapter(folder)

    @contextmanager
    def beside_another_thread() -> Iterator[None]:
        yield
        monkeypatch.undo()
        model.load_adapter(folder)  # the other thread's, before unload_adapter has returned

    monkeypatch.setattr(language_model, "in_huge_pages", beside_another_thread)
    model.unload_adapter("mine")
    assert list(model.adapters) == ["mine"]
    model.unload_adapter("mine")


def test_an_adapter_whose_loading_was_interrupted_at_its_end_can_be_used_and_unloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))

    @contextmanager
    def interrupted() -> Iterator[None]:
        yield
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(language_model, "in_huge_pages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.load_adapter(write_tiny_adapter(tmp_path / "adapter"))
    model.adapted("mine").score("The sea")
    model.unload_adapter("mine")
    assert not model.adapters


def test_who_wants_it_alone_waits_for_those_inside_and_goes_before_those_who_come_later() -> None:
    use, order = SharedUse(), []
    inside, leave, alone = (threading.Event() for _ in range(3))

    def stay() -> None:
        with use:
            inside.set()
            leave.wait()
            order.append("inside")

    def change() -> None:
        with use.alone():
            order.append("alone")
            alone.set()

    def come_later() -> None:
        with use:
            order.append("later")

    threads = [threading.Thread(target=target) for target in (stay, change, come_later)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    while not use._closed:  # until it waits
        threads[1].join(0.001)
    threads[2].start()
    assert not alone.is_set()
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["inside", "alone", "later"]


@pytest.mark.skipif(os.name == "nt", reason="Windows interrupts no wait for a lock")
def test_who_waits_to_be_alone_and_is_interrupted_lets_others_in() -> None:
    use = SharedUse()
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with use:
            inside.set()
            assert leave.wait(60)

    def interrupt() -> None:
        while not use._closed:  # until it waits
            leave.wait(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threads = [threading.Thread(target=target) for target in (stay, interrupt)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    with pytest.raises(KeyboardInterrupt), use.alone():
        pytest.fail("somebody was inside")
    with use:
        leave.set()
    for thread in threads:
        thread.join()


def test_at_the_programs_end_a_daemon_thread_stays_out_and_others_do_not() -> None:
    use, done = SharedUse(), []
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with use:
            inside.set()
            assert leave.wait(60)
            done.append("inside")

    def end() -> None:
        use.end()
        done.append("ended")

    def enter() -> None:
        with use:
            done.append("daemon")

    threads = [threading.Thread(target=target) for target in (stay, end)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    while not use._ended:
        threads[1].join(0.001)
    late = threading.Thread(target=enter, daemon=True)
    late.start()
    leave.set()
    for thread in threads:
        thread.join()
    late.join(0.1)
    assert done == ["inside", "ended"]
    for way_in in (use, use.alone()):  # of a function that runs at exit
        with way_in:
            done.append("main")
    assert done == ["inside", "ended", "main", "main"]
