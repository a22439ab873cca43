"""Load on a real server, for long: python tests/load/soak.py [PACKAGE] [--minutes 10] [--tokens 1000000] [--plot FILE]

Clients stream answers from `edgelm serve`, more of them than it computes at once; each answer must be the one that the
plain loop gives to its request alone. Meanwhile the server's memory, threads and open files are watched. It ends when
both the minutes and the tokens are reached, and prints what it measured; it fails where an answer differs, or where
something grows.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from edgelm_server import CHAT, TINY, EdgelmServer

import edgelm
from edgelm import LanguageModel
from edgelm.decoding.answer import join

TEXT = "/v1/completions"
WORDS = (
    "The",
    "sea",
    "is",
    "blue",
    "and",
    "the",
    "wind",
    "sings",
    "over",
    "a",
    "small",
    "boat",
    "that",
    "nobody",
    "owns",
)
# The system takes memory back late; the first part of a run fills caches and pools.
WARM_UP = 0.2
# The server's pool starts a thread only where all that it has are busy at one moment: which may first be late in a run.
POOL = min(32, (os.cpu_count() or 1) + 4)  # asyncio's own number
MOST_GROWTH = 1.0  # MB a minute
LEAST_MINUTES = 5.0  # behind the warm-up: in less, the system's own few MB are a growth of many a minute


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, and the answer that it has alone."""

    path: str
    body: dict[str, Any]
    text: str
    finish_reason: str
    tokens: int


@dataclass
class Figures:
    """What the clients and the watch have seen; shared between threads."""

    answers: int = 0
    tokens: int = 0
    refused: int = 0
    differences: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    before: Sample | None = None  # the model being loaded
    after: Sample | None = None  # the last client being gone
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The server's process at one moment; memory in bytes."""

    seconds: float
    memory: int
    threads: int
    descriptors: int
    tokens: int


def asks(model: LanguageModel, count: int, longest: int) -> list[Ask]:
    """Make requests of all kinds, and answer each alone with the plain loop."""
    random = Random(0)
    made = []
    for number in range(count):
        fields: dict[str, Any] = {"max_tokens": random.randint(1, longest), "seed": number}
        fields["temperature"] = random.choice((0.0, 0.7, 1.5))
        if random.random() < 0.3:
            fields["stop"] = [random.choice(("e", " the", "\n", "a b"))]
        if random.random() < 0.3:
            fields["top_p"] = 0.9
        words = " ".join(random.choice(WORDS) for _ in range(random.choice((1, 5, 30, 90))))
        config = model.generation_config.replace(
            max_new_tokens=fields["max_tokens"], **{name: fields[name] for name in fields if name != "max_tokens"}
        )
        if random.random() < 0.5:
            path, prompt = CHAT, {"messages": [{"role": "user", "content": words}]}
            alone = join(model.stream_chat(prompt["messages"], config))
        else:
            path, prompt = TEXT, {"prompt": words}
            alone = join(model.stream(words, config))
        body = prompt | fields | {"stream": True, "stream_options": {"include_usage": True}}
        made.append(
            Ask(
                path=path,
                body=body,
                text=alone.text,
                finish_reason=alone.finish_reason,
                tokens=alone.usage.completion_tokens,
            )
        )
    return made


def stream(server: EdgelmServer, ask: Ask) -> tuple[int, str, str | None, int]:
    """Send a request, and read its answer as a client does: status, text, why it ended, how many tokens."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=300)
    try:
        connection.request("POST", ask.path, json.dumps(ask.body).encode())
        response = connection.getresponse()
        if response.status != 200:
            return response.status, response.read().decode(), None, 0
        text, reason, tokens, done = [], None, 0, False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            assert not done, "something comes after [DONE]"
            if line == b"data: [DONE]\n":
                done = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return 200, str(event["error"]), "error", 0
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                text.append(choice["text"] if ask.path == TEXT else choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
        return 200, "".join(text), reason if done else "no [DONE]", tokens
    finally:
        connection.close()


def run_client(server: EdgelmServer, asked: Sequence[Ask], seed: int, over: threading.Event, figures: Figures) -> None:
    """Ask one thing after the other until it is over."""
    random = Random(seed)
    while not over.is_set():
        ask = random.choice(asked)
        try:
            status, *answer = stream(server, ask)
        except Exception as error:
            status, answer = 0, [repr(error), None, 0]
        expected = [ask.text, ask.finish_reason, ask.tokens]
        with figures.lock:
            if status == 429:
                figures.refused += 1
                continue
            figures.answers += 1
            figures.tokens += ask.tokens
            if status != 200 or answer != expected:
                figures.differences.append(f"{status} {ask.body}: {answer}, alone {expected}")


def sample(server: EdgelmServer, started: float, figures: Figures) -> Sample:
    """Look at the server's process."""
    process = Path(f"/proc/{server.pid}")
    return Sample(
        seconds=time.monotonic() - started,
        memory=server.memory,
        threads=len(list((process / "task").iterdir())),
        descriptors=len(list((process / "fd").iterdir())),
        tokens=figures.tokens,
    )


def soak(
    server: EdgelmServer, asked: Sequence[Ask], *, clients: int, seconds: float, tokens: int = 0, every: float = 1.0
) -> Figures:
    """Keep `clients` streaming until both limits are reached, and watch the server; leave at the first difference."""
    figures, over = Figures(), threading.Event()
    threads = [
        threading.Thread(target=run_client, args=(server, asked, seed, over, figures), daemon=True)
        for seed in range(clients)
    ]
    stream(server, asked[0])
    started = time.monotonic()
    figures.before = sample(server, started, figures)
    for thread in threads:
        thread.start()
    with contextlib.suppress(KeyboardInterrupt):  # what was measured until then counts
        while time.monotonic() - started < seconds or figures.tokens < tokens:
            time.sleep(every)
            figures.samples.append(sample(server, started, figures))
            if figures.differences:
                break
    over.set()
    for thread in threads:
        thread.join(300)
    figures.after = settled(server, started, figures)
    return figures


def settled(server: EdgelmServer, started: float, figures: Figures) -> Sample:
    """Return how the server is when it has seen that the clients are gone."""
    assert figures.before is not None
    deadline = time.monotonic() + 30
    while True:
        after = sample(server, started, figures)
        if after.descriptors <= figures.before.descriptors or time.monotonic() > deadline:
            return after
        time.sleep(0.1)


def leaks(figures: Figures) -> list[str]:
    """Name what the server still has of clients that are gone: files, and threads that its pool does not explain."""
    assert figures.before is not None
    assert figures.after is not None
    found = []
    if figures.after.descriptors > figures.before.descriptors:
        found.append(f"{figures.before.descriptors} open files before, {figures.after.descriptors} after")
    if figures.after.threads > figures.before.threads + POOL:
        found.append(f"{figures.before.threads} threads before, {figures.after.threads} after, of a pool of {POOL}")
    return found


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples behind the warm-up."""
    return samples[int(len(samples) * WARM_UP) :]


def spread(values: Sequence[int]) -> str:
    """Write the least and the most of some values."""
    return f"{min(values)} to {max(values)}"


def growth(samples: Sequence[Sample]) -> float | None:
    """Return how the memory grows behind the warm-up, in MB a minute: the slope of the line through all samples.

    None where that took less than LEAST_MINUTES.
    """
    later = warm(samples)
    minutes = np.array([one.seconds for one in later]) / 60
    if not len(minutes) or minutes[-1] - minutes[0] < LEAST_MINUTES:
        return None
    return float(np.polyfit(minutes, np.array([one.memory for one in later]) / 1e6, 1)[0])


def describe(figures: Figures) -> str:
    """Write the figures as rows of a table."""
    assert figures.before is not None
    assert figures.after is not None
    later = warm(figures.samples)
    first, last = later[0], later[-1]
    grown = growth(figures.samples)
    rows = {
        "minutes": f"{last.seconds / 60:.1f}",
        "answers, each as alone": f"{figures.answers:,}",
        "tokens": f"{figures.tokens:,} ({figures.tokens / last.seconds:.0f} a second)",
        "refused, the queue being full": f"{figures.refused:,}",
        "memory after the warm-up, and at the end": f"{first.memory / 1e6:.1f} MB, {last.memory / 1e6:.1f} MB",
        "growth of it": f"not judged below {LEAST_MINUTES:g} minutes" if grown is None else f"{grown:.3f} MB a minute",
        "threads": f"{spread([one.threads for one in later])}; before {figures.before.threads}, "
        f"after {figures.after.threads}",
        "open files": f"{spread([one.descriptors for one in later])}; before {figures.before.descriptors}, "
        f"after {figures.after.descriptors}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def plot(figures: Figures, path: Path, title: str) -> None:
    """Draw memory, and the tokens of each second, over the run."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "edgelm"
    from matplotlib import pyplot

    minutes = [one.seconds / 60 for one in figures.samples]
    picture, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    above.plot(minutes, [one.memory / 1e6 for one in figures.samples])
    above.set(title=title, ylabel="memory of the server, MB", ylim=(0, None))
    step = max(1, len(figures.samples) // 200)
    spots = figures.samples[::step]
    rates = [(b.tokens - a.tokens) / (b.seconds - a.seconds) for a, b in itertools.pairwise(spots)]
    below.plot([one.seconds / 60 for one in spots[1:]], rates)
    below.set(xlabel="minutes", ylabel="tokens a second", ylim=(0, None))
    picture.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("package", nargs="?", default=TINY, help="a package's folder or name; none: the tiny model")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200, help="how many different ones are sent")
    parser.add_argument("--longest", type=int, default=200, help="tokens of an answer")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, as SVG")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    asked = asks(edgelm.load(arguments.package), arguments.requests, arguments.longest)
    with EdgelmServer((arguments.package, "--batch", str(arguments.slots), "--quiet")) as server:
        figures = soak(
            server, asked, clients=arguments.clients, seconds=arguments.minutes * 60, tokens=arguments.tokens
        )
        # Before it is stopped: figures of an hour must not be lost to a server that does not end.
        if arguments.plot is not None:
            plot(figures, arguments.plot, f"{arguments.clients} clients on {arguments.slots} slots")
        print(describe(figures))
        kinds = Counter(ask.path for ask in asked)
        print(f"\n{len(asked)} different requests: {kinds[CHAT]} chats, {kinds[TEXT]} texts.", flush=True)
        code = server.stop()
    if figures.differences:
        sys.stderr.writelines(server.log)
        sys.exit(f"{len(figures.differences)} answers differ, the first: {figures.differences[0]}")
    if leaks(figures):
        sys.exit(f"Something is left: {'; '.join(leaks(figures))}.")
    grown = growth(figures.samples)
    if grown is not None and grown >= MOST_GROWTH:
        sys.exit(f"The memory grows by {grown:.2f} MB a minute.")
    if code != 0:
        sys.exit(f"The server ended with {code}: {''.join(server.log)}")


if __name__ == "__main__":
    main()
