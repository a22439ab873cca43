"""Measure eight requests at once on `edgelm serve` and on llama.cpp's server: python benchmarks/servers.py

Both have as many threads and eight places, and answer the same client: streamed completions of the same token ids,
greedy, of a fixed length. Every prompt is of fresh random tokens, so that neither has computed its beginning before.
The first call compiles llama.cpp's server (llama_server.py); then about two minutes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

import click
import numpy as np

import edgelm
from edgelm import SessionOptions
from llama_server import llama_server
from prepare import CACHE, prepare_models
from ratio_report import print_heading, spread
from workload import THREADS, Workload

PLACES = 8
WORKLOADS = (Workload(prompt_tokens=32, new_tokens=64), Workload(prompt_tokens=256, new_tokens=128))
_ORDINARY_TOKENS = (1000, 49000)  # of SmolLM2's
_SLOT_TOKENS = 1024
_PAUSE_SECONDS = 0.5
_START_SECONDS = 60.0
_EDGELM = "from edgelm.cli.main import main; main(prog_name='edgelm')"
_OURS, _THEIRS = "edgelm serve, int8", "llama.cpp's server, Q8_0"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that runs on this machine; model: its own name for the one that it has."""

    port: int
    model: str

    def complete(self, prompt_ids: Sequence[int], new_tokens: int) -> None:
        """Stream one answer to its end.

        Raises:
            ClickException: it has not as many tokens as were asked for.
        """
        body = {
            "model": self.model, "prompt": list(prompt_ids), "max_tokens": new_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            last = b""
            for line in response:
                if b'"usage"' in line:
                    last = line
        usage = json.loads(last.removeprefix(b"data: ") or b"{}").get("usage") or {}
        if usage.get("completion_tokens") != new_tokens:
            raise click.ClickException(
                f"{self.model} answered {response.status}, and gave {usage} of {new_tokens} tokens."
            )

    def rate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """Return the new tokens a second of all answers together, from the first request to the last token."""
        with ThreadPoolExecutor(len(prompts)) as clients:
            start = time.perf_counter()
            list(clients.map(lambda ids: self.complete(ids, new_tokens), prompts))
            return len(prompts) * new_tokens / (time.perf_counter() - start)


@contextlib.contextmanager
def running(name: str, command: Sequence[object]) -> Iterator[Server]:
    """Start a server, wait until it answers, and end it on leaving."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    log = CACHE / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as words, subprocess.Popen(
        [*map(str, command), "--port", str(port)], stdin=subprocess.DEVNULL, stdout=words, stderr=words
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + _START_SECONDS
            while (model := first_model(port)) is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    last_words = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise click.ClickException(f"{name} does not answer on port {port}:\n{last_words}")
                time.sleep(0.1)
            yield Server(port=port, model=model)
        finally:
            process.kill()


def first_model(port: int) -> str | None:
    """Return the name of what a server serves; None until it is ready."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/health")
            health = connection.getresponse()
            health.read()
            if health.status != http.HTTPStatus.OK:
                return None
            connection.request("GET", "/v1/models")
            return str(json.loads(connection.getresponse().read())["data"][0]["id"])
        except OSError:
            return None


def measure(servers: Sequence[Server], rounds: int) -> dict[tuple[Workload, int], list[list[float]]]:
    """Let the servers take turns; returns a rate of each, in their order, for each round, workload and requests."""
    rates: dict[tuple[Workload, int], list[list[float]]] = {}
    random = np.random.default_rng(0)
    for round_ in range(rounds + 1):  # the first one loads the models and fills every buffer, and does not count
        click.echo(f"Round {round_} of {rounds} ...", err=True)
        for workload in WORKLOADS:
            for requests in (1, PLACES):
                row = []
                for server in servers:
                    time.sleep(_PAUSE_SECONDS)
                    prompts = random.integers(*_ORDINARY_TOKENS, (requests, workload.prompt_tokens)).tolist()
                    row.append(server.rate(prompts, workload.new_tokens))
                if round_:
                    rates.setdefault((workload, requests), []).append(row)
    return rates


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Interleaved.")
def main(rounds: int) -> None:
    """Print the results as Markdown."""
    program, models = llama_server(), prepare_models("edgelm-int8", "llama-q8_0")
    package, gguf = models / "edgelm-int8", models / "llama-q8_0.gguf"
    ours = [sys.executable, "-c", _EDGELM, "serve", package, "--batch", PLACES, "--threads", THREADS]
    theirs = [program, "-m", gguf, "-np", PLACES, "-c", PLACES * _SLOT_TOKENS, "-t", THREADS]
    with contextlib.ExitStack() as stack:
        commands = {"edgelm-server": ours, "llama-server": theirs}
        servers = [stack.enter_context(running(name, command)) for name, command in commands.items()]
        rates = measure(servers, rounds)
    model = edgelm.load(package, SessionOptions(threads=THREADS))
    print_heading("Beside llama.cpp's server", model)
    print(f"| requests at once, prompt + new tokens | {_OURS}: tokens/s | {_THEIRS}: tokens/s | ratio |")
    print("|---|---|---|---|")
    for (workload, requests), pairs in rates.items():
        mine, peers = (median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = spread([one / other for one, other in pairs])
        print(f"| {requests}, {workload.name} | {mine:.0f} | {peers:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
