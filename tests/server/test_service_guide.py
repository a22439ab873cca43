"""The unit and the proxies of the guide to the server, as the programs that they are written for take them."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from edgelm_server import CHAT, SLOW, TINY, EdgelmServer

from edgelm.cli.config_file import name_variables
from edgelm.cli.main import main
from edgelm.cli.serve import KEY_VARIABLE, serve
from edgelm.server import process
from edgelm.server.options import ServerOptions

GUIDE = (Path(__file__).parents[2] / "docs/guides/server.md").read_text()
NAME = "llm.example.org"


def block(after: str) -> str:
    """Return the first block of code behind some words of the guide."""
    match = re.search(r"```\w+\n(.*?)```", GUIDE.partition(after)[2], re.DOTALL)
    assert match is not None
    return match[1]


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def proxied() -> Iterator[EdgelmServer]:
    """A server that proxies stand before, 20 ms a token."""
    with EdgelmServer((TINY, "--allowed-host", NAME), prelude=SLOW) as server:
        yield server


@contextmanager
def running(port: int, *command: str | Path) -> Iterator[None]:
    """Run a proxy until the block ends, which begins when it listens."""
    with subprocess.Popen([*command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                time.sleep(0.02)
            yield
        finally:
            process.terminate()


def ask(port: int, path: str, body: object = None) -> http.client.HTTPConnection:
    """Send a request to a proxy, by the name that it serves."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), {"Host": NAME})
    return connection


def status(port: int, path: str) -> int:
    with ask(port, path).getresponse() as answer:
        return answer.status


def check_stream(port: int, server: EdgelmServer, path: str = CHAT) -> None:
    """Check that an answer's first word comes while the others are made, and that they end when the client leaves."""

    def users() -> float:
        return server.metric('edgelm_model_users{model="tiny-random"}')

    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": 900, "stream": True, "logit_bias": {"65": 100}}  # 18 s
    connection = ask(port, path, body)
    with connection.getresponse() as answer:
        assert answer.readline().startswith(b"data: ")
        assert users() == 1
    connection.close()
    for _ in range(500):
        if users() == 0:
            return
        time.sleep(0.02)
    raise AssertionError("the answer goes on for nobody")


def test_the_variables_of_the_guide_set_options_of_the_server():
    name_variables(serve, "EDGELM_serve")
    known = {parameter.envvar for parameter in serve.params if isinstance(parameter, click.Option)}
    part = GUIDE.partition("## As a service")[2].partition("\n## ")[0]
    named = set(re.findall(r"EDGELM_\w+", part)) - {KEY_VARIABLE, "EDGELM_HOME"}
    assert named
    assert named <= known
    assert set(re.findall(r"`(--[\w-]+)", part)) <= {name for option in serve.params for name in option.opts}


def test_the_unit_starts_the_command_as_it_is():
    match = re.search(r"^ExecStart=\S+/edgelm (.*)$", block("## As a service"), re.MULTILINE)
    assert match is not None
    name, *arguments = match[1].split()
    command = main.get_command(click.Context(main), name)
    assert command is serve
    command.make_context(name, arguments)


@needs("systemd-analyze")
def test_systemd_understands_the_unit(tmp_path):
    unit = tmp_path / "edgelm.service"
    unit.write_text(block("## As a service").replace("/opt/edgelm/bin/edgelm", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def nginx(tmp_path: Path, server: EdgelmServer) -> Iterator[int]:
    """Run nginx as the guide has it, before this server and one that is not there; give its port."""
    port = free_port()
    site = block("nginx, with").replace("8080", str(server.port)).replace("8081", str(free_port()))
    site = re.sub(r" *ssl_.*\n", "", site.replace("listen 443 ssl", f"listen 127.0.0.1:{port}"))
    folders = " ".join(f"{name}_temp_path {tmp_path};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
    folders += f" client_body_temp_path {tmp_path};"
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {folders} {site} }}", encoding="ascii"
    )
    with running(port, "nginx", "-e", tmp_path / "log", "-p", tmp_path, "-c", config):
        yield port


@needs("nginx")
def test_nginx_passes_streams_on_as_they_are_made_also_below_a_path(proxied, tmp_path):
    with nginx(tmp_path, proxied) as port:
        assert status(port, "/health") == 200
        check_stream(port, proxied)
        check_stream(port, proxied, "/llm/v1/chat/completions")
        assert status(port, "/llm/page/app.js") == 200


@needs("nginx")
def test_nginx_goes_on_asking_servers_that_could_not_answer_one_request(tmp_path):
    package = shutil.copytree(TINY, tmp_path / "package")
    with (
        EdgelmServer((str(package), "--allowed-host", NAME)) as server,
        nginx(tmp_path, server) as port,
    ):
        (package / "model.onnx.data").unlink()
        connection = ask(port, CHAT, {"messages": [{"role": "user", "content": "Hello"}]})
        with connection.getresponse() as answer:
            assert answer.status in (502, 503)  # of the one that is not there, or of this one
        connection.close()
        assert status(port, "/health") == 200


@needs("caddy")
def test_caddy_passes_streams_on_as_they_are_made(proxied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    port = free_port()
    site = block("Caddy:").replace("8080", str(proxied.port)).replace(NAME, f"http://{NAME}:{port}")
    (tmp_path / "Caddyfile").write_text("{\n  admin off\n}\n" + site)
    # A port of its own is in the Host that clients send, and so in the option; here the client leaves it out.
    with running(port, "caddy", "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"):
        assert status(port, "/health") == 200
        check_stream(port, proxied)


@needs("haproxy")
def test_haproxy_finds_the_server_healthy_and_passes_streams_on(proxied, tmp_path):
    port = free_port()
    backend = block("haproxy, whose").replace("8080", str(proxied.port)).replace("check\n", "check inter 100\n")
    front = f"frontend web\n    bind 127.0.0.1:{port}\n    timeout client 60s\n    default_backend edgelm\n"
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"defaults\n    mode http\n    timeout connect 5s\n{front}{backend}")
    with running(port, "haproxy", "-f", config):
        time.sleep(0.3)  # a server counts as healthy until a check has failed
        assert status(port, "/health") == 200
        check_stream(port, proxied)


def test_a_connection_may_rest_longer_than_proxies_keep_one(monkeypatch):
    rests = []
    monkeypatch.setattr(process._Server, "run", lambda server, sockets: rests.append(server.config.timeout_keep_alive))
    process.serve((TINY,), ServerOptions(port=0))
    (guide,) = re.findall(r"requests on a connection \| (\d+) s, .* \(nginx (\d+), Caddy (\d+)\)", GUIDE)
    assert rests == [int(guide[0])]
    assert rests[0] > max(map(int, guide[1:]))
