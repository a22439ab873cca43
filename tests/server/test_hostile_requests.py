"""What a hostile client sends, through raw sockets to a real process; afterwards it is healthy, and no larger."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import select
import socket
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from edgelm_server import CHAT, HELLO, SHORT_LIMITS, TINY, EdgelmServer, read_all
from starlette.requests import Request
from waiting import wait_for

from edgelm.server.api_error import ApiError
from edgelm.server.options import RequestLimits
from edgelm.server.request_body import read_json

TOOL = {"type": "function", "function": {"name": "stop"}}


@pytest.fixture(autouse=True)
def healthy_and_flat_afterwards(request):
    servers = [request.getfixturevalue(name) for name in ("serving", "hasty_serving") if name in request.fixturenames]
    for server in servers:
        server.post(CHAT, {"messages": HELLO, "max_tokens": 2})
    before = [server.memory for server in servers]
    yield
    for server, memory in zip(servers, before, strict=True):
        assert server.post(CHAT, {"messages": HELLO, "max_tokens": 2}).status == 200
        # Once, the allocator keeps memory for the threads that parse large bodies: 22 to 56 MB measured, and no more
        # after the same again four times.
        assert server.memory < memory + 80e6
        assert server.metric("edgelm_requests_running") == 1


# Connections that hold little of what was not read, as the socket does that listens: they have its size.
NARROW = """
import socket
from edgelm.server import process
listen = process._listen
def listen_narrowly(options):
    listener = listen(options)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener
process._listen = listen_narrowly
"""
THREE_CONNECTIONS = SHORT_LIMITS.replace("RequestLimits(", "RequestLimits(connections=3, ").replace("s=1,", "s=60,")


@pytest.fixture(scope="module")
def narrow_serving():
    with EdgelmServer((TINY, "--quiet"), prelude=SHORT_LIMITS + NARROW) as server:
        yield server


def send_and_read_nothing(server, request):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((server.host, server.port))
    with contextlib.suppress(ConnectionError):
        connection.sendall(request)
    return connection


def send_until_it_is_cut(server, data):
    connection = server.open()
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)
    return connection


def refused(reply, status, words):
    assert reply.status == status, reply.data
    message = reply.json["error"]["message"]
    assert words in message
    for secret in ("/work", "/root", "Traceback", "site-packages", ".py"):
        assert secret not in reply.data.decode()


def is_cut(connection):
    """Tell whether the server closes the connection; a server that waits on lets this end in a TimeoutError."""
    connection.settimeout(30)
    read_all(connection)
    return True


def test_a_client_that_says_nothing_is_cut(hasty_serving):
    assert is_cut(hasty_serving.open())


def test_a_slow_head_is_cut_however_many_there_are(hasty_serving):
    connections = [hasty_serving.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n") for _ in range(100)]
    for _ in range(15):
        time.sleep(0.1)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(b"X-Slow: 1\r\n")
    assert hasty_serving.get("/health").status == 200
    for connection in connections:
        assert is_cut(connection)


def test_a_second_request_on_a_connection_has_the_same_time(hasty_serving):
    host = f"Host: {hasty_serving.host}:{hasty_serving.port}\r\n"
    connection = hasty_serving.send(f"GET /health HTTP/1.1\r\n{host}\r\n".encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET /hea")
    assert is_cut(connection)


def test_a_slow_body_is_refused(hasty_serving):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {hasty_serving.host}:{hasty_serving.port}\r\nContent-Length: 1000\r\n\r\n"
    connection = hasty_serving.send(head.encode())
    for _ in range(4):
        connection.sendall(b" ")
        time.sleep(0.1)
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"The body took more than 1 s." in answer


def test_a_reader_that_does_not_read_is_cut(narrow_serving):
    answered = 'edgelm_requests_total{route="/detokenize",status="200"}'
    before = narrow_serving.metric(answered)
    # 800 kB of answers: more than the buffers of such sockets hold, and of the server's connection.
    connection = send_and_read_nothing(
        narrow_serving, narrow_serving.post_bytes("/detokenize", {"tokens": [65] * 40_000}) * 20
    )
    until_closed = select.poll()
    until_closed.register(connection, 0)
    assert until_closed.poll(30_000)
    assert 0 < narrow_serving.metric(answered) - before < 20
    connection.close()


def test_a_reader_of_one_short_answer_is_cut_too(narrow_serving):
    request = narrow_serving.post_bytes("/detokenize", {"tokens": [65] * 40_000})
    answered = 'edgelm_requests_total{route="/detokenize",status="200"}'
    read_all(narrow_serving.send(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)))  # the model is loaded
    before = narrow_serving.metric(answered)
    connection = send_and_read_nothing(narrow_serving, request)
    wait_for(lambda: narrow_serving.metric(answered) > before, 60)
    wait_for(lambda: not narrow_serving.holds(connection.getsockname()), 30)
    assert len(read_all(connection)) < 40_000


def test_a_reader_that_was_waited_for_is_not_cut_later(narrow_serving):
    body = {"tokens": [65] * 40_000}
    answer = http.client.HTTPConnection(narrow_serving.host, narrow_serving.port)
    for pause in (1.5, 0):
        answer.request("POST", "/detokenize", json.dumps(body))
        assert len(answer.getresponse().read()) > 40_000
        time.sleep(pause)


def test_the_connection_that_waits_longest_gives_its_place_to_a_new_one():
    with EdgelmServer((TINY, "--quiet"), prelude=THREE_CONNECTIONS) as server:
        first, *others = [server.send(b"GET / HT") for _ in range(3)]
        assert server.get("/health").status == 200
        assert is_cut(first)
        for connection in others:
            connection.sendall(f"TP/1.1\r\nHost: {server.host}:{server.port}\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"


def test_more_connections_than_the_limit_are_turned_away_where_all_are_in_a_request():
    with EdgelmServer((TINY, "--quiet"), prelude=THREE_CONNECTIONS) as server:
        assert server.get("/health").status == 200
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nContent-Length: 9\r\n"
        begun = [server.send(f"{head}Expect: 100-continue\r\n\r\n".encode()) for _ in range(3)]
        for connection in begun:
            assert connection.recv(12) == b"HTTP/1.1 100"
        assert server.get("/health").status == 503
        begun[0].close()
        begun[1].close()
        assert server.get("/health").status == 200


def test_connections_leave_the_server_files_of_those_that_its_process_may_open():
    few_files = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    with EdgelmServer((TINY, "--quiet"), prelude=few_files) as server:
        connections = [server.send(b"GET / HT") for _ in range(400)]
        assert server.get("/health").status == 200
        assert "Too many open files" not in "".join(server.log)
        assert is_cut(connections[0])


def test_others_have_their_turn_while_a_body_in_chunks_of_one_byte_is_read(serving):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"1\r\n \r\n" * 40_000
    connection = serving.send(head.encode())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(connection.recv, 12)
        connection.sendall(body + b"0\r\n\r\n")
        turns = 0
        while not answer.done():
            assert serving.get("/health").status == 200
            turns += 1
    assert turns > 10  # where asyncio reads 256 KiB at once, 1 or 2 are answered meanwhile
    assert answer.result() == b"HTTP/1.1 400"


def test_a_bad_chunk_behind_an_answer_ends_the_connection_and_writes_nothing_into_the_log(serving):
    head = f"GET /health HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = serving.send(head.encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(b"zzzz\r\n")
    assert is_cut(connection)
    assert serving.get("/health").status == 200
    assert "Traceback" not in "".join(serving.log)


def test_what_is_made_for_a_reader_that_reads_nothing_is_bounded():
    # 32 answers of 900 tokens with 21 log-probabilities each: 120 MB when they were made at once.
    body = {"prompt": ["a"] * 8, "n": 4, "max_tokens": 900, "logprobs": 20, "logit_bias": {"65": 100}, "stream": True}
    with EdgelmServer((TINY, "--quiet"), prelude=NARROW) as server:
        server.post("/v1/completions", body | {"stream": False, "max_tokens": 5})
        before = server.memory
        connection = send_and_read_nothing(server, server.post_bytes("/v1/completions", body))
        # Each waits for its reader at 370 tokens.
        wait_for(lambda: server.metric('edgelm_model_queued{model="tiny-random"}') == 8, 60)
        assert server.memory < before + 40e6  # 12 MB measured
        assert server.post(CHAT, {"messages": HELLO, "max_tokens": 2}).status == 200
        connection.close()
        wait_for(lambda: server.metric('edgelm_model_users{model="tiny-random"}') == 0, 60)


def test_answers_that_are_kept_until_they_are_whole_are_bounded_and_streamed_ones_are_not():
    body = {"prompt": ["a", "b"], "n": 2, "max_tokens": 50, "logprobs": 4, "logit_bias": {"65": 100}}
    few = "from edgelm.server import answers\nanswers.MAX_TEXTS = 1000"
    with EdgelmServer((TINY, "--quiet"), prelude=few) as server:
        words = "The answers have more than 1000 pieces and log-probabilities"
        refused(server.post("/v1/completions", body), 400, words)  # 4 answers of 50 tokens with 6 of them each
        assert server.post("/v1/completions", body | {"n": 1}).status == 200
        assert server.post("/v1/completions", body | {"stream": True}).events[-1] == "[DONE]"
        assert server.metric('edgelm_model_users{model="tiny-random"}') == 0


def test_an_answer_ends_when_the_time_of_a_request_is_over(hasty_serving):
    fields = {"messages": HELLO, "logit_bias": {"65": 100}}
    choice = hasty_serving.post(CHAT, fields).json["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"]) < 100  # 1.5 s at 20 ms a token


def test_a_body_of_ten_megabytes_is_refused_and_the_client_can_read_that(serving):
    refused(
        serving.post(CHAT, b"x" * 10_000_000),
        413,
        "The body has more than 1048576 bytes. Send fewer or shorter texts at once.",
    )


def test_a_body_that_says_it_is_huge_is_refused_at_once(serving):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nContent-Length: {10**15}\r\n\r\n"
    answer = read_all(serving.send(head.encode()))
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_chunked_body_without_end_is_refused(serving):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = serving.send(head.encode())
    with pytest.raises(ConnectionError):  # long before the 65 MB are sent
        connection.sendall((b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 1000)


def test_a_body_whose_end_is_said_in_two_ways_is_refused_and_nothing_behind_it_is_answered(serving):
    host = f"Host: {serving.host}:{serving.port}\r\n"
    framing = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    second = f"GET /health HTTP/1.1\r\n{host}\r\n"
    connection = serving.send(f"POST {CHAT} HTTP/1.1\r\n{host}{framing}\r\n0\r\n\r\n{second}".encode())
    answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1


def test_what_is_thrown_away_of_a_large_body_takes_no_memory():
    parts = 15

    async def receive():
        nonlocal parts
        parts -= 1
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": parts > 0}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    tracemalloc.start()
    with pytest.raises(ApiError, match="The body has more than 1048576 bytes"):
        asyncio.run(read_json(request, RequestLimits(), {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # 2 MB measured: what is kept, and the part that comes
    assert parts == 0


def test_who_leaves_in_the_middle_of_a_body_is_no_failure_of_the_server(serving):
    figure = f'edgelm_requests_total{{route="{CHAT}",status="499"}}'
    before = serving.metric(figure)
    serving.send(serving.post_bytes(CHAT, {"messages": HELLO})[:-1]).close()
    wait_for(lambda: serving.metric(figure) > before)
    assert serving.metric(figure) == before + 1


def test_a_large_body_that_waits_to_be_asked_for_is_not(serving):
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nContent-Length: {2 << 20}\r\n"
    answer = read_all(serving.send(f"{head}Expect: 100-continue\r\n\r\n".encode()))
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_compressed_body_is_refused_unread(serving):
    bomb = gzip.compress(b" " * 50_000_000)
    refused(serving.post(CHAT, bomb, Content_Encoding="gzip"), 415, "A compressed body is not taken")


def test_a_head_without_end_is_refused(serving):
    connection = send_until_it_is_cut(serving, b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 200_000)
    assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")


@pytest.mark.parametrize("nesting", [65, 1000, 100_000])
def test_deep_json_is_refused(serving, nesting):
    body = b'{"metadata":' + b"[" * nesting + b"]" * nesting + b"}"
    refused(serving.post(CHAT, body), 400, "The body is nested deeper than 64 levels.")


def test_json_as_deep_as_allowed_is_taken(serving):
    body = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"metadata":%s}' % (b"[" * 63 + b"]" * 63)
    assert serving.post(CHAT, body).status == 200


def test_a_schema_whose_references_lead_without_end_ends_no_server(serving):
    steps = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(9000)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**steps, "d9000": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    refused(serving.post(CHAT, {"messages": HELLO, "response_format": form}), 400, "its references lead 9004 levels")
    assert serving.get("/health").status == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "The body is not JSON"),
        (b"[]", "The body is not a JSON object."),
        (b"\xff\xfe{}", "The body is not UTF-8."),
        (b'{"messages": [{"role": "user", "content": "\xc3\x28"}]}', "The body is not UTF-8."),
        (b'{"temperature": NaN}', "NaN is no number in JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is no number in JSON"),
        (b'{"temperature": 1e999}', "1e999 is out of range"),
        (b'{"temperature": ' + b"9" * 5000 + b"}", "The body is not JSON"),
        (b'{"messages": [], "seed": ' + b"9" * 400 + b"}", "messages has 0 items"),
        (b'{"messages": [{"role":"user","content":"x"}], "seed": ' + b"9" * 400 + b"}", "seed is 999"),
        (b'{"messages": [{"role":"user","content":"x"}], "max_tokens": -1e9}', "max_tokens is -1000000000; it"),
        (b'{"messages": [{"role":"user","content":"x"}], "max_tokens": 1e300}', "max_tokens is 1000000000"),
        (b'{"messages": [{"role":"user","content":"x"}], "n": -1}', "n is -1; it must be from 1 to 8."),
        (b'{"messages": [{"role":"user","content":"x"}], "logprobs": true, "top_logprobs": 1000}', "from 0 to 20"),
        (b'{"messages": [{"role":"user","content":"x"}], "' + b"a" * 5000 + b'": 1}', "There is no field 'aaa"),
        (b'{"n": 1}', "messages is missing."),
        (b'{"messages": [' + b"[]," * 82_000 + b"1]}", "The body has more than 163840 values."),
        (b'{"messages": [' + b"1," * 163_900 + b"1]}", "The body has more than 163840 values."),
        (b'{"a": "' + b"[" * 300_000, "The body is not JSON: Unterminated string"),
        (b'{"messages": {"a": 1}}', "messages is {'a': 1}; it must be a list."),
    ],
)
def test_what_is_no_request_is_refused(serving, body, words):
    reply = serving.post(CHAT, body)
    refused(reply, 400, words)
    assert len(reply.data) < 500


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (CHAT, {"messages": HELLO * 2049}, "messages has 2049 items; it must have 1 to 2048."),
        (CHAT, {"messages": HELLO, "tools": [TOOL] * 129}, "tools has 129 items; it must have 0 to 128."),
        ("/v1/completions", {"prompt": ["x"] * 129}, "prompt has 129 items; it must have 1 to 128."),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input has 2049 items; it must have 1 to 2048."),
        ("/v1/responses", {"input": HELLO * 2049}, "input has 2049 items; it must have 1 to 2048."),
        (
            "/v1/messages",
            {"messages": HELLO * 2049, "max_tokens": 1},
            "messages has 2049 items; it must have 1 to 2048.",
        ),
    ],
)
def test_lists_have_a_longest(serving, path, body, words):
    refused(serving.post(path, body), 400, words)


def test_a_text_full_of_commas_and_quotes_counts_as_one_value(serving):
    text = r"[1,2],{\"a\":3}\\" * 20_000  # in JSON: its quotes and its last backslash are escaped
    body = b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1,"metadata":{"a":"%s"}}' % text.encode()
    assert serving.post(CHAT, body).status == 200


def test_max_tokens_of_a_billion_is_the_context(serving):
    reply = serving.post(CHAT, {"messages": HELLO, "max_tokens": 10**9, "logit_bias": {"65": 100}})
    assert reply.status == 200
    assert reply.json["choices"][0]["finish_reason"] == "length"
    # The last token is drawn from the full context, and does not enter it.
    context_length = serving.get("/v1/models").json["data"][0]["context_length"]
    assert reply.json["usage"]["total_tokens"] == context_length + 1


def test_a_foreign_url_is_never_fetched(serving):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.3)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    refused(serving.post(CHAT, {"messages": [{"role": "user", "content": content}]}), 400, "no URL is ever fetched")
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_model_is_no_path(serving, tmp_path):
    for name in ("/etc", "..", str(tmp_path), "tiny-random/../tiny-random", "\x00", "a" * 5000):
        refused(serving.post(CHAT, {"model": name, "messages": HELLO}), 404, "There is no model")


@pytest.mark.parametrize(
    "path",
    [
        "/../etc/passwd", "/%2e%2e/etc/passwd", "/v1/models/..%2f..%2fetc", "/\x7f", "//",
        "/page/../guard.py", "/page/..%2fguard.py", "/page/%2e%2e/guard.py", "/page//etc/passwd",
    ],
)  # fmt: skip
def test_a_path_that_is_none_of_ours_is_not_found(serving, path):
    head = f"GET {path} HTTP/1.1\r\nHost: {serving.host}:{serving.port}\r\nConnection: close\r\n\r\n"
    connection = serving.send(head.encode())
    assert read_all(connection).split()[1] in (b"404", b"400")


@pytest.mark.parametrize("noise", [b"\x16\x03\x01", b"\r\n" * 5000, b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100_000])
def test_what_is_no_http_is_refused(serving, noise):
    connection = send_until_it_is_cut(serving, noise)
    connection.settimeout(15)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
    assert b"200" not in read_all(connection)[:20]


def test_an_upgrade_to_another_protocol_is_passed_over(serving):
    reply = serving.get("/health", Connection="Upgrade", Upgrade="websocket")
    assert reply.status == 200


def test_a_hundred_requests_at_once_are_all_answered(serving):
    request = serving.post_bytes(CHAT, {"messages": HELLO, "max_tokens": 2})
    connections = [serving.send(request) for _ in range(60)]
    statuses = []
    for connection in connections:
        statuses.append(connection.recv(12).split()[1])
        connection.close()
    assert set(statuses) <= {b"200", b"429"}
    assert statuses.count(b"200") >= 8


def test_metrics_count_what_was_refused(serving):
    before = serving.metric('edgelm_requests_total{route="/v1/chat/completions",status="400"}')
    serving.post(CHAT, b"{")
    assert serving.metric('edgelm_requests_total{route="/v1/chat/completions",status="400"}') == before + 1
    assert json.loads(serving.get("/health").data)["status"] == "ok"
