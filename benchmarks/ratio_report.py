"""What the reports of ratios have in common: how a time is taken, the heading, and how a ratio is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from statistics import median

from edgelm import LanguageModel
from machine import command, describe_machine
from workload import THREADS


def timed(work: Callable[[], object]) -> float:
    """Return how long it takes, in milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def print_heading(title: str, model: LanguageModel, threads: str = f"{THREADS} threads") -> None:
    """Print what was measured, how, and on which machine."""
    machine = describe_machine()
    packages = machine["packages"]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"# {title}: {model.name}, {model.manifest.precision}\n")
    print(f"`{command()}`, {machine['date']}, commit {machine['commit']}, {threads} on")
    print(f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['instruction_sets'])}),")
    print(f"Python {machine['python']}, onnxruntime {packages['onnxruntime']}, numpy {packages['numpy']}.")
    print(f"The machine's load at the end: {load}.\n")


def spread(ratios: Sequence[float]) -> str:
    """Write the median of the ratios, and the least and greatest."""
    return f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
