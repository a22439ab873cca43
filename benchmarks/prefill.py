"""How fast prompts are read: edgelm without and with the prefill graph, and others beside it.

python benchmarks/prefill.py > prefill.md
python benchmarks/prefill.py --openvino VENV/bin/python   # python -m venv VENV && VENV/bin/pip install openvino-genai
python benchmarks/prefill.py --tokens 8000 --beside llama-q8_0 --beside genai-int8
"""

from __future__ import annotations

import contextlib
import time
from statistics import median

import click

import edgelm
from contestants import CONTESTANTS, Contestant
from edgelm import SessionOptions
from prepare import CACHE, PREFILL_MODEL, gguf_file, prepare_models
from ratio_report import print_heading, spread
from worker import Worker
from workload import THREADS, text_ids

NEW_TOKENS = 32
_PAUSE_SECONDS = 0.2
_NAMES = ("edgelm-int8", PREFILL_MODEL)
_OPENVINO = Contestant(
    name="openvino", label="OpenVINO GenAI, Q4_1", engine="openvino_engine", model="", baseline="llama-q8_0"
)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved, of each prompt.")
@click.option("--tokens", "lengths", multiple=True, default=(512, 2048), show_default=True, help="Of a prompt.")
@click.option(
    "--beside", multiple=True, type=click.Choice([row.name for row in CONTESTANTS if row.timed]),
    help="Measure this one too (repeatable).",
)  # fmt: skip
@click.option("--openvino", metavar="PYTHON", help="The Python of an environment with openvino-genai.")
def main(rounds: int, lengths: tuple[int, ...], beside: tuple[str, ...], openvino: str | None) -> None:
    """Print the results as Markdown."""
    models = prepare_models(*_NAMES, *beside)
    ids = text_ids(models / "checkpoint")
    chosen = [contestant for contestant in CONTESTANTS if contestant.name in (*_NAMES, *beside)]
    places = {contestant: models / contestant.model for contestant in chosen}
    pythons: dict[Contestant, str] = {}
    if openvino is not None:
        places[_OPENVINO], pythons[_OPENVINO] = gguf_file(), openvino
    rates: dict[tuple[Contestant, int], list[float]] = {}
    steps: dict[tuple[Contestant, int], list[float]] = {}
    with contextlib.ExitStack() as stack:
        workers = {
            contestant: stack.enter_context(
                Worker(
                    contestant,
                    place,
                    huge_pages=False,
                    context=max(lengths) + NEW_TOKENS,
                    log=CACHE / "logs" / f"{contestant.name}.log",
                    python=pythons.get(contestant),
                )
            )
            for contestant, place in places.items()
        }
        for worker in workers.values():  # fills the buffers, and does not count
            worker.ask("generate", prompt_ids=ids[: max(lengths)], new_tokens=NEW_TOKENS)
        for _ in range(rounds):
            for tokens in lengths:
                for contestant, worker in workers.items():
                    time.sleep(_PAUSE_SECONDS)
                    answer = worker.ask("generate", prompt_ids=ids[:tokens], new_tokens=NEW_TOKENS)
                    rates.setdefault((contestant, tokens), []).append(tokens / answer["first_token"])
                    steps.setdefault((contestant, tokens), []).append(1 / median(answer["steps"]))
        memory = {contestant: worker.ask("memory")["peak_bytes"] for contestant, worker in workers.items()}
    model = edgelm.load(models / PREFILL_MODEL, SessionOptions(threads=THREADS))
    print_heading("Reading prompts", model)
    plain = chosen[0]
    print("| runtime | tokens | prompt, tokens/s | of edgelm int8's | answer, tokens/s | of edgelm int8's | peak, MB |")
    print("|---|---|---|---|---|---|---|")
    for contestant in workers:
        for tokens in lengths:
            cells = [contestant.label, str(tokens)]
            for figures in (rates, steps):
                mine, base = figures[contestant, tokens], figures[plain, tokens]
                cells += [f"{median(mine):.0f}", spread([one / other for one, other in zip(mine, base, strict=True)])]
            print(f"| {' | '.join(cells)} | {memory[contestant] / 1e6:.0f} |")


if __name__ == "__main__":
    main()
