"""The trial of unknown tokenizers: what would end this process ends a child instead; a known file costs none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from json_files import change_json
from tokenizers import decoders, models

from edgelm.errors import TokenizerError
from edgelm.testing import tiny_model_path
from edgelm.text import tokenizer_trial
from edgelm.text.token_bytes import TokenBytes
from edgelm.text.tokenizer import Tokenizer

REGRESSIONS = sorted((Path(__file__).parent / "regressions" / "tokenizer").glob("*.json"))


@pytest.fixture(autouse=True)
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Forget what this process has opened, and record the children that are started."""
    started: list[Any] = []
    run = subprocess.run

    def recording(command: Any, **options: Any) -> Any:
        started.append(command)
        return run(command, **options)

    monkeypatch.setattr(tokenizer_trial, "_known", set())
    monkeypatch.setattr(tokenizer_trial.subprocess, "run", recording)
    return started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(tiny_model_path() / "tokenizer.json", tmp_path)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    change_json(folder / "tokenizer.json", **changes)


def test_an_unknown_file_is_opened_in_a_child_once_and_remembered(
    folder: Path, children: list[Any], own_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Tokenizer.load(folder).encode("sea") == Tokenizer.load(folder).encode("sea")
    assert len(children) == 1
    tokenizer_trial._known.clear()  # as in another process
    Tokenizer.load(folder)
    assert len(children) == 1
    assert len(list((own_library / "known-tokenizers").iterdir())) == 1

    change(folder)  # white space, and so another hash
    Tokenizer.load(folder)
    assert len(children) == 2

    monkeypatch.setattr(tokenizer_trial.tokenizers, "__version__", "another")  # which may fail where this one does not
    Tokenizer.load(folder)
    assert len(children) == 3


def test_what_is_no_text_in_the_path_of_modules_does_not_prevent_the_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch, own_library: Path
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/somewhere")])  # a mistake that Python passes over
    Tokenizer.load(folder)

    assert len(list((own_library / "known-tokenizers").iterdir())) == 1


def test_edgelms_own_files_need_no_trial(children: list[Any]) -> None:
    Tokenizer.load(tiny_model_path())

    assert children == []


def test_without_a_library_the_process_alone_remembers(
    folder: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELM_HOME", str(folder / "tokenizer.json/nowhere"))  # below a file, on Windows too
    Tokenizer.load(folder)
    Tokenizer.load(folder)
    assert len(children) == 1


def test_a_program_with_python_inside_is_never_started_again(
    folder: Path, children: list[Any], monkeypatch: pytest.MonkeyPatch, own_library: Path
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    Tokenizer.load(folder)

    assert children == []
    assert not own_library.exists()


@pytest.mark.parametrize("executable", ["/bin/true", "/nowhere/python"])
def test_an_executable_that_is_no_python_does_not_make_a_tokenizer_bad(
    folder: Path, monkeypatch: pytest.MonkeyPatch, executable: str, own_library: Path
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    Tokenizer.load(folder)

    assert not own_library.exists()


def test_an_error_of_the_child_is_the_error_of_the_load(folder: Path) -> None:
    change(folder, pre_tokenizer={"type": "FixedLength", "length": 0})
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is broken: Cannot encode the text .* gave up\."):
        Tokenizer.load(folder)
    change(folder, model=5)
    with pytest.raises(TokenizerError, match=r"^Cannot read .*tokenizer\.json: AttributeError"):
        Tokenizer.load(folder)
    change(folder, decoder=None)
    with pytest.raises(TokenizerError, match=r"^The tokenizer's decoder is none; supported are ByteLevel"):
        Tokenizer.load(folder)


def test_a_crash_in_the_child_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tokenizer_trial,
        "_PROGRAM",
        "import os, sys; sys.stdin.read(); os.write(1, b'started\\n'); os.abort()  # {path}",
    )
    with pytest.raises(
        TokenizerError, match=r"it crashes the tokenizers library, or takes more than \d+ MB of memory or \d+ s"
    ):
        Tokenizer.load(folder)


def test_a_child_that_does_not_end_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "_SECONDS", 0.2)
    monkeypatch.setattr(tokenizer_trial, "_PATIENCE", 1)
    monkeypatch.setattr(
        tokenizer_trial, "_PROGRAM", "import time; print('started', flush=True); time.sleep(60)  # {path}"
    )
    with pytest.raises(TokenizerError, match=r"does not come to an end with it within 0\.2 s"):
        Tokenizer.load(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory of a child")
def test_a_file_that_takes_all_memory_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "_MEMORY", 256 << 20)
    monkeypatch.setattr(tokenizer_trial, "_MEMORY_OF_BYTE", 0)
    (folder / "tokenizer.json").write_text("[" + "[]," * 5_000_000 + "[]]")  # 15 MB that Python makes 320 MB of
    with pytest.raises(TokenizerError, match=r"MemoryError|takes more than 256 MB of memory"):
        Tokenizer.load(folder)


def do_in_child(folder: Path, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Let the child do something before it opens the file."""
    (folder / "evil.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from edgelm.text.tokenizer import Tokenizer\n"
        "parse = Tokenizer.parse\n"
        f"def evil(*arguments):\n    {statement}\n    return parse(*arguments)\n"
        "Tokenizer.parse = evil\n"
    )
    program = tokenizer_trial._PROGRAM.replace("; from", f"; sys.path.append({str(folder)!r}); import evil; from", 1)
    monkeypatch.setattr(tokenizer_trial, "_PROGRAM", program)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits the time alone, and by the parent's clock")
@pytest.mark.parametrize(
    ("statement", "seconds"), [("while True: pass", 1), ("Path(__file__ + '.written').write_text('x')", 20)]
)
def test_a_child_has_little_time_and_writes_no_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statement: str, seconds: int
) -> None:
    do_in_child(folder, monkeypatch, statement)
    monkeypatch.setattr(tokenizer_trial, "_SECONDS", seconds)
    with pytest.raises(TokenizerError, match="it crashes the tokenizers library, or takes more than"):
        Tokenizer.load(folder)
    written = folder / "evil.py.written"
    assert not written.exists() or written.read_text() == ""


def test_a_child_is_told_no_secrets(folder: Path, monkeypatch: pytest.MonkeyPatch, own_library: Path) -> None:
    do_in_child(folder, monkeypatch, "assert not {'HF_TOKEN', 'EDGELM_API_KEY'} & set(os.environ)")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("EDGELM_API_KEY", "secret")
    Tokenizer.load(folder)
    assert len(list((own_library / "known-tokenizers").iterdir())) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_never_ends_is_not_read_in_its_place(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(TokenizerError, match=r"^Cannot read .*tokenizer\.json: it is not a regular file\.$"):
        Tokenizer.load(tmp_path)


def test_a_file_beyond_all_sizes_is_not_read(folder: Path) -> None:
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(TokenizerError, match=r"has 67108865 bytes, and at most 67108864 are read\."):
        Tokenizer.load(folder)


@pytest.mark.parametrize("path", REGRESSIONS, ids=lambda path: path.stem)
def test_a_file_that_once_ended_a_process_is_refused(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "tokenizer.json")

    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(("pattern", "content"), [("", " "), ("▁", "x" * 17), ("▁" * 17, " ")])
def test_a_decoder_that_could_make_a_token_stand_for_gigabytes_is_refused(pattern: str, content: str) -> None:
    step = {"type": "Replace", "pattern": {"String": pattern}, "content": content}
    with pytest.raises(TokenizerError, match="The tokenizer's decoder has the step"):
        TokenBytes(step)


def test_long_regular_expressions_are_refused_before_they_are_compiled(folder: Path) -> None:
    """Compiled, these take 80 MB in the child, which has more than that, and then here."""
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}" * 800}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": [split, bytes_]})
    assert Tokenizer.load(folder).decode(Tokenizer.load(folder).encode("The sea")) == "The sea"

    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": [*[split] * 5, bytes_]})
    with pytest.raises(TokenizerError, match="has regular expressions of 20000 characters; at most 8192 are compiled"):
        Tokenizer.load(folder)


def test_a_text_of_beginnings_is_searched_in_a_time_that_does_not_grow_with_the_control_tokens(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.BPE({"<": 0}, []))
    rust.decoder = decoders.Metaspace()
    rust.add_special_tokens(["[x]", *(f"<unused{i}>" for i in range(6000))])
    tokenizer = Tokenizer.parse(rust.to_str().encode(), tmp_path)
    start = time.process_time()
    assert tokenizer.split("<" * 100_000) == ["<" * 100_000]
    assert time.process_time() - start < 1  # 0.01 s; by one pattern of all literals 7 s
