"""Doctor: what on this machine keeps edgelm from working, or from being fast, and what fixes it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from edgelm._version import __version__
from edgelm.counted import counted
from edgelm.errors import EdgeLMError
from edgelm.library.library import Library
from edgelm.memory.available_memory import available_memory
from edgelm.package.graph_file import graph_files
from edgelm.package.manifest import Manifest
from edgelm.package.package import open_package
from edgelm.package.slow_operators import slow_operators
from edgelm.runtime import onnx_runtime
from edgelm.runtime.cores import physical_cores
from edgelm.runtime.cpu import INTEGER_DOT_PRODUCTS, cpu_features, cpu_quota, usable_cores

# Wheels of other projects and of ONNX Runtime's own family that do not contain the module `onnxruntime`.
_BESIDE_ONNXRUNTIME = ("onnxruntime-genai", "onnxruntime-extensions", "onnxruntime-training")
# The oldest builds that edgelm runs on; OpenVINO's comes out later than the others.
_OLDEST, _OLDEST_OPENVINO = (1, 28), (1, 24)
_THREADS_VARIABLE = re.compile("EDGELM_[A-Z]+_THREADS")  # what stands for a command's --threads
_LITTLE_MEMORY = 1 << 30
_LITTLE_DISK = 1 << 30
_EXPORT_AGAIN = "`edgelm export SOURCE --precision int8`, from what the model was made of"
_WIDE_VECTORS = {"avx2", "asimd"}
# Without these ONNX Runtime does not multiply packed weights of 8 bits, but unpacks all of them at each step.
_PACKED_PRODUCTS = {"avx2", "asimddp", "i8mm"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. "warning": it works, but slower or with less room; "error": it does not."""

    topic: str
    state: Literal["ok", "warning", "error"]
    found: str
    fix: str | None = None


def examine(model: str | None, threads: Mapping[str, int]) -> Iterator[Finding]:
    """Look at everything, one check after the other; then at a model, given by name or path.

    threads: what else than the environment sets the threads of a command, each by the words for its place.
    """
    take_out = 'Take it out: $EDITOR "$(edgelm config --path)"'
    checks = [(topic, check()) for topic, check in CHECKS.items()]
    checks += [("threads", _check_setting(place, count, take_out)) for place, count in threads.items()]
    checks += [] if model is None else [("model", _check_model(model))]
    for topic, rows in checks:
        for state, found, fix in rows:
            yield Finding(topic=topic, state=state, found=found, fix=fix)


_Row = tuple[Literal["ok", "warning", "error"], str, str | None]


def _check_wheels() -> Iterator[_Row]:
    """Find the builds of ONNX Runtime: exactly one may be there, since all have the same import name."""
    names = sorted({(distribution.name or "").lower() for distribution in metadata.distributions()})
    wheels = [name for name in names if name.startswith("onnxruntime") and not name.startswith(_BESIDE_ONNXRUNTIME)]
    if len(wheels) > 1:
        both = " ".join(wheels)
        fix = f'`pip uninstall -y {both}`, and then `pip install "edgelm[cpu]"` (or "edgelm[gpu]")'
        yield "error", f"{' and '.join(wheels)} are both installed, and overwrite each other's files.", fix
        return
    if not wheels and importlib.util.find_spec("onnxruntime") is None:
        yield (
            "error",
            "ONNX Runtime is not installed.",
            '`pip install "edgelm[cpu]"` (with an NVIDIA GPU: "edgelm[gpu]")',
        )
        return
    # A build from source, or of a distribution, may come without a wheel's metadata.
    wheel, version = (wheels[0], metadata.version(wheels[0])) if wheels else ("onnxruntime", "of no wheel")
    try:
        runtime = onnx_runtime.describe_runtime()
    except Exception as error:  # whatever its import raises is the finding
        fix = f"pip install --force-reinstall {wheel}"
        yield "error", f"{wheel} {version} does not import: {type(error).__name__}: {error}", fix
        return
    oldest = _OLDEST_OPENVINO if wheel == "onnxruntime-openvino" else _OLDEST
    if tuple(int(part) for part in runtime.version.split(".")[:2]) < oldest:
        fix = f"pip install --upgrade {wheel}"
        yield "error", f"{wheel} {runtime.version} is older than {'.'.join(map(str, oldest))}.", fix
        return
    yield "ok", f"{wheel} {runtime.version}, devices: {', '.join(runtime.devices)}", None
    if wheel == "onnxruntime-gpu" and "GPU" not in " ".join(runtime.devices):
        fix = 'Install the driver of the GPU and `pip install "edgelm[gpu]"`, or take the smaller "edgelm[cpu]".'
        yield "warning", "The build for GPUs is installed, and finds none: it computes on the CPU.", fix
    if runtime.missing_library is not None:
        fix = '`pip install "edgelm[gpu]"` brings the libraries of CUDA and cuDNN; the driver of NVIDIA brings libcuda.'
        yield "warning", f"CUDA cannot be used: {runtime.missing_library}", fix


def _check_processor() -> Iterator[_Row]:
    features = cpu_features()
    if features is None:
        yield "ok", "Its instruction sets are not known on this system.", None
        return
    if not features & _PACKED_PRODUCTS:
        yield (
            "warning",
            "No dot products: weights of 8 bits are unpacked at each step, all of them, which is slow."
            if "asimd" in features
            else "No AVX2: every step is several times slower than on processors since 2013.",
            "`edgelm export SOURCE --precision fp32`, where there is memory for it: packed weights lose most here. Or "
            "run `edgelm serve` on another machine, and ask that.",
        )
    elif not features & INTEGER_DOT_PRODUCTS:
        yield (
            "warning",
            "No VNNI: 8-bit models run, and their prompts are read about half as fast.",
            "Where prompts are long: `edgelm export MODEL --prefill-graph`, which reads them 1.6 to 2 times as fast.",
        )
    else:
        yield "ok", f"Has {', '.join(sorted(features & (INTEGER_DOT_PRODUCTS | _WIDE_VECTORS)))}.", None


def _check_threads() -> Iterator[_Row]:
    cores, usable, quota = physical_cores(), usable_cores(), cpu_quota()
    limit = "" if quota is None else f"; the container gets the time of {quota:g}"
    yield "ok", f"{counted(cores, 'physical core')}{limit}: {counted(usable, 'thread')} a step.", None
    for name, value in sorted(os.environ.items()):
        if _THREADS_VARIABLE.fullmatch(name) and re.fullmatch("[0-9]{1,9}", value):
            yield from _check_setting(name, int(value), f"unset {name}")
    processors = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load >= processors / 2:
        busy = f"The load is {load:.1f} on {processors} processors: a step waits for the last of its threads."
        left = max(1, usable - round(load))
        fewer = f"Leave them a core with --threads {left}, or" if left < usable else "Look at `top`, and"
        yield "warning", busy, f"Other programs compute, or did. {fewer} end what you do not need."


def _check_setting(name: str, threads: int, fix: str) -> Iterator[_Row]:
    if threads > (usable := usable_cores()):
        too_many = f"{name} is {threads}, more threads than the {usable} that compute: a step takes twice as long."
        yield "warning", too_many, fix


def _check_memory() -> Iterator[_Row]:
    available = available_memory()
    if available is None:
        yield "ok", "How much is free is not known on this system.", None
    elif available < _LITTLE_MEMORY:
        fix = "Close other programs; take a smaller model or --precision int4."
        yield "warning", f"{available / 1e9:.1f} GB are free.", fix
    else:
        yield "ok", f"{available / 1e9:.1f} GB are free.", None


def _check_library() -> Iterator[_Row]:
    try:
        root = Library().root
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except (EdgeLMError, OSError) as error:
        if _has_packages():  # as that of a server may be
            found = f"The model library cannot be written: {error}. Its models run; none can be pulled or exported."
            yield "warning", found, "Where that is not meant so: set EDGELM_HOME to a folder of yours."
        else:
            yield "error", f"The model library cannot be written: {error}", "Set EDGELM_HOME to a folder of yours."
        return
    free = shutil.disk_usage(root).free
    found = f"{root}, {free / 1e9:.1f} GB free on its disk."
    if free < _LITTLE_DISK:
        yield "warning", found, "Make room: `edgelm rm NAME`, or set EDGELM_HOME to another disk."
    else:
        yield "ok", found, None


def _has_packages() -> bool:
    try:
        return bool(Library().packages())
    except (EdgeLMError, OSError):
        return False


def _check_packages() -> Iterator[_Row]:
    library = Library()
    try:
        names = library.packages()
    except (EdgeLMError, OSError):
        return  # the check of the library says why
    broken = 0
    for name in names:
        folder = library.package_path(name)
        try:
            manifest = Manifest.load(folder)
            manifest.check_files(folder, largest=0)
            slow = [found for graph in graph_files(manifest) for found in slow_operators(folder / graph)]
        except EdgeLMError as error:
            broken += 1
            # Not by `edgelm rm`, which removes the source too, of which it could be exported again.
            yield "error", f"{name}: {error}", f"If that does not help: remove {folder}, and pull or export it again."
            continue
        for found in slow:
            yield "warning", f"{name}: {found}", _EXPORT_AGAIN
    if names and not broken:
        yield "ok", f"{len(names)} in the library, all complete (their hashes are checked by each load).", None
    elif not names:
        yield "ok", "None in the library yet. A small one: edgelm pull smollm2-135m-instruct", None


def _check_model(name_or_path: str) -> Iterator[_Row]:
    """Look for what makes a model slow on a CPU: also of one that another program exported."""
    try:
        package = open_package(Library().find(name_or_path))
        graphs = (package.foreign_graph,) if package.foreign_graph else graph_files(package.manifest)
        slow = [found for graph in graphs for found in slow_operators(package.folder / graph)]
    except EdgeLMError as error:
        yield "error", f"{name_or_path}: {error}", None
        return
    for found in slow:
        yield "warning", f"{package.manifest.name}: {found}", _EXPORT_AGAIN
    if not slow:
        yield "ok", f"{package.manifest.name}: no operator is set to be slow on a CPU.", None


def _check_python() -> Iterator[_Row]:
    if sys.maxsize <= 2**32:
        yield "error", "This Python has 32 bits; ONNX Runtime needs 64.", "Install a 64-bit Python."
    else:
        yield "ok", f"Python {sys.version.split()[0]}, edgelm {__version__}", None


CHECKS: dict[str, Callable[[], Iterator[_Row]]] = {
    "python": _check_python,
    "onnxruntime": _check_wheels,
    "processor": _check_processor,
    "threads": _check_threads,
    "memory": _check_memory,
    "library": _check_library,
    "packages": _check_packages,
}
