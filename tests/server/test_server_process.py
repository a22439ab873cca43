"""`edgelm serve` as a process: start and end, disconnects, a full queue."""

from __future__ import annotations

import errno
import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from command_line import invoke
from edgelm_server import CHAT, GATED, HELLO, SLOW, TINY, EdgelmServer, read_all
from waiting import wait_for

from edgelm.errors import ConfigError
from edgelm.server import process
from edgelm.server.options import ServerOptions

LONG = {"messages": HELLO, "max_tokens": 900, "logit_bias": {"65": 100}}  # 18 s on the slow server


# No thread starts while a request to such a URL is answered: it would get a stack that no system has.
WITHOUT_THREADS = """
import threading
from edgelm.server.app import ServerApp
call = ServerApp.__call__
async def call_without_threads(self, scope, *rest):
    threading.stack_size((1 << 46) * (scope.get("query_string") == b"no-threads"))
    await call(self, scope, *rest)
ServerApp.__call__ = call_without_threads
"""


def running(server) -> float:
    """How many requests are at work, besides the one that asks."""
    return server.metric("edgelm_requests_running") - 1


def users(server) -> float:
    return server.metric('edgelm_model_users{model="tiny-random"}')


def queued(server) -> float:
    return server.metric('edgelm_model_queued{model="tiny-random"}')


def test_a_disconnect_frees_its_slot_within_a_step(slow_serving):
    for stream in (True, False):
        connection = slow_serving.send(slow_serving.post_bytes(CHAT, LONG | {"stream": stream}))
        wait_for(lambda: users(slow_serving) == 1)
        connection.close()
        wait_for(lambda: users(slow_serving) == 0)
    assert slow_serving.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status == 200


@pytest.fixture
def gate(tmp_path):
    """The file without which a server whose prelude is `gated(gate)` computes no token."""
    return tmp_path / "gate"


def gated(gate: Path) -> str:
    return GATED.format(gate=str(gate), begun=str(gate.with_name("begun")))


def test_no_more_than_the_step_that_runs_follows_a_disconnect(gate):
    begun = gate.with_name("begun")
    with EdgelmServer(prelude=gated(gate)) as server:
        for stream in (True, False):
            begun.unlink(missing_ok=True)
            connection = server.send(server.post_bytes(CHAT, LONG | {"stream": stream}))
            client = connection.getsockname()
            wait_for(begun.exists)
            connection.close()
            wait_for(lambda client=client: not server.holds(client))
            assert server.get("/health").status == 200  # who waited for that client has had a turn since
            gate.touch()
            wait_for(lambda: users(server) == 0)
            assert server.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status == 200
            assert begun.stat().st_size == 2 + 1  # the step that begins an answer has two of its tokens
            gate.unlink()


def test_no_prompt_is_scored_for_a_client_that_has_left(tmp_path):
    scored = tmp_path / "scored"
    counting = f"""
import time
from edgelm.language_model import LanguageModel
score = LanguageModel.score
LanguageModel.score = lambda *a, **k: (open({str(scored)!r}, 'a').write('.'), time.sleep(0.1), score(*a, **k))[-1]
"""
    with EdgelmServer(prelude=counting) as server:
        echo = {"prompt": ["The sea"] * 100, "max_tokens": 0, "echo": True, "logprobs": 0}
        connection = server.send(server.post_bytes("/v1/completions", echo))
        wait_for(lambda: scored.exists())
        connection.close()
        wait_for(lambda: users(server) == 0)
        begun = scored.stat().st_size
        assert begun < 100
        assert server.post("/v1/completions", echo | {"prompt": "The sky"}).status == 200
        assert scored.stat().st_size == begun + 1


def test_every_request_lets_go_of_its_model(serving):
    texts = {"prompt": "x", "max_tokens": 1}
    for path, body, status in (
        (CHAT, {"messages": HELLO, "max_tokens": 1}, 200),
        (CHAT, {"messages": HELLO, "logit_bias": {"99999": 1}}, 400),
        ("/v1/completions", texts, 200),
        ("/v1/completions", texts | {"stream": True}, 200),
        ("/v1/responses", {"input": "x", "max_output_tokens": 1}, 200),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1}, 200),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1, "stream": True}, 200),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 1, "thinking": {"type": "enabled"}}, 400),
        ("/v1/messages/count_tokens", {"messages": HELLO}, 200),
        ("/v1/messages/count_tokens", {"messages": HELLO, "tool_choice": {"type": "any"}}, 400),
        ("/v1/responses/input_tokens", {"input": "x"}, 200),
        ("/v1/responses/input_tokens", {"input": "x", "logit_bias": {"99999": 1}}, 400),
        ("/v1/embeddings", {"input": "x"}, 200),
        ("/v1/embeddings", {"input": [99999]}, 400),
        ("/api/embed", {"model": "tiny-random", "input": "x"}, 200),
        ("/tokenize", {"prompt": "x"}, 200),
        ("/detokenize", {"tokens": [65]}, 200),
        ("/detokenize", {"tokens": [99999]}, 400),
    ):
        assert serving.post(path, body).status == status
    assert serving.get("/tokenizer_info").status == 200
    wait_for(lambda: users(serving) == 0)


def test_many_disconnects_at_any_moment_leave_nothing(slow_serving):
    for delay in [i * 0.02 for i in range(10)]:
        connection = slow_serving.send(slow_serving.post_bytes(CHAT, LONG | {"stream": delay > 0.1}))
        time.sleep(delay)
        connection.close()
    wait_for(lambda: users(slow_serving) == 0 and running(slow_serving) == 0)
    descriptors = len(list(Path(f"/proc/{slow_serving.pid}/fd").iterdir()))
    assert descriptors < 40


def test_a_full_queue_answers_429_at_once(slow_serving):
    request = slow_serving.post_bytes(CHAT, LONG | {"stream": True})
    connections = [slow_serving.send(request) for _ in range(2)]  # 2 are computed at once
    for connection in connections:
        while b"data: " not in connection.recv(65536):
            pass
    # They are in the queue when a stream begins, and so may be what earlier clients left, until the next step.
    wait_for(lambda: queued(slow_serving) == 0)
    connections += [slow_serving.send(request) for _ in range(2)]  # 2 may wait
    # One that is counted as a user may not be in the queue yet.
    wait_for(lambda: queued(slow_serving) == 2)
    assert users(slow_serving) == 4
    reply = slow_serving.post(CHAT, LONG)
    assert users(slow_serving) == 4  # nobody had to end for that answer
    assert reply.status == 429
    assert reply.headers["retry-after"] == "1"
    assert reply.json["error"]["code"] == "queue_full"
    for connection in connections:
        connection.close()
    wait_for(lambda: users(slow_serving) == 0)


def test_silence_is_filled_with_comments():
    quiet = "from edgelm.server import answers\nanswers.QUIET_SECONDS = 0.05\n"
    with EdgelmServer(prelude=quiet + SLOW.replace("0.02", "0.2")) as server:
        reply = server.post(CHAT, {"messages": HELLO, "max_tokens": 2, "stream": True})
        assert reply.data.count(b": keepalive\n\n") >= 2
        assert reply.events[-1] == "[DONE]"


def test_an_error_inside_a_stream_is_an_event_and_tells_nothing_of_this_machine():
    broken = """
from edgelm.decoding.sampling import Sampler
sample, calls = Sampler.sample, []
def failing(*arguments):
    calls.append(1)
    if len(calls) > 3:
        raise RuntimeError("/secret/path")
    return sample(*arguments)
Sampler.sample = failing
"""
    with EdgelmServer(prelude=broken) as server:
        reply = server.post(CHAT, {"messages": HELLO, "stream": True})
        assert reply.status == 200
        assert reply.events[-1]["error"]["message"] == "The server failed at this request; its log says why."
        reply = server.post(CHAT, {"messages": HELLO})
        assert reply.status == 500
        assert b"secret" not in reply.data
        server.stop()
        assert any("/secret/path" in line for line in server.log)


# As under a terminal: where the tests were started by nohup, the server would not hear of it.
HANGUPS_HEARD = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n" if hasattr(signal, "SIGHUP") else ""
HANGUP = pytest.param(
    "SIGHUP", 129, marks=pytest.mark.skipif(not HANGUPS_HEARD, reason="the system has no such signal")
)


@pytest.mark.parametrize(("ending", "code"), [("SIGTERM", 0), HANGUP])
def test_a_signal_lets_an_answer_end_and_refuses_new_ones(gate, ending, code):
    with EdgelmServer(prelude=HANGUPS_HEARD + gated(gate)) as server:
        connection = server.send(server.post_bytes(CHAT, LONG | {"max_tokens": 20, "stream": True}))
        wait_for(lambda: users(server) == 1)
        server.send_signal(signal.Signals[ending])
        told = "Stopping when the running requests have ended (1). Ctrl-C again stops at once."
        wait_for(lambda: told in "".join(server.log))  # before others run that would be counted
        assert server.get("/health").status == 503
        reply = server.post(CHAT, {"messages": HELLO})
        assert reply.status == 503
        assert reply.json["error"]["code"] == "stopping"
        assert "retry-after" in reply.headers
        gate.touch()
        assert b"data: [DONE]" in read_all(connection)
        server.process.join(timeout=30)
        assert server.stop() == code
        assert "".join(server.log).count("Stopping when") == 1


def test_a_second_signal_stops_at_once():
    with EdgelmServer(prelude=SLOW) as server:
        connection = server.send(server.post_bytes(CHAT, LONG | {"stream": True}))
        assert connection.recv(12) == b"HTTP/1.1 200"
        server.send_signal(signal.SIGTERM)
        wait_for(lambda: server.get("/health").status == 503)
        assert server.stop(signal.SIGTERM) == 0
        assert b"[DONE]" not in read_all(connection)


def test_a_port_that_is_taken_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = invoke("serve", TINY, "--port", port)
    assert result.exit_code == 1
    assert f"error: Port {port} is taken. Choose another: --port {port + 1}, or 0 for any free one.\n" in result.output


def test_a_port_that_the_system_refuses_is_said_with_its_reason(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigError, match=r"at 127.0.0.1, port 80: Permission denied. Choose another --port\.$"):
        process._listen(ServerOptions(port=80))


def test_no_port_is_shared_with_another_program_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with process._listen(ServerOptions(port=0)) as listener:  # what the option means there: Microsoft's Winsock
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is reached from other machines, so it needs a key", 2),
        (["--api-key", "short"], "An API key must have 8 or more printable ASCII characters and no space.", 2),
        (["--cors-origin", "*"], "The origin '*' is none; write one as http://localhost:3000, without a path.", 2),
        (["--allowed-host", "http://x"], "The host 'http://x' is none; write one as chat.example.org", 2),
        (["--api-key-file", "no-such-file"], "Cannot read the keys in no-such-file: ", 2),
        (["--host", "no.such.host.invalid", "--api-key", "12345678"], "There is no address 'no.such.host.invalid'", 1),
        (["--host", "192.0.2.1", "--api-key", "12345678"], "Choose another --host: it is no address of this", 1),
        (["--host", ""], "host is ''; it must be an address alone.", 2),
        (["--provider", "qnn"], "The ONNX Runtime here has no 'qnn'; it has: cpu", 1),
        (["no-such-model"], "There is no model 'no-such-model'.", 1),
    ],
)
def test_what_cannot_be_served_is_said_at_once(arguments, words, code):
    result = invoke("serve", *arguments)
    assert result.exit_code == code
    assert words in result.output


def test_keys_come_from_a_file(tmp_path):
    (tmp_path / "keys").write_text("first-key-of-two\n\nsecond-key-of-two\n", encoding="utf-8-sig")
    with EdgelmServer((TINY, "--api-key-file", str(tmp_path / "keys"))) as server:
        for key in ("first-key-of-two", "second-key-of-two"):
            assert server.get("/v1/models", Authorization=f"Bearer {key}").status == 200
        assert server.get("/v1/models").status == 401
    (tmp_path / "keys").write_text("\n")
    (tmp_path / "named").write_text("first-key-of-two\nJonas: second-key-of-two\n")
    refused = {
        "keys": "There is no key in",
        "": "is a directory",
        "no": "Cannot read",
        "named": "named:2: An API key must",
    }
    for name, words in refused.items():
        path = tmp_path / name
        result = invoke("serve", "--api-key-file", path)
        assert result.exit_code in (1, 2)
        assert words in result.output


def test_a_server_at_all_addresses_names_one_that_others_reach(monkeypatch):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connected.append(address))
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(socket.socket, "getsockname", lambda _: ("10.1.2.3" if connected else "0.0.0.0", port))
        assert process._url(listener) == f"http://10.1.2.3:{port}"


@pytest.mark.parametrize(("ending", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 0), (21, 0)])
def test_the_exit_code_tells_what_ended_it(monkeypatch, ending, code):
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)  # of Windows
    monkeypatch.setattr(process, "serve", lambda *_: ending)
    assert invoke("serve", TINY, "--port", "0").exit_code == code


def test_it_says_where_it_listens_and_each_request_on_standard_error_and_ctrl_c_ends_it_with_130():
    command = [sys.executable, "-m", "edgelm", "serve", TINY, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            greeting = "".join(server.stderr.readline() for _ in range(3))
            url, port = re.match(
                r"Listening at (http://127\.0\.0\.1:(\d+)) for everybody on this machine\.\n", greeting
            ).groups()
            for path in ("/v1/models?key=secret", "/health", "/metrics", "/page/app.js", "/page/nothing.js"):
                connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
                connection.request("GET", path)
                connection.getresponse().read()
                connection.close()
            server.send_signal(signal.SIGINT)
            output, log = server.communicate(timeout=60)
        finally:
            server.kill()
    addresses = f"OpenAI's base URL: {url}/v1 · Anthropic's and Ollama's: {url}"
    assert greeting.endswith(f"\nModels: tiny-random\nA page to chat: {url} · {addresses}\n")
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GET /v1/models 200 \d+\.\d{3} s$", log, re.MULTILINE)
    assert "GET /page/nothing.js 404" in log
    for unsaid in ("/health", "/metrics", "/page/app.js", "secret", "Traceback"):
        assert unsaid not in log
    assert (server.returncode, output) == (130, "")


def test_a_server_whose_greeting_finds_the_disk_of_its_log_full_goes_on(monkeypatch):
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def serve(_models, _options, listening) -> int:
        listening("http://127.0.0.1:1", ["tiny-random"])
        return signal.SIGTERM

    monkeypatch.setattr(click, "echo", no_room)
    monkeypatch.setattr(process, "serve", serve)
    assert invoke("serve", TINY).exit_code == 0


def test_where_no_thread_starts_a_request_is_to_come_later_and_the_server_goes_on():
    body = {"messages": HELLO, "max_tokens": 2}
    large = {"model": "x" * 40_000, **body}  # a body of this size is checked in a thread
    with EdgelmServer((TINY, "--keep-alive", "0.1"), prelude=WITHOUT_THREADS) as server:
        for refused in (body, large):
            reply = server.post(f"{CHAT}?no-threads", refused)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert reply.json["error"]["code"] == "out_of_threads"
        assert server.post(CHAT, body).status == 200
        assert server.get("/health?no-threads").status == 200  # and so it stays until the next request
        wait_for(lambda: any("Unloaded" in line for line in server.log))
        assert server.post(f"{CHAT}?no-threads", body).status == 503  # there is a thread, and none for an engine
        assert server.post(CHAT, body).status == 200
        assert server.stop() == 0


def test_a_file_of_the_page_that_did_not_change_is_not_sent_again(serving):
    etag = serving.get("/page/app.js").headers["etag"]
    again = serving.get("/page/app.js", If_None_Match=etag)
    assert (again.status, again.data, again.headers["etag"]) == (304, b"", etag)


def test_a_library_that_cannot_be_read_is_said_before_anything_listens(own_library):
    own_library.mkdir()
    (own_library / "models").touch()
    result = invoke("serve", "--port", "0")
    assert result.exit_code == 1
    assert result.output.startswith(f"error: The model library {own_library} cannot be read")


def test_a_wrong_method_is_told_the_right_one(serving):
    reply = serving.get("/v1/completions")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.json["error"]["message"] == "GET is not for this path, which takes POST."


def test_a_path_writes_neither_lines_nor_orders_into_the_log(serving):
    assert serving.get("/x%0aforged%1b%5b2J%e2%80%ae").status == 404
    assert serving.get("/" + "long" * 1000).status == 404
    wait_for(lambda: any("longlong" in line for line in serving.log))
    log = "".join(serving.log)
    assert r"GET /x\nforged\x1b[2J\u202e 404" in log
    assert "\x1b" not in log
    assert "long" * 30 not in log


def test_help_needs_neither_starlette_nor_numpy():
    code = "import sys\nfrom edgelm.cli.main import main\nmain(['serve', '--help'], standalone_mode=False)\n"
    code += "sys.exit(bool({'starlette', 'uvicorn', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "edgelm serve smollm2-135m-instruct --port 9000" in result.stdout
