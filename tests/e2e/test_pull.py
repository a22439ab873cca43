"""`edgelm pull`: from the hub's protocol into the library; as a process killed and resumed, and twice at once."""

from __future__ import annotations

import hashlib
import os
import pty
import shutil
import signal
import subprocess
import sysconfig
from pathlib import Path

import pytest
from click.testing import Result
from command_line import invoke
from hub_client import use_hub
from loopback_server import COMMIT, LoopbackServer
from make_tiny_model import CONFIG, make_checkpoint
from waiting import wait_for

from edgelm.errors import DownloadError
from edgelm.files import disk_space
from edgelm.library.hub_source import HubSource
from edgelm.library.library import Library
from edgelm.library.sources import fetch, read_record
from edgelm.testing import tiny_model_path
from edgelm.text.chat_template import ChatTemplate
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.checkpoint_folder import NAMED_TEMPLATES
from edgelm_export.tokenizers.byte_level_folder import BYTE_LEVEL_FILES, SETTINGS_FILES
from edgelm_export.tokenizers.marian_tokenizer import MARIAN_FILES
from edgelm_export.tokenizers.renumbered_tokenizer import RENUMBERED_FILES

WEIGHTS = os.urandom(1_500_000)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "hf_quant_config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.json": b"{}",
    "model.safetensors": WEIGHTS,
    "consolidated.safetensors": b"the same weights again",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# A model",
    "vocab.json": b"the tokenizer again",
    "onnx/model.safetensors": b"another program's",
}
TEXTS = [
    "chat_template.json",
    "config.json",
    "hf_quant_config.json",
    "tokenizer.json",
]  # of these, what the importer reads
WEIGHTS_URL = f"/org/Small-Model/resolve/{COMMIT}/model.safetensors"
COMMAND = [str(Path(sysconfig.get_path("scripts")) / "edgelm")]


@pytest.fixture(autouse=True)
def hub(server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server.add_repository("org/Small-Model", FILES, cardData={"license": "apache-2.0"})
    use_hub(monkeypatch, server.url, tmp_path / "hf")


@pytest.fixture
def environment(server: LoopbackServer, tmp_path: Path) -> dict[str, str]:
    """Point huggingface_hub in other processes at the loopback server, and away from the user's own token and cache."""
    return os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}


def pull(*arguments: str) -> Result:
    """Pull in this process, which starts none: half a second."""
    return invoke("pull", *arguments, "--source-only")


def pull_in_a_process(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "pull", *arguments, "--source-only"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_repository_comes_with_what_the_importer_reads_and_nothing_else(environment, server):
    result = pull_in_a_process(environment | {"HF_TOKEN": "secret"}, "hf:org/Small-Model")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "The source of small-model is here:" in result.stderr
    folder = Library().source_path("small-model")
    assert sorted(os.listdir(folder)) == sorted([*TEXTS, "model.safetensors", "source.json"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    record = read_record(folder)
    assert (record["reference"], record["license"]) == ("hf:org/Small-Model", "apache-2.0")
    assert record["revision"] == COMMIT
    asked = {path: headers for path, headers in server.headers_seen if "Small-Model" in path}
    assert len(asked) == 6
    assert {headers["authorization"] for headers in asked.values()} == {"Bearer secret"}
    assert not any("torch" in headers["user-agent"] for headers in asked.values())


def test_a_user_who_waits_for_a_busy_hub_is_told(server, monkeypatch):
    monkeypatch.setattr("edgelm.library.hub_listing.time.sleep", lambda seconds: None)
    server.retry_after["/api/models/org/Small-Model"] = ["7", "0"]
    result = pull("hf:org/Small-Model")
    assert result.exit_code == 0
    assert "The hub is busy (it answers 429); asking again in 7 s.\n" in result.stderr


def test_what_a_tokenizer_is_rebuilt_from_comes_where_there_is_no_tokenizer_json(server):
    for_tiktoken = {"tiktoken.model", "hy.tiktoken", "tekken.json"}
    files = {*RENUMBERED_FILES, *MARIAN_FILES, *BYTE_LEVEL_FILES, *SETTINGS_FILES, *for_tiktoken}
    contents = dict.fromkeys((*files, "tokenizer.py"), b"{}") | {"model.safetensors": WEIGHTS}
    server.add_repository("org/Older", contents)
    result = pull("hf:org/Older")
    assert result.exit_code == 0, result.stderr
    assert {*os.listdir(Library().source_path("older"))} == files | {"model.safetensors", "source.json"}


def test_templates_with_names_come_and_the_one_for_tools_is_imported(server, tmp_path):
    made = tmp_path / "hf"
    make_checkpoint(made, CONFIG)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    for_tools = b"{{ 'with tools' if tools }}"
    named = {f"{NAMED_TEMPLATES}/{name}.jinja": content for name, content in (("tool_use", for_tools), ("rag", b"R"))}
    others = dict.fromkeys((f"{NAMED_TEMPLATES}/{name}" for name in ("README.md", "deep/x.jinja", "a\\b.jinja")), b"")
    others["other/tool_use.jinja"] = b""
    server.add_repository("org/Toolish", files | named | others)
    result = pull("hf:org/Toolish")
    assert result.exit_code == 0, result.stderr
    folder = Library().source_path("toolish")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *files, *named, "source.json"
    }  # fmt: skip
    assert [file["path"] for file in read_record(folder)["files"]] == sorted([*files, *named])
    import_checkpoint(folder, tmp_path / "ckpt")
    template = ChatTemplate.load(tmp_path / "ckpt")
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}], variables={"tools": [{}]}) == "with tools"


def test_a_model_that_is_here_needs_no_network(server):
    pull("hf:org/Small-Model")
    server.headers_seen.clear()
    for name in ("hf:org/Small-Model", "small-model"):
        result = pull(name)
        assert result.exit_code == 0, result.stderr
        assert "in the library already" in result.stderr
    assert server.headers_seen == []


def test_one_gguf_file_comes_alone_under_its_own_name(server):
    server.add_repository("org/Many-GGUF", {"q/Tiny-Q8_0.gguf": b"GGUF one", "Tiny-Q4_0.gguf": b"GGUF two"})
    result = pull("hf:org/Many-GGUF/q/Tiny-Q8_0.gguf@main")
    assert result.exit_code == 0, result.stderr
    assert Library().source_path("tiny-q8_0").read_bytes() == b"GGUF one"
    result = pull("hf:org/Many-GGUF/Tiny-Q4_0.gguf", "--name", "other")
    assert result.exit_code == 0, result.stderr
    assert Library().source_path("other").read_bytes() == b"GGUF two"


def test_a_gguf_model_in_parts_comes_whole_whichever_part_is_named(server):
    parts = {f"q/Big-Q8_0-0000{number}-of-00003.gguf": b"GGUF %d" % number for number in (1, 2, 3)}
    server.add_repository("org/Big-GGUF", {**parts, "q/Big-Q4_0-00001-of-00002.gguf": b"GGUF", "small.gguf": b"GGUF"})
    message = refused("hf:org/Big-GGUF/q/Big-Q4_0-00001-of-00002.gguf")
    assert "org/Big-GGUF has no file 'q/Big-Q4_0-00002-of-00002.gguf'. Its GGUF files: " in message
    shown = ("q/Big-Q4_0-00001-of-00002.gguf", "q/Big-Q8_0-00001-of-00003.gguf", "small.gguf")
    assert ", ".join(f"hf:org/Big-GGUF/{path}" for path in shown) in message

    result = pull("hf:org/Big-GGUF/q/Big-Q8_0-00002-of-00003.gguf")
    assert result.exit_code == 0, result.stderr
    first = Library().source_path("big-q8_0")
    assert first.name == "Big-Q8_0-00001-of-00003.gguf"
    assert {f"q/{path.name}": path.read_bytes() for path in first.parent.glob("*.gguf")} == parts
    assert read_record(first.parent)["reference"] == "hf:org/Big-GGUF/q/Big-Q8_0-00001-of-00003.gguf"
    server.headers_seen.clear()
    result = pull("hf:org/Big-GGUF/q/Big-Q8_0-00001-of-00003.gguf")
    assert "in the library already" in result.stderr
    assert server.headers_seen == []


def test_a_killed_pull_goes_on_where_it_stopped(environment, server):
    server.holds[WEIGHTS_URL] = 1_000_000
    process = subprocess.Popen([*COMMAND, "pull", "hf:org/Small-Model", "--source-only"], env=environment)
    downloads = Library().downloads_path("small-model")
    wait_for(lambda: any(part.stat().st_size > 500_000 for part in downloads.rglob("model.safetensors*.part")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Library().sources() == []
    part = next(downloads.rglob("*.part")).stat().st_size
    server.release.set()
    result = pull("hf:org/Small-Model")
    assert result.exit_code == 0, result.stderr
    assert (Library().source_path("small-model") / "model.safetensors").read_bytes() == WEIGHTS
    assert server.ranges_asked(WEIGHTS_URL)[-1] == f"bytes={part}-"
    assert server.ranges_asked(WEIGHTS_URL.replace("model.safetensors", "config.json")) == [None]  # which was here
    assert not downloads.exists()


def test_two_pulls_at_once_download_once(environment, server):
    server.holds[WEIGHTS_URL] = 1_000_000
    command = [*COMMAND, "pull", "hf:org/Small-Model", "--source-only"]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(Library().downloads_path("small-model").rglob("*.part")))
    second = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert second.stderr.readline() == f"Waiting for process {first.pid}, which works on small-model …\n"
    server.release.set()
    assert "is here" in first.communicate(timeout=30)[1]
    assert "in the library already" in second.communicate(timeout=30)[1]
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.ranges_asked("/api/models/org/Small-Model")) == 1


def refused(*arguments: str) -> str:
    result = pull(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    assert Library().sources() == []
    return result.stderr


def test_a_wrong_checksum_is_refused(server):
    server.files[WEIGHTS_URL] = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    assert "model.safetensors is not the file that was asked for" in refused("hf:org/Small-Model")


def test_a_gated_repository_says_how_to_get_in(server):
    path = next(path for path in server.files if path.endswith("/config.json"))
    for status in (401, 403):
        server.statuses[path] = status
        assert "org/Small-Model is gated or private: accept its terms" in refused("hf:org/Small-Model")
    server.statuses["/api/models/org/Small-Model"] = 403
    assert "then set HF_TOKEN to a token that may read it" in refused("hf:org/Small-Model")


def test_what_the_hub_does_not_have_is_named():
    assert "There is no model 'org/other' on the hub, or it is private" in refused("hf:org/other")
    assert "org/a--b cannot be the name of a repository: " in refused("hf:org/a--b")
    assert "org/Small-Model has no revision 'v9'" in refused("hf:org/Small-Model@v9")
    message = refused("hf:org/Small-Model/x.gguf")
    assert not any((Library().root / "downloads").iterdir())
    assert "org/Small-Model has no file 'x.gguf'. It comes as a whole: edgelm pull hf:org/Small-Model" in message


def test_a_file_that_vanishes_meanwhile_is_named(server):
    server.statuses[next(path for path in server.files if path.endswith("/tokenizer.json"))] = 404
    assert "The repository changed meanwhile: run the same command again." in refused("hf:org/Small-Model")


def test_a_repository_with_graphs_of_onnx_is_told_how_to_run_them(server):
    server.add_repository("org/graphs", {"config.json": b"{}", "onnx/model_q4.onnx": b"x"})
    message = refused("hf:org/graphs")
    assert "Its graphs of ONNX run as they are: hf download org/graphs --local-dir FOLDER, and then: edgelm" in message
    server.add_repository("org/none", {"README.md": b"x"})
    assert "Pick a repository with safetensors or GGUF files." in refused("hf:org/none")


def test_pickles_are_refused_by_name(server):
    server.add_repository("org/old", {"config.json": b"{}", "pytorch_model.bin": b"x", "Old-Q4_0.gguf": b"x"})
    message = refused("hf:org/old")
    assert "org/old has no safetensors weights: only pickles (pytorch_model.bin)" in message
    assert "Its GGUF files: hf:org/old/Old-Q4_0.gguf." in message


def test_what_has_the_name_of_a_gguf_file_and_is_none_is_not_kept(server):
    server.add_repository("org/GG", {"b.gguf": b"<html>"})
    message = refused("hf:org/GG/b.gguf")
    assert "hf:org/GG/b.gguf is not a GGUF file (it begins with b'<htm'), so it was not kept." in message
    assert list((Library().root / "downloads").iterdir()) == []


def test_gguf_files_are_listed_as_a_shell_takes_them(server):
    server.add_repository("org/GG", {"a model Q4.gguf": b"GGUF"})
    assert "Its GGUF files: 'hf:org/GG/a model Q4.gguf'." in refused("hf:org/GG")


def test_an_adapter_is_refused(server):
    server.add_repository("org/adapter", {"adapter_model.safetensors": b"x"})
    assert "org/adapter has no config.json: it is not a whole model" in refused("hf:org/adapter")


@pytest.mark.parametrize("more", [["config.json"], ["params.json", "model-Q4.gguf"]])
def test_weights_in_the_form_of_their_author_are_refused_before_they_come(server, more):
    files = ["consolidated-00001-of-00002.safetensors", "consolidated-00002-of-00002.safetensors", *more]
    server.add_repository("org/Native", dict.fromkeys(files, b"x"))
    message = refused("hf:org/Native")
    assert "org/Native has its weights in consolidated-00001-of-00002.safetensors alone, in the format of" in message
    assert ("hf:org/Native/model-Q4.gguf" in message) == ("params.json" in more)
    assert "model.safetensors (or its shards) and tokenizer.json or tekken.json. Or take a GGUF file of it." in message
    assert not any("consolidated" in path for path, _ in server.headers_seen)


def test_an_answer_without_a_commit_is_refused(server):
    server.add_repository("org/odd", {"config.json": b"{}"}, sha="../../outside")
    assert "which is not a commit" in refused("hf:org/odd")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids to fetch it. Unset HF_HUB_OFFLINE."),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Cannot ask the hub about org/Small-Model at http://127.0.0.1:9/api/"),
        ({"HF_ENDPOINT": "http://["}, "(it is 'http://[')"),
    ],
)
def test_a_hub_that_the_environment_forbids_or_misnames_is_told_from_one_that_is_not_there(environment, settings, said):
    result = pull_in_a_process(environment | settings, "hf:org/Small-Model")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    misnamed = "cannot read the environment: Invalid IPv6 URL. Set HF_ENDPOINT to an address"
    assert (misnamed in result.stderr) == ("http://[" in settings.values())


def test_a_token_may_stand_in_a_file(server, tmp_path):
    (tmp_path / "token").write_bytes(b"\xef\xbb\xbffrom_a_file\r\n")  # as Windows' editor writes it
    result = pull("hf:org/Small-Model", "--token-file", str(tmp_path / "token"))
    assert result.exit_code == 0, result.stderr
    asked = [headers for path, headers in server.headers_seen if "Small-Model" in path]
    assert {headers["authorization"] for headers in asked} == {"Bearer from_a_file"}


def test_a_file_without_a_token_is_refused(tmp_path):
    (tmp_path / "token").write_text("two words")
    message = refused("hf:org/Small-Model", "--token-file", str(tmp_path / "token"))
    assert "holds no token: one word" in message
    assert "two words" not in message
    message = refused("hf:org/Small-Model", "--token-file", str(tmp_path / "none"))
    assert "Cannot read the hub's token from" in message


@pytest.mark.parametrize("token", ["\x1b[200~secret", "\u201csecret\u201d", "two secrets"])
def test_a_variable_without_a_token_is_refused_and_not_shown(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    message = refused("hf:org/Small-Model")
    assert "HF_TOKEN, or the file that `hf auth login` left, holds no token: one word" in message
    assert "secret" not in message


def test_a_package_comes_as_one_and_is_checked(server):
    files = {path.name: path.read_bytes() for path in tiny_model_path().iterdir()}
    server.add_repository("org/Packed", files | {"README.md": b"# Its card"})
    result = pull("hf:org/Packed")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.endswith("Try it: edgelm chat packed\n")
    folder = Library().package_path("packed")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert Library().sources() == []
    server.headers_seen.clear()
    for model in ("packed", "hf:org/Packed"):
        again = invoke("pull", model)
        assert again.stderr == "packed is in the library already: edgelm chat packed\n"
    assert server.headers_seen == []


def test_a_package_that_was_changed_is_refused(server):
    files = {path.name: path.read_bytes() for path in tiny_model_path().iterdir()}
    server.add_repository("org/Packed", files | {"tokenizer.json": files["tokenizer.json"] + b" "})
    assert "tokenizer.json has " in refused("hf:org/Packed")
    assert Library().packages() == []
    server.add_repository("org/Packed", {name: files[name] for name in files if name != "tokenizer.json"})
    message = refused("hf:org/Packed")
    assert "org/Packed is not a whole package: its edgelm.json lists tokenizer.json." in message
    server.add_repository("org/Packed", files)
    assert pull("hf:org/Packed").exit_code == 0  # nothing that was refused is taken for a file of it


def test_a_package_of_another_precision_is_refused_before_its_weights_come(server):
    files = {path.name: path.read_bytes() for path in tiny_model_path().iterdir()}
    server.add_repository("org/Packed", files)
    message = refused("hf:org/Packed", "--precision", "int4")
    assert "hf:org/Packed is a package of precision fp32 already, which --precision int4 cannot change." in message
    assert server.ranges_asked(f"/org/Packed/resolve/{COMMIT}/model.onnx.data") == []
    assert pull("hf:org/Packed", "--precision", "fp32").exit_code == 0


def test_a_package_takes_no_name_that_another_has(server):
    files = {path.name: path.read_bytes() for path in tiny_model_path().iterdir()}
    server.add_repository("org/Packed", files)
    shutil.copytree(tiny_model_path(), Library().package_path("taken"))
    result = pull("hf:org/Packed", "--name", "taken")
    assert result.exit_code == 1
    assert "The library has a package 'taken'. Choose another name for this one: --name NAME" in result.stderr
    assert not Library().downloads_path("taken").exists()
    assert [path for path, _ in server.headers_seen if "/resolve/" in path] == []


def test_a_name_belongs_to_what_was_pulled_under_it_as_long_as_anything_of_it_is_here(server):
    files = {path.name: path.read_bytes() for path in tiny_model_path().iterdir()}
    for repository in ("org/Packed", "other/Packed"):
        server.add_repository(repository, files)
    assert pull("hf:org/Packed").exit_code == 0
    result = pull("hf:other/Packed")
    assert result.exit_code == 1
    assert "The name 'packed' belongs to hf:org/Packed in the library. Choose another for hf:other/" in result.stderr
    Library().remove("packed")
    assert pull("hf:other/Packed").exit_code == 0

    assert pull("hf:org/Small-Model").exit_code == 0
    shutil.copytree(tiny_model_path(), Library().package_path("small-model"))
    Library().remove("small-model", source_only=True)
    result = pull("hf:other/Packed", "--name", "small-model")
    assert "The name 'small-model' belongs to hf:org/Small-Model in the library." in result.stderr
    assert pull("hf:org/Small-Model").exit_code == 0


def test_what_was_left_of_another_model_of_the_repository_is_no_part_of_this_one(server):
    parts = {f"Q4-0000{number}-of-00002.gguf": b"GGUF %d" % number for number in (1, 2)}
    server.add_repository("org/Many-GGUF", parts | {"Q8.gguf": b"GGUF eight"})
    server.statuses[f"/org/Many-GGUF/resolve/{COMMIT}/Q4-00002-of-00002.gguf"] = 404
    refused("hf:org/Many-GGUF/Q4-00001-of-00002.gguf", "--name", "model")
    result = pull("hf:org/Many-GGUF/Q8.gguf", "--name", "model")
    assert result.exit_code == 0, result.stderr
    path = Library().source_path("model")
    assert path.read_bytes() == b"GGUF eight"
    assert sorted(os.listdir(path.parent)) == ["Q8.gguf", "source.json"]


def test_a_pull_that_goes_on_needs_room_for_the_rest_alone(server, monkeypatch):
    needed = sum(len(FILES[name]) for name in (*TEXTS, "model.safetensors")) + (64 << 20)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 500_000}))
    source, library = HubSource.parse("hf:org/Small-Model"), Library()
    with pytest.raises(DownloadError, match="hf:org/Small-Model needs 2 MB more"):
        fetch(source, library, "small-model")
    part = library.downloads_path("small-model") / COMMIT / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:500_000])
    assert (fetch(source, library, "small-model") / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("reference", ["hf:", "hf:model", "hf:a/b/c.safetensors", "hf:a/b@"])
def test_a_reference_of_another_form_is_refused(reference):
    assert "is not a model of the hub: write hf:ORG/REPO" in refused(reference)


def test_a_name_that_leaves_the_library_is_refused():
    result = pull("hf:org/Small-Model", "--name", "../../x")
    assert result.exit_code == 2
    assert "'../../x' is not a name for a model" in result.stderr
    result = pull("hf:org/Many-GGUF/My Model (Q4).gguf")
    assert result.exit_code == 2
    assert "'my model (q4)' is not a name for a model" in result.stderr
    assert "of Windows. To choose one: --name NAME" in result.stderr


def test_progress_is_drawn_only_on_a_terminal(environment, server):
    server.add_repository("org/big", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    main_end, terminal = pty.openpty()
    command = [*COMMAND, "pull", "hf:org/big", "--source-only"]
    subprocess.run(command, env=environment | {"TERM": "xterm"}, stderr=terminal, timeout=60, check=True)
    os.close(terminal)
    drawn = b""
    try:
        while block := os.read(main_end, 65536):
            drawn += block
    except OSError:
        pass  # the end of a terminal on Linux
    os.close(main_end)
    assert b"model.safetensors" in drawn
    assert b"100%" in drawn


def test_a_record_names_every_file_with_its_hash():
    pull("hf:org/Small-Model")
    files = read_record(Library().source_path("small-model"))["files"]
    names = ["chat_template.json", "config.json", "hf_quant_config.json", "model.safetensors", "tokenizer.json"]
    assert [file["path"] for file in files] == names
    assert files[3]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
