"""One file over HTTP: it arrives whole and checked, or the error says why not and the next call goes on."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from http.client import BadStatusLine
from pathlib import Path
from ssl import SSLCertVerificationError, SSLError
from typing import Any
from urllib.error import URLError

import pytest
from loopback_server import LoopbackServer

from edgelm.errors import DownloadError
from edgelm.files import disk_space
from edgelm.library import download as download_module
from edgelm.library import piecewise, remote_file
from edgelm.library.download import download, missing_bytes
from edgelm.library.remote_file import RemoteFile

CONTENT = random.Random(7).randbytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file, "_RETRY_WAITS", (0.01, 0.01))


@pytest.fixture
def remote(server):
    server.files["/model.bin"] = CONTENT
    return RemoteFile(url=f"{server.url}/model.bin", size=len(CONTENT), sha256=SHA256)


def test_a_file_arrives_with_progress_and_leaves_nothing_beside_it(remote, target):
    seen = []
    download(remote, target, lambda name, received, total: seen.append((name, received, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == ("model.bin", len(CONTENT), len(CONTENT))
    assert os.listdir(target.parent) == [target.name]


def test_a_file_is_on_the_disk_before_it_has_its_name(remote, target, on_disk):
    download(remote, target)
    part = target.with_name("model.bin.part")
    assert on_disk == [("fsync", part, len(CONTENT)), ("rename", target, 0)]


def test_size_and_checksum_may_be_unknown(server, target):
    server.files["/empty"] = b""
    server.files["/model.bin"] = CONTENT
    download(RemoteFile(url=f"{server.url}/model.bin"), target)
    assert target.read_bytes() == CONTENT
    download(RemoteFile(url=f"{server.url}/empty"), target)
    assert target.read_bytes() == b""


def test_dropped_connections_are_resumed_where_they_broke(server, remote, target):
    server.drops["/model.bin"] = [300_000, 200_000, 0]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin") == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-"]


@pytest.mark.parametrize("connections", [1, 2])
def test_a_part_of_an_earlier_run_is_completed(server, remote, target, pieces_of_100_kb, connections):
    target.with_name("model.bin.part").write_bytes(CONTENT[:999_000])
    download(remote, target, connections=connections)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin") == ["bytes=999000-"]


def test_a_complete_part_needs_no_request(server, remote, target):
    target.with_name("model.bin.part").write_bytes(CONTENT)
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.headers_seen == []


def test_a_server_that_ignores_ranges_starts_again_cleanly(server, remote, target):
    server.knows_ranges = False
    server.drops["/model.bin"] = [300_000]
    download(remote, target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_always_breaks_off_is_given_up(server, remote, target):
    server.drops["/model.bin"] = [100, *[0] * 9]
    with pytest.raises(DownloadError, match="the connection ended after 100 of 1000000 bytes"):
        download(remote, target)
    assert len(server.headers_seen) == 3


def test_a_server_that_falls_silent_is_given_up(server, remote, target, monkeypatch):
    monkeypatch.setattr(remote_file, "_TIMEOUT_SECONDS", 0.2)
    server.holds["/model.bin"] = 0
    with pytest.raises(DownloadError, match="timed out"):
        download(remote, target)


def test_a_weak_version_is_not_asked_for(server, remote, target):
    server.etag = 'W/"version-1"'
    server.drops["/model.bin"] = [300_000]
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert [headers.get("if-range") for _, headers in server.headers_seen] == [None, None]


def test_a_part_of_another_version_is_dropped(server, target):
    server.files["/model.bin"] = CONTENT
    target.with_name("model.bin.part").write_bytes(b"old" * 1000)
    target.with_name("model.bin.part.etag").write_text('"version-0"')
    download(RemoteFile(url=f"{server.url}/model.bin", size=len(CONTENT)), target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("version", [None, b"", b"\xff\x00\n"], ids=["none", "empty", "damaged"])
def test_a_part_of_an_unknown_version_is_not_trusted_without_a_checksum(server, target, version):
    server.files["/model.bin"] = CONTENT
    target.with_name("model.bin.part").write_bytes(b"old" * 1000)
    if version is not None:
        target.with_name("model.bin.part.etag").write_bytes(version)
    download(RemoteFile(url=f"{server.url}/model.bin"), target)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin") == [None]


def test_a_part_longer_than_the_file_is_dropped(server, target):
    server.files["/model.bin"] = CONTENT
    target.with_name("model.bin.part").write_bytes(CONTENT + b"more")
    target.with_name("model.bin.part.etag").write_text('"version-1"')
    download(RemoteFile(url=f"{server.url}/model.bin"), target)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_the_part_and_says_so(server, remote, target):
    server.files["/model.bin"] = b"x" + CONTENT[1:]
    with pytest.raises(DownloadError, match=r"is not the file that was asked for: its SHA-256 is .* was expected"):
        download(remote, target)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("size", [999_999, 1_000_004])
def test_a_wrong_size_is_refused_before_the_body(server, remote, target, size):
    server.files["/model.bin"] = (CONTENT + b"more")[:size]
    with pytest.raises(DownloadError, match=f"the server has {size} bytes; 1000000 were expected"):
        download(remote, target)


def test_a_body_longer_than_the_size_is_refused(tmp_path, target, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    monkeypatch.setattr(download_module._Transfer, "_check_size", lambda *_: None)  # a server that states no length
    received = []
    with pytest.raises(DownloadError, match="more than the expected 1000 bytes came"):
        download(RemoteFile(url=source.as_uri(), size=1000), target, lambda *report: received.append(report[1]))
    assert received == [1 << 18]  # one block: a body without end does not fill the disk


def test_a_body_cut_off_by_a_server_that_states_no_length_is_gone_on_with(server, target):
    server.files["/model.bin"], server.states_length = CONTENT, False
    server.drops["/model.bin"] = [700_000]
    download(RemoteFile(url=f"{server.url}/model.bin", size=len(CONTENT)), target)
    assert target.read_bytes() == CONTENT


def test_a_refusal_is_final_and_names_the_way_out(server, target):
    remote = RemoteFile(url=f"{server.url}/gone", advice={404: "It moved."})
    with pytest.raises(DownloadError, match=r"Cannot download model.bin: .*/gone answers 404 Not Found. It moved."):
        download(remote, target)
    assert len(server.headers_seen) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_a_few_times(server, remote, target, status):
    server.statuses["/model.bin"] = status
    with pytest.raises(DownloadError, match=f"answers {status}"):
        download(remote, target)
    assert len(server.headers_seen) == 3


def test_a_server_that_has_no_byte_of_a_whole_file_is_asked_once(server, remote, target):
    server.statuses["/model.bin"] = 416
    with pytest.raises(DownloadError, match="answers 416"):
        download(remote, target)
    assert len(server.headers_seen) == 1


def test_what_may_pass_is_told_from_what_stays():
    passing = [URLError(TimeoutError()), URLError(ConnectionRefusedError()), TimeoutError(), BadStatusLine("x")]
    assert all(map(remote_file.is_passing, passing))
    staying = [URLError("unknown url type"), URLError(SSLCertVerificationError()), OSError(28, "No space left")]
    assert not any(map(remote_file.is_passing, staying))


def test_whatever_breaks_a_connection_in_the_body_may_pass():
    class Response:
        def read(self, _size: int) -> bytes:
            raise SSLError("decryption failed or bad record mac")

    with pytest.raises(ConnectionError, match="bad record mac") as caught:
        remote_file.read_block(Response())
    assert remote_file.is_passing(caught.value)


def test_a_length_may_be_that_of_a_large_file():
    assert remote_file.whole_number("137438953472") == 1 << 37


def test_no_network_is_an_error_that_keeps_the_part(target):
    target.with_name("model.bin.part").write_bytes(b"abc")
    with pytest.raises(DownloadError, match=r"Check the network .* it goes on where it stopped"):
        download(RemoteFile(url="http://127.0.0.1:9/model.bin"), target)
    assert target.with_name("model.bin.part").exists()


def test_an_interrupt_keeps_the_part_for_the_next_run(server, remote, target):
    def interrupt(_name: str, received: int, _total: int | None) -> None:
        if received > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(remote, target, interrupt)
    part = target.with_name("model.bin.part").stat().st_size
    assert 500_000 < part < len(CONTENT)
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin")[-1] == f"bytes={part}-"


def test_a_full_disk_is_an_error_before_the_first_byte(remote, target, monkeypatch):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
    with pytest.raises(DownloadError, match=r"needs 1 MB more; only 10 MB are free at .* EDGELM_HOME"):
        download(remote, target)


def test_what_is_here_of_a_file_is_not_missing(remote, target):
    assert missing_bytes(remote, target) == 1_000_000
    target.with_name("model.bin.part").write_bytes(CONTENT[:300_000])
    assert missing_bytes(remote, target) == 700_000
    assert missing_bytes(RemoteFile(url=remote.url), target) == 0  # nobody knows
    target.write_bytes(CONTENT)
    assert missing_bytes(remote, target) == 0


def test_a_file_that_cannot_be_written_is_an_error(remote, target):
    target.with_name("model.bin.part").mkdir()
    with pytest.raises(DownloadError, match=r"Cannot write .*model.bin"):
        download(remote, target)


def test_a_file_url_goes_the_same_way(tmp_path, target):
    source = tmp_path / "wheel house" / "a.whl"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    download(RemoteFile(url=source.as_uri(), size=len(CONTENT), sha256=SHA256), target)
    assert target.read_bytes() == CONTENT


def test_a_token_goes_to_the_server_that_was_asked_and_to_no_other(server, target):
    with LoopbackServer(files={"/storage": CONTENT}) as other:
        for place in (server.url.replace("127.0.0.1", "localhost"), other.url):
            server.files, server.redirects = other.files, {"/old": "/model.bin", "/model.bin": f"{place}/storage"}
            download(RemoteFile(url=f"{server.url}/old", headers={"Authorization": "Bearer secret"}), target)
            target.unlink()
    seen = server.headers_seen + other.headers_seen
    shown = [path for path, headers in seen if headers.get("authorization") == "Bearer secret"]
    assert (shown, len(seen)) == (["/old", "/model.bin"] * 2, 6)


@pytest.fixture
def pieces_of_100_kb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piecewise, "_PIECE_BYTES", 100_000)


def test_several_connections_bring_one_file_in_pieces(server, remote, target, pieces_of_100_kb):
    seen = []
    download(remote, target, lambda *report: seen.append(report), connections=3)
    assert target.read_bytes() == CONTENT
    asked = server.ranges_asked("/model.bin")
    assert sorted(asked) == sorted(f"bytes={start}-{start + 99_999}" for start in range(0, 1_000_000, 100_000))
    assert seen[-1] == ("model.bin", len(CONTENT), len(CONTENT))
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_no_connection_has_the_file_open_when_it_is_renamed_or_deleted(
    server, remote, target, pieces_of_100_kb, monkeypatch, knows_ranges
):
    next_piece = piecewise._Pieces._next
    at_work: list[threading.Thread] = []

    def slow_but_for_the_first(pieces: piecewise._Pieces) -> int | None:
        index = next_piece(pieces)
        if index != 0:
            time.sleep(0.05)
        return index

    def counted(change: Callable[..., None]) -> Callable[..., None]:
        def counting(path: Path, *arguments: Any, **options: Any) -> None:
            if str(path).endswith(".pieces"):
                at_work.extend(thread for thread in threading.enumerate() if "_work" in thread.name)
            change(path, *arguments, **options)

        return counting

    monkeypatch.setattr(piecewise._Pieces, "_next", slow_but_for_the_first)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    server.knows_ranges = knows_ranges
    download(remote, target, connections=3)
    assert target.read_bytes() == CONTENT
    assert at_work == []


def test_pieces_go_on_after_dropped_connections(server, remote, target, pieces_of_100_kb):
    server.drops["/model.bin"] = [70_000, 0, 30_000, 1]
    download(remote, target, connections=2)
    assert target.read_bytes() == CONTENT


def test_whatever_comes_of_a_piece_is_worth_new_attempts(server, remote, target, pieces_of_100_kb):
    target.with_name("model.bin.pieces").write_bytes(CONTENT[:100_000] + b"\0" * 900_000)
    target.with_name("model.bin.pieces.done").write_text(f"{SHA256} 1000000 100000\n0\n")
    server.drops["/model.bin"] = [0, 30_000, 0, 30_000, 0]
    download(remote, target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_never_brings_a_byte_of_a_piece_is_given_up(server, remote, target, pieces_of_100_kb):
    server.drops["/model.bin"] = [0] * 50
    with pytest.raises(DownloadError, match="the connection ended before the first byte"):
        download(remote, target, connections=2)


@pytest.mark.parametrize("connections", [2, 1])
def test_pieces_that_are_here_are_not_fetched_again(server, remote, target, pieces_of_100_kb, connections, monkeypatch):
    journal, on_disk = target.with_name("model.bin.pieces.done"), ""

    def interrupt(_name: str, received: int, _total: int | None) -> None:
        nonlocal on_disk
        if received > 500_000:
            on_disk = journal.read_text()
            raise KeyboardInterrupt

    server.holds["/model.bin"] = 60_000  # so that some pieces are cut off
    server.release.set()
    with pytest.raises(KeyboardInterrupt):
        download(remote, target, interrupt, connections=2)
    header, *done = journal.read_text().splitlines()
    assert on_disk.splitlines() == [header, *done]  # a kill would have lost no piece
    assert header == f"{SHA256} 1000000 100000"
    server.headers_seen.clear()
    missing = len(CONTENT) - 100_000 * len(done)
    assert missing_bytes(remote, target) == missing
    room = type("Usage", (), {"free": (64 << 20) + missing})
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: room)
    download(remote, target, connections=connections)
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == [target.name]
    fetched = {
        int(str(asked).removeprefix("bytes=").partition("-")[0]) // 100_000
        for asked in server.ranges_asked("/model.bin")
    }
    assert fetched == set(range(10)) - {int(index) for index in done}


def test_no_connection_writes_once_a_download_has_ended(server, remote, target, pieces_of_100_kb, monkeypatch):
    read_block, ended = piecewise.read_block, threading.Event()

    def read_late(response: Any) -> bytes:
        ended.wait()
        return read_block(response)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(piecewise, "read_block", read_late)
    monkeypatch.setattr(piecewise, "_POLL_SECONDS", 0.01)
    with pytest.raises(KeyboardInterrupt):
        download(remote, target, interrupt, connections=2)
    ended.set()
    for thread in threading.enumerate():
        if "_work" in thread.name:
            thread.join()
    assert target.with_name("model.bin.pieces").read_bytes() == b"\0" * 1_000_000


def test_a_file_of_unknown_hash_comes_over_one_connection(server, target, pieces_of_100_kb):
    server.files["/model.bin"] = CONTENT  # pieces of two versions of it would show by nothing
    download(RemoteFile(url=f"{server.url}/model.bin", size=len(CONTENT)), target, connections=2)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin") == [None]


def test_one_connection_asks_for_the_whole_file_and_drops_the_pieces_of_another(
    server, remote, target, pieces_of_100_kb
):
    target.with_name("model.bin.pieces").write_bytes(b"\0" * 1_000_000)
    target.with_name("model.bin.pieces.done").write_text("another header\n1\n")
    download(remote, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges_asked("/model.bin") == [None]
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize(
    ("journal", "size"),
    [
        ("", 1_000_000),
        ("another header\n1\n", 1_000_000),
        ("{header}\n1\n2", 1_000_000),
        ("{header}\n\u00e9\n", 1_000_000),
        ("{header}\n0\n12\n", 1_000_000),  # there is no such piece
        ("{header}\n0\n\nx\n", 1_000_000),
        ("{header}\n0\n", None),  # the file is gone
        ("{header}\n0\n1\n2\n3\n", 200_000),  # of which the file has two
    ],
)
def test_a_damaged_journal_costs_no_more_than_time(remote, target, pieces_of_100_kb, journal, size):
    if size is not None:
        target.with_name("model.bin.pieces").write_bytes((CONTENT[:200_000] + b"\0" * 800_000)[:size])
    text = journal.replace("{header}", f"{SHA256} 1000000 100000")
    target.with_name("model.bin.pieces.done").write_text(text)
    reported: list[int] = []
    download(remote, target, lambda _name, received, _total: reported.append(received), connections=2)
    assert target.read_bytes() == CONTENT
    assert reported[-1] == len(CONTENT)


def test_a_kill_leaves_no_new_file_beside_the_journal_of_an_older_one(remote, target, pieces_of_100_kb, monkeypatch):
    def killed(path: Path, size: int) -> None:
        raise KeyboardInterrupt(path.write_bytes(b"\0" * size))

    target.with_name("model.bin.pieces.done").write_text(f"{SHA256} 1000000 100000\n0\n1\n2\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", killed)
        with pytest.raises(KeyboardInterrupt):
            download(remote, target, connections=2)
    download(remote, target, connections=2)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("flaw", ["knows_ranges", "shifts_ranges"])
def test_a_server_with_wrong_ranges_is_asked_over_one_connection(server, remote, target, pieces_of_100_kb, flaw):
    setattr(server, flaw, flaw == "shifts_ranges")
    download(remote, target, connections=3)
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == [target.name]


def test_pieces_of_another_file_are_refused_by_their_hash(server, remote, target, pieces_of_100_kb):
    server.files["/model.bin"] = CONTENT[:-1] + b"x"  # changed in the middle of a download
    with pytest.raises(DownloadError, match="is not the file that was asked for: its SHA-256 is"):
        download(remote, target, connections=2)
    assert os.listdir(target.parent) == []


def test_a_refusal_ends_all_connections(server, remote, target, pieces_of_100_kb):
    server.statuses["/model.bin"] = 403
    with pytest.raises(DownloadError, match="answers 403"):
        download(remote, target, connections=4)
    assert len(server.headers_seen) <= 4
    server.statuses["/model.bin"] = 503
    with pytest.raises(DownloadError, match="answers 503"):
        download(remote, target, connections=4)


def test_a_server_that_takes_one_connection_at_a_time_gives_the_whole_file(server, remote, target, pieces_of_100_kb):
    server.retry_after["/model.bin"] = ["0"] * 5  # of two connections, which try three times each, one gives up
    download(remote, target, connections=2)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("asked", "waits"), [(["7", "100000"], [7.0, 60.0]), (["0"], [0.01])])
def test_a_server_that_asks_for_patience_gets_it(server, remote, target, monkeypatch, asked, waits):
    waited: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", waited.append)
    server.retry_after["/model.bin"] = asked
    download(remote, target)
    assert waited == waits
    assert target.read_bytes() == CONTENT


def test_pieces_need_room_for_the_whole_file(remote, target, monkeypatch, pieces_of_100_kb):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000_000}))
    with pytest.raises(DownloadError, match="needs 1 MB more; only 10 MB are free"):
        download(remote, target, connections=2)
