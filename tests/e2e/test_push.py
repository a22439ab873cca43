"""`edgelm push`: a package goes to a hub with its card, and `edgelm pull` brings it back as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import invoke
from hub_client import use_hub
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from edgelm.library.hub_upload import Upload
from edgelm.library.library import Library
from edgelm.package.manifest import SIGNATURE_NAME, Manifest
from edgelm.testing import tiny_model_path

EDGELM = str(Path(sysconfig.get_path("scripts")) / "edgelm")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as running:
        yield running


@pytest.fixture(autouse=True)
def _known(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Point huggingface_hub at the loopback hub, with a token that may write."""
    use_hub(monkeypatch, hub.url, tmp_path / "hf")
    monkeypatch.setenv("HF_TOKEN", hub.token)


@pytest.fixture
def package(own_library: Path) -> Path:
    return shutil.copytree(tiny_model_path(), Library().package_path("tiny"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_hub_writes_no_lines_of_the_report(package, monkeypatch):
    monkeypatch.setattr("edgelm.cli.push.upload", lambda *_: Upload(url="a\nTo fetch it: b", kept_card=False))
    assert invoke("push", "tiny", "hf:org/Tiny").stderr.startswith("Uploaded: a⏎To fetch it: b\n")


def test_a_pushed_package_comes_back_as_it_was(hub, package, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [EDGELM, "push", "tiny", "hf:org/Tiny"],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"Uploaded: {hub.url}/org/Tiny/commit/{result.stderr.split('/commit/')[1][:40]}",
        "To fetch it: edgelm pull hf:org/Tiny",
    ]
    assert hub.repositories["org/Tiny"].keys() == contents(package).keys() | {"README.md"}
    assert len(hub.commits) == 1
    assert hub.private == {"org/Tiny": False}
    assert not any("torch" in headers["user-agent"] for _, headers in hub.headers_seen)

    before = contents(package)
    Library().remove("tiny")
    pulled = invoke("pull", "hf:org/Tiny")
    assert pulled.exit_code == 0, pulled.stderr
    assert contents(Library().package_path("tiny")) == before
    answer = invoke("run", "tiny", "The sea", "--max-new-tokens", "3")
    assert answer.exit_code == 0, answer.stderr


def test_the_card_can_be_read_by_the_hubs_own_library(hub, package):
    from huggingface_hub import ModelCard

    invoke("push", "tiny", "hf:org/Tiny")
    text = hub.repositories["org/Tiny"]["README.md"].decode()
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "edgelm"
    assert data["pipeline_tag"] == "text-generation"
    assert "fp32" in data["tags"]
    quality = Manifest.load(package).quality
    assert quality is not None
    assert f"| perplexity | {quality.perplexity:.3f} | {quality.source_perplexity:.3f} |" in text
    assert "edgelm pull hf:org/Tiny" in text


def test_a_private_repository_is_made_private_and_a_public_one_does_not_become_it(hub, package):
    result = invoke("push", "tiny", "hf:org/secret", "--private")
    assert result.exit_code == 0, result.stderr
    assert hub.private == {"org/secret": True}
    assert invoke("push", "tiny", "hf:org/secret", "--private").exit_code == 0
    invoke("push", "tiny", "hf:org/open")
    result = invoke("push", "tiny", "hf:org/open", "--private")
    assert result.exit_code == 1
    assert "org/open is there already, and everybody can read it" in result.stderr
    assert len(hub.commits) == 3


def test_a_second_push_sends_no_weights_again_and_keeps_the_card(hub, package):
    invoke("push", "tiny", "hf:org/Tiny")
    hub.repositories["org/Tiny"]["README.md"] = b"# Written by hand"
    sent = len(hub.uploads)
    assert sent > 0
    result = invoke("push", package, "hf:org/Tiny")
    assert result.exit_code == 0, result.stderr
    assert "The repository's README.md stays as it is; --replace-card writes it anew." in result.stderr
    assert hub.repositories["org/Tiny"]["README.md"] == b"# Written by hand"
    assert len(hub.uploads) == sent
    result = invoke("push", "tiny", "hf:org/Tiny", "--replace-card")
    assert "stays as it is" not in result.stderr
    assert b"edgelm pull hf:org/Tiny" in hub.repositories["org/Tiny"]["README.md"]


def test_the_signature_of_another_package_goes_with_it(hub, package):
    (package / SIGNATURE_NAME).write_text("of the first")
    assert invoke("push", "tiny", "hf:org/Tiny").exit_code == 0
    assert hub.repositories["org/Tiny"][SIGNATURE_NAME] == b"of the first"
    (package / SIGNATURE_NAME).unlink()
    assert invoke("push", "tiny", "hf:org/Tiny").exit_code == 0
    assert hub.repositories["org/Tiny"].keys() == contents(package).keys() | {"README.md"}


def test_a_repository_that_holds_something_else_keeps_it(hub, package):
    hub.repositories["org/Small"] = {"config.json": b"{}", "README.md": b"# Small"}
    hub.add_repository("org/Small", hub.repositories["org/Small"])
    message = refused("tiny", "hf:org/Small")
    assert "org/Small holds something else than a package of edgelm, whose config.json would be replaced." in message
    assert hub.commits == []


def refused(*arguments: str) -> str:
    result = invoke("push", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_changed_package_is_not_passed_on(hub, package):
    (package / "model.onnx.data").write_bytes(b"changed")
    assert "model.onnx.data has 7 bytes" in refused("tiny", "hf:org/Tiny")
    assert hub.repositories == {}


def test_who_is_not_known_is_told_how_to_be(hub, package, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "set HF_TOKEN to a token that may write" in refused("tiny", "hf:org/Tiny")
    (tmp_path / "token").write_text("may_read")
    message = refused("tiny", "hf:org/Tiny", "--token-file", str(tmp_path / "token"))
    assert "The hub refuses the upload to org/Tiny" in message
    assert "The token must be one that may write to org/Tiny" in message
    assert "may_read" not in message
    (tmp_path / "token").write_text(hub.token)
    assert invoke("push", "tiny", "hf:org/Tiny", "--token-file", tmp_path / "token").exit_code == 0


@pytest.mark.parametrize("step", ["preupload", "batch", "commit"])
def test_an_upload_that_fails_leaves_no_commit(hub, package, step):
    hub.broken = f"/{step}"
    assert "The hub refuses the upload to org/Tiny" in refused("tiny", "hf:org/Tiny")
    assert hub.commits == []
    hub.broken = ""
    assert invoke("push", "tiny", "hf:org/Tiny").exit_code == 0


def test_offline_and_unreachable_are_told_apart(package, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to upload" in refused("tiny", "hf:org/Tiny")
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hf")
    message = refused("tiny", "hf:org/Tiny")
    assert "Cannot upload to org/Tiny" in message
    assert "Check the network, and HF_ENDPOINT" in message


@pytest.mark.parametrize("target", ["foo", "org/Tiny", "hf:org/Tiny/model.gguf", "hf:org/Tiny@main"])
def test_a_target_is_a_repository(package, target):
    message = f"error: '{target}' is not a repository to upload to: write hf:ORG/REPO.\n"
    assert refused("tiny", target) == message


def test_what_no_repository_may_be_called_is_said(package):
    assert "org/a--b cannot be the name of a repository: " in refused("tiny", "hf:org/a--b")
