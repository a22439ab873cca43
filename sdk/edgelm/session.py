"""DecoderSession: the decoder graph in ONNX Runtime. Only this module knows ONNX Runtime and the graph's inputs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.cpu import usable_cores
from edgelm.errors import ConfigError, PackageError, ProviderError
from edgelm.graph_file import GRAPH_FILE, read_graph
from edgelm.kv_batch import KVBatch
from edgelm.kv_cache import KVCache
from edgelm.manifest import FileEntry
from edgelm.stop_switch import StoppedError, StopSwitch

_LOG_ERRORS_ONLY = 3
_FATAL_ONLY = 4
HIDDEN_STATE = "last_hidden_state"
_RECOMPUTED_AT_ONCE = 128  # as prompts are (generate.PREFILL_CHUNK)


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How ONNX Runtime runs the graph.

    threads: of one step; None takes the physical cores. More threads than cores halve the speed
    (docs/results/graph-and-settings.md).
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not (isinstance(self.threads, int) and 1 <= self.threads <= 1024):
            raise ConfigError(f"threads is {self.threads!r}; it must be a whole number from 1 to 1024.")


class DecoderSession:
    """Run the graph of one package: token ids and a KV cache in, logits out.

    Many threads may call `forward` at once, each with a cache of its own. entry: what the manifest says of the graph's
    file; None, and its hash is not checked (its content is, either way).

    Raises:
        ProviderError: ONNX Runtime is not installed, or refuses the graph.
        PackageError: the graph is not what the manifest says, has something that no decoder needs, or does not have
            the inputs that edgelm writes.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        options: SessionOptions | None = None,
        *,
        entry: FileEntry | None = None,
    ) -> None:
        self.config = config
        self._runtime = _import_onnxruntime()
        self._process = os.getpid()
        graph = read_graph(folder, entry)
        settings = self._runtime.SessionOptions()
        settings.intra_op_num_threads = (options or SessionOptions()).threads or usable_cores()
        settings.log_severity_level = _LOG_ERRORS_ONLY
        # Work in smaller pieces than one a thread: decodes 1.02-1.03 x as fast (docs/results/graph-and-settings.md).
        settings.add_session_config_entry("session.dynamic_block_base", "4")
        # From the bytes that were walked, not from the path: what runs is what was checked.
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        path = folder / GRAPH_FILE
        try:
            self._session = self._runtime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes have no common base but this one
            raise ProviderError(f"ONNX Runtime does not load {path}: {error}") from error
        names = {value.name for value in self._session.get_inputs()}
        expected = {"input_ids", "attention_mask", *_cache_names(config, "past_key_values")}
        if names != expected:
            raise PackageError(f"{path} has the inputs {sorted(names ^ expected)} too much or too little.")
        self._outputs = {value.name for value in self._session.get_outputs()}

    def new_cache(self) -> KVCache:
        """Return an empty KV cache for this model."""
        return KVCache(self.config)

    def forward(
        self,
        token_ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        stop: StopSwitch | None = None,
    ) -> NDArray[np.float32]:
        """Compute T tokens after those in `cache`, and add them to it.

        Returns float32 logits [1, V] of the last position, or [T, V] of all. They are a view on a buffer of the cache's
        binding: the next `forward` with the same cache overwrites them.

        Raises:
            ContextLengthError: the tokens do not fit the model's context.
            ProviderError: the process is a fork of the one that loaded the model.
            StoppedError: `stop` was pressed; the cache is as before.
        """
        length = len(cache.token_ids) + len(token_ids)
        logits_TV = self._bound(cache, length).run(token_ids, length, all_logits, stop)
        cache.token_ids.extend(token_ids)
        return logits_TV

    def forward_hidden(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute T tokens after those in `cache`, and add them to it, as `forward` does.

        Returns what the head reads of them: the hidden states float32 [T, D] behind the last norm.

        Raises:
            ConfigError: the graph does not give them.
            ContextLengthError, ProviderError: as from `forward`.
        """
        if HIDDEN_STATE not in self._outputs:
            raise ConfigError(
                f"The graph of this package has no output {HIDDEN_STATE}, which these embeddings are made of. Export "
                'the model again (edgelm export SOURCE -o FOLDER), or take the pooling "values".'
            )
        length = len(cache.token_ids) + len(token_ids)
        hidden_TD = self._bound(cache, length).run_hidden(token_ids, length)
        cache.token_ids.extend(token_ids)
        return hidden_TD

    def _bound(self, cache: KVCache, length: int) -> _Binding:
        """Return the graph bound to a cache that has room for `length` tokens."""
        self._check_process()
        if cache.is_outgrown_by(length):
            self._recompute(cache, length)
        binding = cache.binding
        if not isinstance(binding, _Binding) or length > binding.capacity or binding.session is not self._session:
            binding = None  # nothing may keep the memory that the cache outgrows
            cache.reserve(length)
            binding = cache.binding = _Binding(self._runtime, self._session, self.config, cache.buffers)
        return binding

    def _recompute(self, cache: KVCache, length: int) -> None:
        """Compute the cached tokens again, as those of a text of `length` tokens (LongRoPE)."""
        token_ids = list(cache.token_ids)
        cache.truncate(0)
        cache.reserve(length)
        for start in range(0, len(token_ids), _RECOMPUTED_AT_ONCE):
            self.forward(token_ids[start : start + _RECOMPUTED_AT_ONCE], cache)

    def forward_rows(self, token_ids: Sequence[int], batch: KVBatch) -> NDArray[np.float32]:
        """Compute one more token for each of the first B rows of a batch, together, and add it to its row.

        Returns float32 logits [B, V], which the next `forward_rows` for as many rows overwrites. A row's logits have
        the bits that `forward` gives for it alone.

        Raises:
            ContextLengthError: a token does not fit the model's context.
            ProviderError: the process is a fork of the one that loaded the model.
        """
        self._check_process()
        rows = batch.rows[: len(token_ids)]
        lengths = [len(row.token_ids) + 1 for row in rows]
        batch.reserve(max(lengths))
        binding = batch.bindings.get(len(rows))
        if not isinstance(binding, _Binding):
            buffers = [buffer[: len(rows)] for buffer in batch.buffers]
            binding = batch.bindings[len(rows)] = _Binding(self._runtime, self._session, self.config, buffers)
        logits_BV = binding.step(token_ids, lengths)
        for row, id_ in zip(rows, token_ids, strict=True):
            row.token_ids.append(id_)
        return logits_BV

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            # A fork has none of ONNX Runtime's threads: the step would wait for them for ever.
            raise ProviderError(
                f"This model was loaded by process {self._process}; its fork {os.getpid()} cannot run it. Load the "
                'model after the fork, or start processes with multiprocessing.get_context("spawn").'
            )


class _Binding:
    """The graph bound to the buffers of B sequences: past and present are the same memory, so no step copies the cache.

    The attention mask is bound once, as long as the buffers; ones mark the filled positions of each row.
    GroupQueryAttention only needs their sums, so nothing is bound again from step to step (rebinding a growing mask
    costs 2-3 % of a step).
    """

    def __init__(self, runtime: Any, session: Any, config: ModelConfig, buffers: list[NDArray[np.float32]]) -> None:
        rows, _, self.capacity, _ = buffers[0].shape
        self.session = session
        self._runtime, self._config = runtime, config
        self._mask_BS = np.zeros((rows, self.capacity), np.int64)
        self._mask, self._marked = self._value(self._mask_BS), [0] * rows
        self._cache_values = [self._value(buffer) for buffer in buffers]
        self._past_names = _cache_names(config, "past_key_values")
        self._present_names = _cache_names(config, "present")
        # Decode steps all have the same shape; each prefill chunk has its own binding, made when it comes.
        self._step_ids_BT = np.zeros((rows, 1), np.int64)
        step_logits_BTV = np.zeros((rows, 1, config.vocab_size), np.float32)
        self._step_logits_BV: NDArray[np.float32] = step_logits_BTV[:, 0]
        self._step, self._step_values = self._bind(self._step_ids_BT, 1, "logits", step_logits_BTV)

    def _value(self, array: NDArray[Any]) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array)  # shares the array's memory

    def _bind(
        self, ids_BT: NDArray[np.int64], keep: int, output_name: str, output: NDArray[np.float32]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return an IO binding, and the values whose memory it uses without holding it."""
        binding = self.session.io_binding()
        ids, num_logits, result = self._value(ids_BT), self._value(np.array(keep, np.int64)), self._value(output)
        binding.bind_ortvalue_input("input_ids", ids)
        binding.bind_ortvalue_input("attention_mask", self._mask)
        binding.bind_ortvalue_input("num_logits_to_keep", num_logits)
        for past, present, value in zip(self._past_names, self._present_names, self._cache_values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        binding.bind_ortvalue_output(output_name, result)
        return binding, (ids, num_logits, result)

    def _mark(self, lengths: Sequence[int]) -> None:
        for row, (marked, length) in enumerate(zip(self._marked, lengths, strict=True)):
            if length >= marked:
                self._mask_BS[row, marked:length] = 1
            else:  # the cache was truncated
                self._mask_BS[row, length:marked] = 0
        self._marked = list(lengths)

    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Compute one token for each row; `lengths` counts the tokens in each row's cache after this step."""
        self._mark(lengths)
        self._step_ids_BT[:, 0] = token_ids
        self.session.run_with_iobinding(self._step)
        return self._step_logits_BV

    def run(
        self, token_ids: Sequence[int], length: int, all_logits: bool, stop: StopSwitch | None = None
    ) -> NDArray[np.float32]:
        """Compute tokens of the one row; `length` counts the tokens in its cache after this step."""
        if len(token_ids) == 1:
            return self.step(token_ids, (length,))
        self._mark((length,))
        ids_BT = np.array([token_ids], np.int64)
        logits_BTV = np.zeros((1, len(token_ids) if all_logits else 1, self._config.vocab_size), np.float32)
        binding, _values = self._bind(ids_BT, 0 if all_logits else 1, "logits", logits_BTV)
        if stop is None:
            self.session.run_with_iobinding(binding)
        else:
            self._run_stoppable(binding, stop)
        logits_TV: NDArray[np.float32] = logits_BTV[0]
        return logits_TV

    def run_hidden(self, token_ids: Sequence[int], length: int) -> NDArray[np.float32]:
        """Compute tokens of the one row, and return their hidden states [T, D]."""
        self._mark((length,))
        hidden_BTD = np.zeros((1, len(token_ids), self._config.hidden_size), np.float32)
        binding, _values = self._bind(np.array([token_ids], np.int64), 1, HIDDEN_STATE, hidden_BTD)
        self.session.run_with_iobinding(binding)
        hidden_TD: NDArray[np.float32] = hidden_BTD[0]
        return hidden_TD

    def _run_stoppable(self, binding: Any, stop: StopSwitch) -> None:
        options = self._runtime.RunOptions()
        options.log_severity_level = _FATAL_ONLY  # being stopped is no error to report
        stop.connect(options)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's own classes have no common base but this one
            if stop.is_pressed:
                raise StoppedError from error
            raise


def _cache_names(config: ModelConfig, prefix: str) -> list[str]:
    """Name the cache's inputs or outputs in the order of its buffers."""
    return [f"{prefix}.{i}.{part}" for i in range(config.num_hidden_layers) for part in ("key", "value")]


@dataclass(frozen=True, kw_only=True)
class RuntimeDescription:
    """The installed ONNX Runtime: its version, its execution providers, and the devices that it really finds."""

    version: str
    providers: tuple[str, ...]
    devices: tuple[str, ...]


def describe_runtime() -> RuntimeDescription:
    """Ask ONNX Runtime what it has here. It lists providers that it was built with, whether or not a device is there.

    Raises:
        ProviderError: ONNX Runtime is not installed.
    """
    runtime = _import_onnxruntime()
    devices = {f"{device.ep_name.removesuffix('ExecutionProvider')} ({device.device.type.name})"
               for device in runtime.get_ep_devices()}  # fmt: skip
    return RuntimeDescription(
        version=runtime.__version__,
        providers=tuple(runtime.get_available_providers()),
        devices=tuple(sorted(devices)),
    )


def _import_onnxruntime() -> Any:
    if importlib.util.find_spec("onnxruntime") is None:
        raise ProviderError(
            "ONNX Runtime is not installed. On any machine: pip install 'edgelm[cpu]' "
            "On one with an NVIDIA GPU: pip install 'edgelm[gpu]' (one of the two, never both)."
        )
    # Since 1.29 ONNX Runtime reports usage unless this is set before its import.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
