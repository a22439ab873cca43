"""What a download server answers is data from a stranger: no answer of it ends in another error than ours."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import use_hub
from loopback_server import LoopbackServer

from edgelm.errors import DownloadError
from edgelm.library import remote_file
from edgelm.library.download import download
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.hub_source import HubSource
from edgelm.library.remote_file import RemoteFile
from edgelm.testing import tiny_model_path

OK, BODY = b"HTTP/1.1 200 OK\r\n", b"\r\nhello"
REDIRECT = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
ANSWERS = {
    "a length that is no number": (OK + b"Content-Length: abc\r\n" + BODY, "Content-Length is 'abc'"),
    "a length below nothing": (OK + b"Content-Length: -5\r\n" + BODY, "Content-Length is '-5'"),
    "a length of 5,000 digits": (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n" + BODY, "Content-Length is '999"),
    "a length in other digits": (OK + "Content-Length: ²\r\n".encode("latin-1") + BODY, "Content-Length is '²'"),
    "a range in other digits": (
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n" + "Content-Range: bytes ²-3/4\r\n".encode("latin-1")
        + BODY, "its SHA-256 is 2cf24",
    ),
    "a wait in other digits": (
        b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n" + "Retry-After: ²\r\n\r\n".encode("latin-1"), "answers 429",
    ),
    "an address that is none": (REDIRECT + b"http://[::1\r\n\r\n", "cannot be followed: Invalid IPv6 URL"),
    "a file of this machine": (REDIRECT + b"file:///etc/passwd\r\n\r\n", "answers 302"),
    "a server of FTP": (REDIRECT + b"FTP://127.0.0.1:1/x\r\n\r\n", "answers 302 Found, to ftp://127.0.0.1:1/x"),
    "another protocol": (b"SSH-2.0-server\r\n", "SSH-2.0-server"),
    "too many headers": (OK + b"a: b\r\n" * 300 + b"\r\n", "got more than 100 headers"),
    "broken chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello", "IncompleteRead"),
}  # fmt: skip


@contextlib.contextmanager
def answering(answer: bytes, endless: bytes = b"") -> Iterator[str]:
    """Give every connection the same bytes, and `endless` after them again and again; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(answer)
                        while endless:
                            connection.sendall(endless)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/model.bin"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def hub(server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackServer:
    """Stand in for the hub."""
    use_hub(monkeypatch, server.url, tmp_path / "hf")
    return server


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_that_is_none_is_a_download_error(
    case: str, connections: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, message = ANSWERS[case]
    monkeypatch.setattr(remote_file, "_RETRY_WAITS", (0.01,))
    size = 5 if connections == 1 else 64 << 20  # a large file comes in pieces
    with answering(answer) as url, pytest.raises(DownloadError) as caught:
        download(RemoteFile(url=url, size=size, sha256="0" * 64), tmp_path / "model.bin", connections=connections)
    assert "model.bin" in str(caught.value)
    if connections == 1:
        assert message in str(caught.value)
    assert not (tmp_path / "model.bin").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sha", 5), ("sha", "../../outside"), ("sha", None),
        ("rfilename", None), ("rfilename", 5),
        ("size", "x"), ("size", -1), ("size", True), ("size", 10**400), ("size", [1]),
        ("lfs", {"sha256": 5, "size": 1, "pointerSize": 1}), ("lfs", {"sha256": "../a", "size": 1, "pointerSize": 1}),
    ],
)  # fmt: skip
def test_a_hub_that_lists_what_is_no_file_is_refused(
    field: str, value: object, hub: LoopbackServer, tmp_path: Path
) -> None:
    hub.add_repository("a/b", {"config.json": b"{}", "model.safetensors": b"x"})
    info = json.loads(hub.files["/api/models/a/b"])
    (info if field in info else info["siblings"][1])[field] = value
    hub.files["/api/models/a/b"] = json.dumps(info).encode()
    (tmp_path / "staging").mkdir()

    with pytest.raises(DownloadError, match=r"which is not a commit|which is no file"):
        HubSource.parse("hf:a/b").fetch(tmp_path / "staging", FetchOptions())
    assert [path.name for path in tmp_path.rglob("*")] == ["staging"]


@pytest.mark.parametrize(
    ("head", "block", "reason"),
    [
        (OK + b"\r\n", b" " * (1 << 20), r"its answer has more than 16777216 bytes"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + b" " * (1 << 20) + b"\r\n", "more than 16777216"),
        (OK + b"Content-Length: 99999999999\r\n\r\n", b" " * (1 << 20), "more than 16777216 bytes"),
        (OK + b"\r\n" + b"[" * 600_000, b"", "it has 600000 commas and opening brackets, and at most 524288 are read"),
        (OK + b"\r\n" + b"[" * 100_000, b"", "no JSON that can be read .its nesting is too deep"),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * (1 << 20)), b"", "no JSON that can be read"),
        (OK + b"\r\n[]", b"", "must be a mapping"),
    ],
)  # fmt: skip
def test_what_a_hub_says_of_a_repository_is_read_within_bounds(
    head: bytes, block: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(head, block) as url:
        use_hub(monkeypatch, url.removesuffix("/model.bin"), tmp_path / "hf")
        with pytest.raises(DownloadError, match=reason) as caught:
            HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())
    assert f"Cannot ask the hub about a/b at {url.removesuffix('/model.bin')}/api/models/a/b?" in str(caught.value)


@pytest.mark.parametrize("name", ["..\\outside.exe", "C:outside.exe", "C:outside.safetensors", "..", "a\x1bb"])
def test_a_file_that_windows_would_put_elsewhere_is_refused(name: str, hub: LoopbackServer, tmp_path: Path) -> None:
    files = {"config.json": b"{}", name: b"x"}
    if not name.endswith(".safetensors"):  # a package, which lists it
        manifest = json.loads((tiny_model_path() / "edgelm.json").read_text()) | {"manifest_sha256": None}
        manifest["files"] = [{"path": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}]
        files["edgelm.json"] = json.dumps(manifest).encode()
    hub.add_repository("a/b", files)

    with pytest.raises(DownloadError, match=r"of a/b is not a plain file name; do not trust this repository\."):
        HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "edgelm.json"]


@pytest.mark.parametrize("card", [5, "mit", ["mit"], {"license": ["mit"]}, {"license": {"a": 1}}])
def test_a_card_that_is_none_gives_no_licence(card: object, hub: LoopbackServer, tmp_path: Path) -> None:
    hub.add_repository("a/b", {"config.json": b"{}", "model.safetensors": b"x"}, cardData=card)

    assert HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())[1]["license"] is None


@pytest.mark.parametrize(
    ("name", "expected"), [("qwen-research", "qwen-research"), (None, "other"), (" ", "other"), (5, "other")]
)
def test_a_licence_that_the_hub_has_no_word_for_has_the_name_that_its_card_gives_it(
    name: object, expected: str, hub: LoopbackServer, tmp_path: Path
) -> None:
    card = {"license": "other", "license_name": name}
    hub.add_repository("a/b", {"config.json": b"{}", "model.safetensors": b"x"}, cardData=card)

    assert HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())[1]["license"] == expected


def test_a_hub_that_refuses_to_describe_a_repository_is_named_with_its_reason(
    hub: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_RETRY_WAITS", (0.01,))
    hub.statuses["/api/models/a/b"] = 500
    with pytest.raises(DownloadError, match=r"b at http://\S+: it answers 500 Internal Server Error\. Try again later"):
        HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())
    hub.redirects["/api/models/a/b"] = "file:///etc/passwd"
    with pytest.raises(DownloadError, match=r"it answers 302 .*Check the network, and HF_ENDPOINT"):
        HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())


def test_a_hub_that_is_busy_is_asked_again(
    hub: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_RETRY_WAITS", (0.01,))
    hub.add_repository("a/b", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.retry_after["/api/models/a/b"] = ["0"]
    assert HubSource.parse("hf:a/b").fetch(tmp_path, FetchOptions())[1]["repository"] == "a/b"
