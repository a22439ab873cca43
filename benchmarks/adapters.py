"""Measure what adapters cost: python benchmarks/adapters.py [PACKAGE]

Memory is what the process holds besides mapped files. Steps are taken in turn, on one thread and in its CPU time, so
that other work on the machine weighs little. docs/results/adapters.md has what came out. About a minute.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
from safetensors.numpy import save_file

import edgelm
from edgelm import LanguageModel, SessionOptions
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import KVCache
from edgelm.package.peft_format import CONFIG_FILE, WEIGHTS_FILE, tensor_names
from edgelm.runtime.session import PREFILL_CHUNK
from edgelm_export.adapters.adapter_exporter import export_adapter
from prepare import prepare_models
from ratio_report import print_heading

FILLED = 512
RANK = 16
ROWS = 8
NAMES = ("first", "second", "third", "fourth")


def write_peft_adapter(model: LanguageModel, folder: Path, seed: int) -> Path:
    """Write a random adapter of every projection, as training would."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in model.config.tensor_shapes().items():
        if name.endswith("_proj.weight"):
            a, b = tensor_names(name.removesuffix(".weight"))
            tensors[a] = random.standard_normal((RANK, shape[1]), np.float32) * np.float32(0.02)
            tensors[b] = random.standard_normal((shape[0], RANK), np.float32) * np.float32(0.02)
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))
    return folder


def held_megabytes() -> float:
    """Return the memory that is this process's own, without mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def steps(model: LanguageModel, name: str | None, ids: list[int]) -> dict[str, Callable[[], object]]:
    """Return a step of one token, a prompt's chunk and a step of rows, with an adapter (the rows: with all in turn)."""
    session = model.session
    cache, prompt = session.new_cache(), session.new_cache()
    cache.use_adapter(name)
    prompt.use_adapter(name)
    fill(session.forward, cache, ids)
    batch = KVBatch(model.config)
    for row in [batch.add() for _ in range(ROWS)]:
        row.use_adapter(name and NAMES[row.place % len(model.adapters)])
        fill(session.forward, row, ids)
        batch.activate(row)

    def step() -> None:
        session.forward(ids[-1:], cache)
        cache.truncate(FILLED)

    def chunk() -> None:
        session.forward(ids[:PREFILL_CHUNK], prompt)
        prompt.truncate(0)

    def rows() -> None:
        session.forward_rows(ids[-1:] * ROWS, batch)
        for row in batch.rows:
            row.truncate(FILLED)

    return {"one token": step, f"{PREFILL_CHUNK} tokens of a prompt": chunk, f"{ROWS} rows": rows}


def fill(forward: Callable[[list[int], KVCache], object], cache: KVCache, ids: list[int]) -> None:
    for start in range(0, FILLED, PREFILL_CHUNK):
        forward(ids[start : start + PREFILL_CHUNK], cache)


@click.command()
@click.argument("package", required=False, type=click.Path(path_type=Path))
@click.option("--rounds", default=15, show_default=True)
def main(package: Path | None, rounds: int) -> None:
    """Print the results as Markdown; PACKAGE is an int8 package [default: SmolLM2-135M-Instruct]."""
    path = package or prepare_models("edgelm-int8") / "edgelm-int8"
    options = SessionOptions(threads=1)
    model = edgelm.load(path, options)
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, FILLED + 1).tolist()
    memory = {"the package alone": held_megabytes()}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(NAMES):
            source = write_peft_adapter(model, Path(folder) / f"peft-{name}", seed)
            size = export_adapter(source, path, Path(folder) / name).file.size / 2**20
            model.load_adapter(Path(folder) / name)
            memory[f"{seed + 1} loaded"] = held_megabytes()
        for name in NAMES:
            model.unload_adapter(name)
        memory["all unloaded"] = held_megabytes()
        plain = edgelm.load(path, options)
        for name in NAMES:
            model.load_adapter(Path(folder) / name)
    ways = {"alone": (plain, None), "loaded, not asked for": (model, None), "asked for": (model, NAMES[0])}
    work = {way: steps(*of, ids) for way, of in ways.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):  # the first one sets up
        for kind in work["alone"]:
            for way in ways:
                start = time.thread_time()
                work[way][kind]()
                times.setdefault((way, kind), []).append(1000 * (time.thread_time() - start))
    print_heading("Adapters", model, "1 thread")
    print(f"Adapters of rank {RANK} in every projection, {size:.1f} MiB each on the disk.\n")
    print("| | MiB held |\n|---|---|")
    for label, held in memory.items():
        print(f"| {label} | {held:.0f} |")
    print("\n| CPU ms | " + " | ".join(ways) + " |\n|---|---|---|---|")
    for kind in work["alone"]:
        print(f"| {kind} | " + " | ".join(f"{median(times[way, kind][1:]):.1f}" for way in ways) + " |")


if __name__ == "__main__":
    main()
