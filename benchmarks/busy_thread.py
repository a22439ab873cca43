"""Measure decoding beside a busy Python thread: python benchmarks/busy_thread.py [PACKAGE] > busy-thread.md

Every ratio is within one round, in which each case takes its turn. What the cores allow is the pace beside a busy
process, which has an interpreter of its own. One answer, and several at once in an engine. About two minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from unittest import mock

import click
import numpy as np

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, LanguageModel, PrefixCache, SessionOptions
from edgelm.decoding.answer import join
from edgelm.runtime.switch_interval import SHORT_SWITCH_INTERVAL
from prepare import prepare_models
from ratio_report import print_heading, spread

TOKENS = 64
PROMPT = list(range(1000, 1128))
CONFIG = GenerationConfig(max_new_tokens=TOKENS, ignore_eos=True)
_Case = tuple[Callable[[], float], Callable[[], AbstractContextManager[None]]]


def loop(stop: threading.Event) -> None:
    """Compute in Python alone."""
    count = 0
    while not stop.is_set():
        for _ in range(1000):
            count += 1


def json_and_numpy(stop: threading.Event, rows: int) -> None:
    """Write and read JSON, calls that keep the interpreter until they end, and compute with numpy, which do not."""
    document = [{"id": i, "text": f"some text {i}", "values": [i * 0.5] * 8} for i in range(rows)]
    array = np.random.default_rng(0).random((256, 256)).astype(np.float32)
    while not stop.is_set():
        json.loads(json.dumps(document))
        for _ in range(10):
            np.tanh(array).sum()


@contextmanager
def thread(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Let a thread of this program work."""
    stop = threading.Event()
    worker = threading.Thread(target=work, args=(stop, *arguments))
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


@contextmanager
def busy_process() -> Iterator[None]:
    """Let another program work."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def usual_interval() -> Iterator[None]:
    """Leave the interpreter's switch interval alone, as edgelm did before."""
    with mock.patch.object(SHORT_SWITCH_INTERVAL, "_seconds", sys.getswitchinterval()):
        yield


def pace(model: LanguageModel, engine: Engine | None, requests: int) -> float:
    """Tokens a second of each answer: of one alone, or of `requests` in an engine."""
    if engine is None:
        answers = [model.generate(PROMPT, CONFIG)]
    else:
        generations = [engine.submit([id_ + i for id_ in PROMPT], CONFIG) for i in range(requests)]
        answers = [join(generation) for generation in generations]
    return median(answer.timings.decode_tokens / answer.timings.decode_seconds for answer in answers)


def load(folder: Path, threads: int, requests: int) -> tuple[LanguageModel, Engine | None]:
    """Load the model, with an engine where several requests are to be answered."""
    model = edgelm.load(folder, SessionOptions(threads=threads))
    model.prefixes = PrefixCache(model.config, 0)
    engine = Engine(model, EngineOptions(max_batch=requests)) if requests > 1 else None
    pace(model, engine, requests)
    return model, engine


def serve(connection: Connection, folder: Path, threads: int, requests: int) -> None:
    """Be the process that has the model to itself: answer each message with a pace, until one is None."""
    model, engine = load(folder, threads, requests)
    connection.send(0.0)
    while connection.recv():
        connection.send(pace(model, engine, requests))
    if engine is not None:
        engine.close()


def measure(folder: Path, threads: int, requests: int, rounds: int) -> dict[str, list[float]]:
    """The pace of each case, round by round."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, folder, threads, requests))
    process.start()
    here.recv()
    model, engine = load(folder, threads, requests)

    def in_process() -> float:
        here.send(True)
        return float(here.recv())

    def own() -> float:
        return pace(model, engine, requests)

    def before() -> float:
        with usual_interval():
            return pace(model, engine, requests)

    cases: dict[str, _Case] = {"nothing": (own, nullcontext), "a busy process": (own, busy_process)}
    for name, busy in {
        "a loop": lambda: thread(loop),
        "JSON of 1 ms, numpy": lambda: thread(json_and_numpy, 300),
        "JSON of 60 ms, numpy": lambda: thread(json_and_numpy, 10_000),
    }.items():
        cases[f"{name}; interval of 5 ms"] = before, busy
        cases[f"{name}; interval of 0.1 ms (edgelm)"] = own, busy
        cases[f"{name}; model in a process of its own"] = in_process, busy
    paces: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (run, beside) in cases.items():
            with beside():
                paces[name].append(run())
    here.send(None)
    process.join()
    if engine is not None:
        engine.close()
    return paces


@click.command()
@click.argument("package", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=7, show_default=True, help="Of each measurement.")
@click.option("--requests", default=4, show_default=True, help="Answered at once by the engine.")
def main(package: Path | None, rounds: int, requests: int) -> None:
    """Print the results as Markdown; PACKAGE is an int8 package [default: SmolLM2-135M-Instruct]."""
    folder = package or prepare_models("edgelm-int8") / "edgelm-int8"
    print_heading("Beside a busy thread", edgelm.load(folder), "1 and 2 threads")
    for threads in (1, 2):
        for at_once in sorted({1, requests}):
            paces = measure(folder, threads, at_once, rounds)
            alone, allowed = paces["nothing"], paces["a busy process"]
            print(f"\n## {threads} threads, {at_once} at once\n")
            print("| beside it | tokens/s of each | of its pace alone | of what the cores allow |\n|---|---|---|---|")
            for name, own in paces.items():
                of_alone = spread([pace / other for pace, other in zip(own, alone, strict=True)])
                of_allowed = spread([pace / other for pace, other in zip(own, allowed, strict=True)])
                print(f"| {name} | {median(own):.0f} | {of_alone} | {of_allowed} |", flush=True)


if __name__ == "__main__":
    main()
