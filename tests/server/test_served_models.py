"""The models of `edgelm serve`: which there are, by which names, and when they are loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import invoke
from edgelm_server import CHAT, HELLO, TINY, EdgelmServer
from tiny_adapter import write_tiny_adapter
from waiting import wait_for

from edgelm.errors import ConfigError, PackageError
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest, sha256_of
from edgelm.package.package import open_package
from edgelm.server import process
from edgelm.server.api_error import ApiError
from edgelm.server.model_pool import ModelPool, context_of
from edgelm.server.options import ServerOptions


@pytest.fixture
def library(own_library: Path) -> Path:
    """A library with two packages."""
    for name in ("first", "second"):
        shutil.copytree(TINY, own_library / "models" / name)
    return own_library


def test_the_whole_library_is_served_and_a_model_is_loaded_when_it_is_asked_for(library):
    with EdgelmServer(()) as server:
        assert [model["id"] for model in server.get("/v1/models").json["data"]] == ["first", "second"]
        assert server.get("/v1/models/first").json["id"] == "first"
        assert server.metric('edgelm_model_loaded{model="first"}') == 0
        assert server.post(CHAT, {"model": "second", "messages": HELLO, "max_tokens": 1}).json["model"] == "second"
        assert server.metric('edgelm_model_loaded{model="second"}') == 1
        assert server.metric('edgelm_model_loaded{model="first"}') == 0
        shutil.copytree(TINY, library / "models" / "third")
        assert server.post(CHAT, {"model": "third", "messages": HELLO, "max_tokens": 1}).status == 200
        reply = server.post(CHAT, {"messages": HELLO})
        assert reply.status == 400
        assert reply.json["error"]["message"] == "model is missing. Here are: first, second, third."


def test_a_model_with_an_encoder_is_left_out_and_refused_by_name(library):
    folder = library / "models" / "second"
    (folder / "encoder.onnx").touch()
    pool = ModelPool((), ServerOptions())
    assert list(pool.folders()) == ["first"]
    with pytest.raises(ApiError, match=r"second has an encoder, and .*: edgelm run second; .* Here are: first\.") as no:
        pool.resolve("second:latest")
    assert (no.value.status, no.value.code) == (404, "model_not_found")
    for given in ("second", str(folder)):
        with pytest.raises(ConfigError, match=r"has an encoder, and is not served.*: edgelm run \S*second; or in a"):
            ModelPool(("first", given), ServerOptions())


def test_what_is_kept_of_a_text_has_to_fit_those_that_are_named_or_one_of_the_library(library):
    second = library / "models" / "second"
    dataclasses.replace(Manifest.load(second), context_length=100).save(second)
    for models, keep in (((), 512), (("first",), 512), (("first", "second"), 50)):
        ModelPool(models, ServerOptions(context_shift=keep))
    for models, name, most in (((), "first", 512), (("first",), "first", 512), (("first", "second"), "second", 50)):
        words = f"context_shift is {most + 1}; of a text, {name} can keep {most} tokens, .*: --context-shift {most}$"
        with pytest.raises(ConfigError, match=words):
            ModelPool(models, ServerOptions(context_shift=most + 1))


def test_a_model_with_longrope_takes_texts_of_its_original_context_and_says_so(library):
    folder = library / "models" / "first"
    content = json.loads((folder / "config.json").read_text())
    content["edgelm"]["rope_scaling"] |= {
        "rope_type": "longrope", "factor": 16.0, "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    }  # fmt: skip
    config = json.dumps(content).encode()
    (folder / "config.json").write_bytes(config)
    manifest = Manifest.load(folder)
    entry = next(entry for entry in manifest.files if entry.path == "config.json")
    changed = dataclasses.replace(entry, size=len(config), sha256=sha256_of(folder / entry.path))
    files = tuple(changed if other is entry else other for other in manifest.files)
    dataclasses.replace(manifest, files=files).save(folder)
    with pytest.raises(ConfigError, match="of a text, first can keep 32 tokens"):
        ModelPool(("first",), ServerOptions(context_shift=33))
    with EdgelmServer(("first",)) as server:
        (listed,) = server.get("/v1/models").json["data"]
        assert listed["context_length"] == 64
        counted = server.post("/tokenize", {"prompt": "word " * 30}).json
        assert counted["max_model_len"] == 64 < counted["count"]
        request = {"prompt": counted["tokens"], "max_tokens": 1}
        assert "up to 64 of this model" in server.post("/v1/completions", request).json["error"]["message"]
        assert server.post("/v1/completions", request | {"context_shift": 0}).status == 200
        request = {"model": "first", "prompt": "word " * 30, "raw": True, "stream": False}
        answers = {}
        for name, value in (("num_keep", -1), ("num_predict", -1), ("num_predict", -2)):
            reply = server.post("/api/generate", request | {"options": {"temperature": 0, name: value}})
            assert reply.status == 200, reply.data
            answers[value if name == "num_predict" else name] = reply.json
        assert {answer["done_reason"] for answer in answers.values()} == {"length"}
        # Nothing is computed behind the last token of an answer that fills the context; others are as long as that.
        assert answers[-2]["prompt_eval_count"] + answers[-2]["eval_count"] == 64 + 1
        assert answers[-1]["eval_count"] == answers["num_keep"]["eval_count"] == 64


def test_a_broken_config_leaves_a_model_in_the_list(library):
    folder = library / "models" / "second"
    (folder / "config.json").write_text("{")
    assert context_of(open_package(folder)) == 1024


def test_an_empty_library_says_how_to_fill_it(own_library):
    with EdgelmServer(()) as server:
        assert server.get("/v1/models").json["data"] == []
        reply = server.post(CHAT, {"model": "x", "messages": HELLO})
        assert reply.status == 404
        assert "fetch one with `edgelm pull`" in reply.json["error"]["message"]
        server.stop()
    said = f"No model is in {own_library} yet. Fetch one, and it is offered at once: edgelm pull "
    assert said in "".join(server.log)


def test_a_program_serves_with_models_and_options_alone(monkeypatch):
    def run(server, sockets):
        server._listening()
        server.signal = signal.SIGTERM

    monkeypatch.setattr(process._Server, "run", run)
    assert process.serve((TINY,), ServerOptions(port=0)) == signal.SIGTERM


def test_a_package_is_served_by_its_path_to_a_user_without_a_place_for_a_library(monkeypatch):
    monkeypatch.setenv("EDGELM_HOME", "~a-user-that-is-not-here/")
    pool = ModelPool((TINY,), ServerOptions())
    assert (pool.resolve(None), pool.resolve("tiny-random")) == ("tiny-random", "tiny-random")
    with pytest.raises(ApiError, match=r"There is no model 'gpt-4' here. Here are: tiny-random\."):
        pool.resolve("gpt-4")
    with pytest.raises(ConfigError, match=r"EDGELM_HOME is '~a-user-that-is-not-here/'"):
        ModelPool((), ServerOptions())


def test_first_requests_that_come_together_load_a_model_once(library):
    with EdgelmServer(("first",)) as server, ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: server.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status, range(6)))
        assert statuses == [200] * 6
        server.stop()
        assert sum("Loaded first" in line for line in server.log) == 1


def test_an_idle_model_is_unloaded_and_loaded_again(library):
    with EdgelmServer(("first", "--keep-alive", "0.2")) as server:
        for _ in range(2):
            assert server.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status == 200
            wait_for(lambda: server.metric('edgelm_model_loaded{model="first"}') == 0)


def test_a_broken_package_is_a_503_that_names_no_path_and_the_others_go_on(library):
    weights = library / "models" / "first" / "model.onnx.data"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with EdgelmServer(()) as server:
        reply = server.post(CHAT, {"model": "first", "messages": HELLO})
        assert reply.status == 503
        assert str(library) not in reply.data.decode()
        (library / "models" / "first" / "edgelm.json").write_text("{")
        assert [model["id"] for model in server.get("/v1/models").json["data"]] == ["second"]
        assert [model["name"] for model in server.get("/api/tags").json["models"]] == ["second:latest"]
        assert server.get("/v1/models/first").status == 503
        assert server.post(CHAT, {"model": "second", "messages": HELLO, "max_tokens": 1}).status == 200
        server.stop()
        assert any("Cannot load first" in line and "SHA-256" in line for line in server.log)


def test_what_is_wrong_with_files_that_are_described_names_no_path_either(library):
    with EdgelmServer(()) as server:
        for name in ("config.json", "chat_template.jinja"):
            (library / "models" / "first" / name).unlink()
            (library / "models" / "first" / name).mkdir()
            reply = server.post("/api/show", {"model": "first"})
            assert (reply.status, str(library) in reply.data.decode()) == (503, False)
        (library / "models").rename(library / "aside")
        (library / "models").touch()
        for path in ("/v1/models", "/v1/models/first", "/api/tags"):
            reply = server.get(path)
            assert (reply.status, str(library) in reply.data.decode()) == (503, False)
        assert b"The models cannot be listed; the server's log says why." in server.post(CHAT, {"messages": HELLO}).data
        server.stop()
        assert any(f"The model library {library} cannot be read" in line for line in server.log)


def test_a_package_that_goes_while_it_is_looked_into_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name == "gone")
    with pytest.raises(PackageError, match=r"There is no package at .*gone: "):
        open_package(tmp_path / "gone")


def test_a_package_that_comes_and_goes_fails_no_list_of_the_others(library):
    is_over = threading.Event()

    def come_and_go():
        while not is_over.is_set():
            (library / "models" / "second").rename(library / "aside")
            (library / "aside").rename(library / "models" / "second")

    with EdgelmServer(()) as server, ThreadPoolExecutor(1) as moving:
        moving.submit(come_and_go)
        try:
            for _ in range(50):
                assert server.get("/api/tags").json["models"][0]["name"] == "first:latest"
                assert server.get("/v1/models").json["data"][0]["id"] == "first"
                reply = server.get("/v1/models/second")
                assert reply.status in (200, 404, 503)
                assert b"has an encoder" not in reply.data
        finally:
            is_over.set()


def test_two_models_of_one_name_are_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "copy")
    result = invoke("serve", TINY, tmp_path / "copy", "--port", "0")
    assert result.exit_code == 1
    assert "are called 'tiny-random'. Serve one of them." in result.output


def test_a_package_whose_name_is_none_for_a_model_is_refused_with_the_way_out(tmp_path):
    shutil.copytree(TINY, tmp_path / "copy")
    dataclasses.replace(Manifest.load(tmp_path / "copy"), name="модель").save(tmp_path / "copy")
    message = "copy: 'модель' is not a name for a model: use up to 100 letters from a to z, .* to a folder that has one"
    with pytest.raises(ConfigError, match=message):
        ModelPool((str(tmp_path / "copy"),), ServerOptions())


def test_models_are_said_by_the_names_that_requests_may_have(library, tmp_path):
    adapter = str(write_tiny_adapter(tmp_path / "adapter"))
    shutil.rmtree(library / "models" / "second")
    Library().add_alias("small", "first")
    for models, names in (
        ((TINY, TINY, "--adapter", adapter, "--adapter", f"shop={adapter}"), "tiny-random, mine, shop"),
        (("small", "first"), "first"),
        (("--adapter", f"shop={adapter}"), "first, shop"),
    ):
        with EdgelmServer(models) as server:
            listed = [model["id"] for model in server.get("/v1/models").json["data"]]
            server.stop()
        assert f"Models: {names}\n" in server.log
        assert listed == names.split(", ")
