import dataclasses
import os
import shutil
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import edgelm
from edgelm import loading
from edgelm.package.graph_file import DATA_FILE
from edgelm.package.manifest import FILE_NAME, Manifest, describe_file
from edgelm.testing import tiny_model_path


def test_a_name_that_is_not_here_is_an_error_of_ours() -> None:
    with pytest.raises(edgelm.ModelNotFoundError, match="no-such-model"):
        edgelm.load("no-such-model")


@pytest.mark.parametrize("name", [None, 5, b"tiny", ["tiny"]])
def test_what_is_neither_a_name_nor_a_path_is_no_model(name: Any) -> None:
    with pytest.raises(edgelm.ModelNotFoundError, match=r"is neither the name of a model nor a path\. The library .*"):
        edgelm.load(name)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder's name is Unicode")
def test_the_name_of_a_package_s_folder_need_not_be_utf8(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model_path(), tmp_path / os.fsdecode(b"caf\xe9"))
    config = edgelm.GenerationConfig(max_new_tokens=4)
    expected = edgelm.load(tiny_model_path()).generate("the sea", config)
    assert edgelm.load(folder).generate("the sea", config).token_ids == expected.token_ids


@pytest.mark.parametrize(
    ("owner", "step"), [(Manifest, "check_files"), (loading, "DecoderSession")], ids=["error", "mixture"]
)
def test_where_another_package_takes_its_place_meanwhile_that_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str
) -> None:
    package, other = (shutil.copytree(tiny_model_path(), tmp_path / name) for name in ("package", "other"))
    (np.fromfile(other / DATA_FILE, np.float32) * np.float32(2)).tofile(other / DATA_FILE)
    manifest = Manifest.load(other)
    files = tuple(describe_file(other / entry.path) for entry in manifest.files)
    dataclasses.replace(manifest, files=files).save(other)
    expected, original = edgelm.load(other).score("the sea").perplexity, getattr(owner, step)

    def replaced(*arguments: Any, **options: Any) -> Any:
        if other.exists():
            package.rename(tmp_path / "old")
            other.rename(package)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, step, replaced)
    model = edgelm.load(package)
    assert (model.fingerprint, model.score("the sea").perplexity) == (Manifest.load(package).fingerprint, expected)


def test_a_package_that_is_replaced_all_the_time_is_not_loaded_for_ever(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*arguments: Any, make: Any = loading.LanguageModel, **options: Any) -> Any:
        os.utime(package / FILE_NAME, ns=(0, (package / FILE_NAME).stat().st_mtime_ns + 10**9))
        return make(*arguments, **options)

    monkeypatch.setattr(loading, "LanguageModel", touched)
    with pytest.raises(edgelm.PackageError, match="package: another package takes its place whenever it is loaded"):
        edgelm.load(package)


@pytest.mark.usefixtures("no_collection")
def test_no_session_of_a_damaged_package_stays_in_memory(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    def noted(*arguments: Any, make: Any = loading.DecoderSession, **options: Any) -> Any:
        session = make(*arguments, **options)
        made.append(weakref.ref(session))
        return session

    monkeypatch.setattr(loading, "DecoderSession", noted)
    monkeypatch.setattr(loading, "_LARGE", 0)  # all is hashed beside the session
    numbers = np.fromfile(package / DATA_FILE, np.float32)
    np.append(numbers[:-1], np.float32(1)).tofile(package / DATA_FILE)
    with pytest.raises(edgelm.PackageError, match="does not match the SHA-256"):
        edgelm.load(package)
    assert [session() for session in made] == [None]


@pytest.mark.parametrize("is_large", [False, True])
def test_a_large_tokenizer_is_read_before_the_session_begins(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    session, tokenizer = loading.DecoderSession, loading._load_tokenizer
    begun, read, found = threading.Event(), threading.Event(), list[bool]()

    def begin(*args: Any, **options: Any) -> Any:
        found.append(read.is_set())
        begun.set()
        return session(*args, **options)

    def read_late(folder: Path) -> Any:
        begun.wait(0.2 if is_large else 60)  # in vain, where the session waits for this
        result = tokenizer(folder)
        read.set()
        return result

    monkeypatch.setattr(loading, "_LARGE_TOKENIZER", 0 if is_large else 1 << 23)
    monkeypatch.setattr(loading, "DecoderSession", begin)
    monkeypatch.setattr(loading, "_load_tokenizer", read_late)
    edgelm.load(tiny_model_path())
    assert found == [is_large]


def refuse_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")  # as Python says it


NO_MORE_THREADS = r"start no more threads\. Raise what bounds them \(ulimit -u .*--pids-limit of a container\)"


def test_where_no_thread_starts_a_load_and_an_engine_say_what_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = edgelm.load(tiny_model_path())
    monkeypatch.setattr(threading.Thread, "start", refuse_threads)
    with pytest.raises(edgelm.EdgeLMError, match=NO_MORE_THREADS):
        edgelm.load(tiny_model_path())
    with pytest.raises(edgelm.EdgeLMError, match=NO_MORE_THREADS):
        edgelm.Engine(model)


def test_where_onnx_runtime_starts_no_thread_a_load_says_what_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise RuntimeError("PosixThread(…) pthread_create failed, error code: 11 error msg: Resource temporarily …")

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(edgelm.EdgeLMError, match=NO_MORE_THREADS):
        edgelm.load(tiny_model_path())
