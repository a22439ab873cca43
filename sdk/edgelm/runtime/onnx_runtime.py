"""ONNX Runtime: how a graph is given to it, and what it has here. Only this module imports it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgelm.architecture.rope import LARGEST_TABLE
from edgelm.errors import EdgeLMError, OutOfMemoryError, ProviderError
from edgelm.package.graph_file import files_of_tensors
from edgelm.runtime.cpu import INTEGER_DOT_PRODUCTS, cpu_features, usable_cores
from edgelm.runtime.joined_planes import join_planes
from edgelm.runtime.providers import CPU, HEAVY_OPERATORS, PROVIDERS, Provider, provider_named
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.tables import Tables, with_tables
from edgelm.runtime.thread_limit import no_more_threads
from edgelm.runtime.thread_pools import new_session
from edgelm.shared_use import NATIVE_CALLS

# How long a thread looks for work: longer than what lies between two steps, and no longer, as it keeps a core from the
# next session, such as the one that goes on behind a prompt, or a draft's (docs/results/graph-and-settings.md).
SPIN_MICROSECONDS = 200
_WIDENING = 8  # from 4 bits to a float
_NO_MEMORY = "bad_alloc"
# An operator, or an attribute of one, that a newer ONNX Runtime has: the walk lets no other one through.
_UNKNOWN = "Unrecognized attribute", "is not a registered function/op"
_WARNINGS, _ERRORS_ONLY, FATAL_ONLY = 2, 3, 4  # what is logged
_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Let a fork end: the destructor of a session waits there for threads that only the first process has."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_keep_for_ever)


def require_provider(name: str) -> None:
    """Check that ONNX Runtime is here and was built with a provider; its device is looked for with the first model.

    Raises:
        ProviderError: one of them is not here.
    """
    _provider_of(import_onnxruntime(), name)


def takes_empty_matrices(runtime: Any) -> bool:
    """Tell whether FusedMatMul takes a matrix without rows: before 1.32 it divides by zero, which ends the process."""
    return tuple(map(int, runtime.__version__.split(".")[:2])) >= (1, 32)


def _provider_of(runtime: Any, name: str) -> Provider:
    provider, available = provider_named(name), runtime.get_available_providers()
    if provider.name not in available:
        has = ", ".join(ours for ours, row in PROVIDERS.items() if row.name in available)
        raise ProviderError(f"The ONNX Runtime here has no {name!r}; it has: {has}. To get it: {provider.install}.")
    return provider


def start(
    runtime: Any,
    graph: bytes,
    path: Path,
    options: SessionOptions,
    *,
    is_prefill_graph: bool = False,
) -> tuple[Any, Tables]:
    """Give a graph to ONNX Runtime, and check that what was asked for computes it.

    path: where the graph was read; its weights lie beside it. is_prefill_graph: whether it is one: it multiplies
    integers itself, u8 x s8, and gives no more than keys and values. Returns an `onnxruntime.InferenceSession`, and the
    tables that it uses as long as it lives.

    Raises:
        ProviderError: the provider is not here, does not start, or leaves work to the CPU; or the graph is refused.
        OutOfMemoryError: there is no memory for it.
    """
    provider = _provider_of(runtime, options.provider)
    most = _largest_constant(path.parent)
    settings = _settings(runtime, path, options, most)
    # A device copies what it is given.
    graph, tables = with_tables(graph, path, runtime) if options.provider == CPU else (graph, Tables())
    graph, weights = join_planes(graph, path, most)
    values = [runtime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
    settings.add_external_initializers([*weights], values)
    shared = tables.values(runtime)  # kept here: until the session is made, the settings have their addresses alone
    for name, value in shared.items():
        settings.add_initializer(name, value)
    if is_prefill_graph:
        # Nodes in the file's order, layer by layer. ONNX Runtime's own leaves what is given of each layer to the end,
        # and keeps till then what that is computed from: 560 MB behind 8,000 tokens (docs/results/quantization.md).
        settings.execution_order = runtime.ExecutionOrder.PRIORITY_BASED
    if is_prefill_graph and not INTEGER_DOT_PRODUCTS & (cpu_features() or frozenset()):
        # AVX2 adds two products of u8 x s8 in 16 bits, and what is larger is cut off in silence. So the weights become
        # u8 when they are loaded, whose products are exact; with VNNI that would only be slower (0.72-0.75 x).
        settings.add_session_config_entry("session.x64quantprecision", "1")
    available = runtime.get_available_providers()
    rest = [name for name in provider.execution_providers[1:] if name in available]
    if provider.device == "cuda":
        _preload_cuda(runtime)
    wanted = [(provider.name, {**provider.options, **options.provider_options}), *rest]
    try:
        quiet = _quiet(runtime) if options.provider != CPU else contextlib.nullcontext()
        with quiet, tables.kept_small(), NATIVE_CALLS:
            tables.reach(1)  # what makes them has to start, too
            session = new_session(runtime, graph, settings, wanted)
    except Exception as error:  # ONNX Runtime's own classes have no common base but this one
        raise _error_of_loading(runtime, error, path, options.provider) from error
    _sessions.add(session)
    if options.provider != CPU:
        _check_assignment(session, path, options.provider)
    return session, tables


def _error_of_loading(runtime: Any, error: Exception, path: Path, name: str) -> EdgeLMError:
    """Say what kept ONNX Runtime from loading a graph for the provider of this name."""
    if refusal := no_more_threads(error):
        return refusal
    install = provider_named(name).install
    if _NO_MEMORY in str(error):
        return OutOfMemoryError(
            f"There is no memory left to load {path} ({error}). Free memory, or take a smaller model or one of fewer "
            "bits."
        )
    if any(words in str(error) for words in _UNKNOWN):
        return ProviderError(
            f"ONNX Runtime {runtime.__version__} is too old for {path}, which was written for a newer one. To get it: "
            f"{install.replace('pip install', 'pip install --upgrade')}."
        )
    if name == CPU:
        return ProviderError(f"ONNX Runtime does not load {path}: {error}")
    return ProviderError(
        f"{name!r} does not start with {path}: {error}. To set it up: {install}. To compute on the CPU: provider='cpu'."
    )


def _settings(runtime: Any, path: Path, options: SessionOptions, largest_constant: int) -> Any:
    """Return the `onnxruntime.SessionOptions` of a graph, whose weights lie beside `path`."""
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads or usable_cores()
    settings.log_severity_level = _ERRORS_ONLY if options.provider == CPU else FATAL_ONLY
    # Work in smaller pieces than one a thread: decodes 1.02-1.03 x as fast (docs/results/graph-and-settings.md).
    settings.add_session_config_entry("session.dynamic_block_base", "4")
    settings.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    # From the bytes that were walked, not from the path, and read as the walk reads them, whatever mark of another
    # format they have: what runs is what was checked.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    folder = os.fsencode(path.parent)  # under Linux it may be no UTF-8
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    settings.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(largest_constant))
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(options.provider != CPU)))
    if provider_named(options.provider).is_sequential:
        settings.enable_mem_pattern, settings.execution_mode = False, runtime.ExecutionMode.ORT_SEQUENTIAL
    return settings


def raise_as_ours(error: Exception) -> NoReturn:
    """Raise what came out of a call of a session; ONNX Runtime's own classes have no common base but Exception.

    Raises:
        ProviderError: ONNX Runtime failed: the graph does not fit what it is given, or there is no memory.
        MemoryError: it was that already.
    """
    if isinstance(error, MemoryError):
        raise error
    raise ProviderError(
        f"ONNX Runtime fails at the model's graph ({error}). Where memory is short, take a shorter text or a smaller "
        "model; else export or download the package again."
    ) from error


def _largest_constant(folder: Path) -> int:
    """Bound what a graph may have computed of constants while it is loaded, in bytes for each.

    What needs it are tables of positions, and weights that are stored in fewer bits than they are computed with.
    """
    return max(LARGEST_TABLE, _WIDENING * sum(files_of_tensors(folder).values()))


@contextlib.contextmanager
def _quiet(runtime: Any) -> Iterator[None]:
    """Keep ONNX Runtime from writing what it misses to standard error: the error that follows says it."""
    runtime.set_default_logger_severity(FATAL_ONLY)
    try:
        yield
    finally:
        runtime.set_default_logger_severity(_WARNINGS)


def _check_assignment(session: Any, path: Path, name: str) -> None:
    """Check that the provider computes what takes the time: ONNX Runtime leaves the rest to the CPU in silence."""
    provider = provider_named(name)
    if provider.name not in session.get_providers():
        raise ProviderError(
            f"{name!r} was asked for, and ONNX Runtime fell back to the CPU: it finds no such device, or not the "
            f"libraries for it (edgelm doctor says which). To set it up: {provider.install}. To compute on the CPU: "
            "provider='cpu'."
        )
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if node.op_type in HEAVY_OPERATORS
    )
    if left:
        counts = ", ".join(f"{count} x {operator}" for operator, count in sorted(left.items()))
        raise ProviderError(
            f"{name!r} leaves {counts} of {path} to the CPU, which is slower than the CPU alone. It takes a graph of "
            f"{provider.precision} (docs/guides/devices.md); this one runs with provider='cpu'."
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeDescription:
    """The installed ONNX Runtime: its version, and the devices that it really finds.

    missing_library: what keeps a build with CUDA from using it, in the system's words; None where nothing does.
    """

    version: str
    devices: tuple[str, ...]
    missing_library: str | None = None


def describe_runtime() -> RuntimeDescription:
    """Ask ONNX Runtime what it has here.

    Raises:
        ProviderError: ONNX Runtime is not installed.
    """
    runtime = import_onnxruntime()
    devices = {f"{device.ep_name.removesuffix('ExecutionProvider')} ({device.device.type.name})"
               for device in runtime.get_ep_devices()}  # fmt: skip
    return RuntimeDescription(
        version=runtime.__version__,
        devices=tuple(sorted(devices)),
        missing_library=_missing_library(runtime),
    )


def _preload_cuda(runtime: Any) -> None:
    """Load the libraries of CUDA and cuDNN that were installed as wheels."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        runtime.preload_dlls()


def _missing_library(runtime: Any) -> str | None:
    """Try to load what CUDA's provider needs: NVIDIA's driver, then the provider with all that it is linked to."""
    libraries = sorted((Path(runtime.__file__).parent / "capi").glob("*onnxruntime_providers_cuda.*"))
    if not libraries:
        return None
    _preload_cuda(runtime)
    driver = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    for name in (driver, *map(str, libraries)):
        try:
            ctypes.CDLL(name)
        except OSError as error:
            if "undefined symbol" not in str(error):  # of ONNX Runtime itself, which has them when it loads this
                return str(error)
    return None


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, without its telemetry.

    Raises:
        ProviderError: it is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise ProviderError(
            'ONNX Runtime is not installed. Install one of the two, never both: pip install "edgelm[cpu]" on any '
            'machine; pip install "edgelm[gpu]" on one with an NVIDIA GPU.'
        )
    # Since 1.29 ONNX Runtime reports usage unless this is set before its import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
