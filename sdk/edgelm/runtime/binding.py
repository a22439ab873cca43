"""Bindings: a decoder's graph bound to the memory that it works on, so that a step sets up as little as possible.

Three ways to the keys and values, behind one interface: in place in the cache's own buffers; in place in memory of a
device; and passed along, where the graph takes those of P tokens and gives back those of P + T. Shapes: B batch, T
query tokens, P past tokens, K kv heads, C capacity, H head dim, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.memory.cache_layout import cache_type
from edgelm.memory.kv_cache import KeysOrValues, KVCache
from edgelm.runtime.adapter_bank import AdapterBank
from edgelm.runtime.conv_rows import ConvRows
from edgelm.runtime.decoder_graph import HIDDEN_STATE, DecoderGraph
from edgelm.runtime.onnx_runtime import FATAL_ONLY, raise_as_ours, takes_empty_matrices
from edgelm.runtime.states import States
from edgelm.runtime.stop_switch import StoppedError, StopSwitch
from edgelm.runtime.tables import Tables

_CPU = "cpu"


class Graph:
    """A graph in ONNX Runtime, and how to call it. device: where its keys and values lie (`Provider.device`).

    tables: what the session was given. adapters: those that a call can choose from; the session has places for them.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        tables: Tables,
        facts: DecoderGraph,
        config: ModelConfig,
        device: str,
    ) -> None:
        self.runtime, self.session, self.tables, self.facts = runtime, session, tables, facts
        self.config, self.device = config, device
        self.adapters = AdapterBank()

    def value(self, array: NDArray[Any]) -> Any:
        """Return an array as ONNX Runtime has it; both are the same memory."""
        return self.runtime.OrtValue.ortvalue_from_numpy(array)

    def bind_arrays(
        self, binding: Any, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
    ) -> list[Any]:
        """Bind arrays by the graph's names for them; return what keeps their memory, since a binding does not."""
        taken = {name: self.value(array) for name, array in inputs.items()}
        given = {name: self.value(array) for name, array in outputs.items()}
        for name, value in taken.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in given.items():
            binding.bind_ortvalue_output(name, value)
        return [*taken.values(), *given.values()]

    def run(
        self, binding: Any, stop: StopSwitch | None, others: Sequence[ConvRows | States], lengths: Sequence[int]
    ) -> None:
        """Run what is bound; `lengths` counts the tokens in each row's cache after this.

        Raises:
            ProviderError: ONNX Runtime fails at it.
            StoppedError: `stop` was pressed.
        """
        self.tables.reach(max(lengths))
        for other in others:
            other.read(lengths)
        self._run(binding, stop)
        for other in others:
            other.keep(lengths)

    def _run(self, binding: Any, stop: StopSwitch | None) -> None:
        options = None
        if stop is not None:
            options = self.runtime.RunOptions()
            options.log_severity_level = FATAL_ONLY  # being stopped is no error to report
            stop.connect(options)
        try:
            self.session.run_with_iobinding(binding, options)
        except Exception as error:
            if stop is not None and stop.is_pressed:
                raise StoppedError from error
            raise_as_ours(error)

    def others(
        self, buffers: Sequence[KeysOrValues], tokens: int, *, in_place: bool = False
    ) -> list[ConvRows | States]:
        """Return what is taken and given beside keys and values for so many new tokens.

        buffers: of a cache, behind those of keys and values. in_place: states may be written before the call is done.
        """
        facts, found = self.facts, list[ConvRows | States]()
        if facts.convolves:
            found.append(ConvRows(buffers[0], self.config.conv_L_cache or 0, tokens))
        if facts.past_states:
            states = buffers[len(found) :]
            found.append(States(states, facts.past_states, facts.present_states, in_place=in_place))
        return found

    @property
    def shared(self) -> list[tuple[str, int]]:
        """The outputs that are keys or values of an earlier layer, each with its place among those of a cache."""
        config = self.config
        if config.kv_lora_rank is not None:  # each layer's values, which are its keys
            return list(zip(self.facts.shared, range(config.kept_buffers), strict=False))
        layers = range(config.last_kept_layer + 1, config.num_hidden_layers)
        sources = [2 * config.cached_layers.index(config.keys_of(layer)) for layer in layers]
        return list(zip(self.facts.shared, (first + part for first in sources for part in range(2)), strict=False))

    def inputs(self, ids_BT: NDArray[np.int64], length: int, keep: int) -> dict[str, NDArray[Any]]:
        """Return what the graph takes beside the mask and the cache, for T tokens that end at `length`."""
        rows, tokens = ids_BT.shape
        first = length - tokens
        arrays = {
            "input_ids": ids_BT,
            "position_ids": np.broadcast_to(np.arange(first, length), (rows, tokens)),
            "use_cache_branch": np.array([first > 0]),
            "num_logits_to_keep": np.array(keep),
        }
        types = self.facts.inputs
        return {name: np.array(array, types[name]) for name, array in arrays.items() if name in types}


def forget_half_written(cache: KVCache, error: BaseException) -> None:
    """Let a cache go back to where its states are known, after a call that may have written some of them, or that was
    interrupted before its tokens were added.
    """
    if not isinstance(error, StoppedError):
        cache.forget_states()


class Binding(ABC):
    """A graph bound to the memory of one cache."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    @abstractmethod
    def run(
        self, cache: KVCache, token_ids: Sequence[int], all_logits: bool, stop: StopSwitch | None
    ) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: logits [1, V] of the last, or [T, V] of all."""

    @abstractmethod
    def run_hidden(self, cache: KVCache, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: hidden states [T, D]."""


def works_in_place(graph: Graph) -> bool:
    """Tell whether the graph writes into the buffers of a cache itself."""
    return graph.facts.shares_cache and graph.device == _CPU and graph.facts.cache_type == cache_type(graph.config)


def bind(graph: Graph, cache: KVCache) -> Binding:
    """Bind a graph to a cache."""
    if works_in_place(graph):
        return InPlaceBinding(graph, cache.buffers, (cache.adapter,), cache.source_values)
    return DeviceBinding(graph, cache) if graph.facts.shares_cache else PassingBinding(graph)


class InPlaceBinding(Binding):
    """The graph bound to the buffers of B sequences: past and present are the same memory, so no step copies the cache.

    The attention mask is bound once, as long as the buffers; ones mark the filled positions of each row.
    GroupQueryAttention only needs their sums, so nothing is bound again from step to step (rebinding a growing mask
    costs 2-3 % of a step). adapters: one for each row; `choose` gives the rows others of those that lie between these
    in the bank, and are bound too. source: keys and values that an encoder made. logits: memory [B, V] or more that
    steps write theirs into.
    """

    def __init__(
        self,
        graph: Graph,
        buffers: Sequence[NDArray[Any]],
        adapters: Sequence[str | None],
        source: Sequence[Any] = (),
        logits: NDArray[Any] | None = None,
    ) -> None:
        super().__init__(graph)
        self._source_values = dict(zip(graph.facts.cross, source, strict=True))
        bank = graph.adapters
        self._adapters, self._ranks = list(adapters), bank.covering(adapters)
        self._gates = bank.gates(adapters, self._ranks)
        learned = bank.inputs(self._ranks, fewest_rows=int(not takes_empty_matrices(graph.runtime))) | self._gates
        self._learned_values = {name: graph.value(array) for name, array in learned.items()}
        rows, _, capacity, _ = buffers[0].shape
        graph.tables.reach(capacity)
        self._kept = buffers[len(graph.facts.past) :]
        self._mask_BS = np.zeros((rows, capacity), graph.facts.inputs.get("attention_mask", np.int64))
        self._mask, self._marked = graph.value(self._mask_BS), [0] * rows
        self._cache_values = [graph.value(buffer) for buffer in buffers[: len(graph.facts.past)]]
        # Decode steps all have the same shape; each prefill chunk has its own binding, made when it comes.
        step_inputs = graph.inputs(np.zeros((rows, 1), np.int64), 1, 1)
        self._step_ids_BT, self._step_positions_BT = step_inputs["input_ids"], step_inputs.get("position_ids")
        if logits is None:
            logits = np.zeros((rows, graph.config.vocab_size), graph.facts.logits_type)
        self._step_logits_BV: NDArray[Any] = logits[:rows]
        self._gives_float32 = logits.dtype == np.float32
        self._step_others = graph.others(self._kept, 1, in_place=True)
        self._step, self._step_values = self._bind(
            step_inputs, "logits", self._step_logits_BV[:, None], self._step_others
        )

    def _bind(
        self,
        inputs: dict[str, NDArray[Any]],
        output_name: str,
        output: NDArray[Any],
        others: Sequence[ConvRows | States],
    ) -> tuple[Any, list[Any]]:
        """Return an IO binding, and what keeps the memory that it uses."""
        graph = self.graph
        binding = graph.session.io_binding()
        outputs = {output_name: output}
        for other in others:
            inputs, outputs = inputs | other.inputs, outputs | other.outputs
        values = graph.bind_arrays(binding, inputs, outputs)
        for name, value in (self._learned_values | self._source_values).items():
            binding.bind_ortvalue_input(name, value)
        if "attention_mask" in graph.facts.inputs:
            binding.bind_ortvalue_input("attention_mask", self._mask)
        for past, present, value in zip(graph.facts.past, graph.facts.present, self._cache_values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for name, place in graph.shared:
            binding.bind_ortvalue_output(name, self._cache_values[place])
        return binding, values

    def _mark(self, lengths: Sequence[int]) -> None:
        for row, length in enumerate(lengths):
            marked = self._marked[row]
            if length == marked + 1:
                self._mask_BS[row, marked] = 1
            elif length > marked:
                self._mask_BS[row, marked:length] = 1
            else:  # the cache was truncated
                self._mask_BS[row, length:marked] = 0
            self._marked[row] = length

    def choose(self, adapters: Sequence[str | None]) -> None:
        """Give each row its adapter, for the steps from now on."""
        if list(adapters) != self._adapters:
            self._adapters = list(adapters)
            for name, gate in self.graph.adapters.gates(adapters, self._ranks).items():
                self._gates[name][:] = gate

    def step(self, token_ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float32]:
        """Compute one token for each row; `lengths` counts the tokens in each row's cache after this step."""
        self._mark(lengths)
        # Element by element runs the least code; the step before has driven all of it from the processor's caches.
        for row, id_ in enumerate(token_ids):
            self._step_ids_BT[row, 0] = id_
        if self._step_positions_BT is not None:
            for row, length in enumerate(lengths):
                self._step_positions_BT[row, 0] = length - 1
        if self._step_others:
            self.graph.run(self._step, None, self._step_others, lengths)
        else:
            try:
                self.graph.session.run_with_iobinding(self._step)
            except Exception as error:
                raise_as_ours(error)
        return self._step_logits_BV if self._gives_float32 else self._step_logits_BV.astype(np.float32)

    def run(
        self, cache: KVCache, token_ids: Sequence[int], all_logits: bool, stop: StopSwitch | None
    ) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: logits [1, V] of the last, or [T, V] of all."""
        length = len(cache.token_ids) + len(token_ids)
        if len(token_ids) == 1:
            return self.step(token_ids, (length,))
        every = all_logits or "num_logits_to_keep" not in self.graph.facts.inputs
        kept = len(token_ids) if every and not self.graph.facts.gives_last_logits else 1
        logits_BTV = np.zeros((1, kept, self.graph.config.vocab_size), self.graph.facts.logits_type)
        self._run(token_ids, length, 0 if every else 1, "logits", logits_BTV, stop)
        logits_TV: NDArray[np.float32] = logits_BTV[0].astype(np.float32, copy=False)
        return logits_TV if all_logits else logits_TV[-1:]

    def run_hidden(self, cache: KVCache, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: hidden states [T, D]."""
        hidden_BTD = np.zeros((1, len(token_ids), self.graph.config.hidden_size), np.float32)
        self._run(token_ids, cache.length + len(token_ids), 1, HIDDEN_STATE, hidden_BTD, None)
        hidden_TD: NDArray[np.float32] = hidden_BTD[0]
        return hidden_TD

    def _run(
        self,
        token_ids: Sequence[int],
        length: int,
        keep: int,
        output_name: str,
        output: NDArray[Any],
        stop: StopSwitch | None,
    ) -> None:
        self._mark((length,))
        inputs = self.graph.inputs(np.array([token_ids], np.int64), length, keep)
        others = self.graph.others(self._kept, len(token_ids))
        binding, _values = self._bind(inputs, output_name, output, others)
        self.graph.run(binding, stop, others, (length,))


class _HeldElsewhere(Binding):
    """What the bindings share that keep a cache's keys and values in memory of their own: `_values`, as OrtValues.

    The cache's buffers get them when somebody reads those, and the values are made anew from the buffers when the cache
    holds what was not computed here.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._token_ids: list[int] = []  # those that the values hold
        self._values: list[Any] = []
        self._inputs: list[Any] = []  # of the last call, which a binding uses without holding them

    def fetch(self, buffers: Sequence[KeysOrValues], start: int, stop: int) -> None:
        """Copy the keys and values of the tokens `start` to `stop` into a cache's buffers [1, K, C, H]."""
        for buffer, value in zip(buffers[: len(self._values)], self._values, strict=True):
            buffer[:, :, start:stop] = value.numpy()[:, :, start:stop]

    def _arrays(self, cache: KVCache, capacity: int) -> list[NDArray[Any]]:
        """Return the cache's keys and values as new arrays [1, K, capacity, H] of the graph's type."""
        arrays = []
        for buffer in cache.buffers[: len(self.graph.facts.past)]:
            _, heads, _, size = buffer.shape
            array = np.zeros((1, heads, capacity, size), self.graph.facts.cache_type)
            array[:, :, : cache.length] = buffer[:, :, : cache.length]
            arrays.append(array)
        return arrays

    def _run(self, binding: Any, cache: KVCache, token_ids: Sequence[int], stop: StopSwitch | None) -> list[Any]:
        """Run what is bound, and return its outputs in the order in which they were. What there is beside keys and
        values is taken from the cache's own buffers, and goes back there.
        """
        graph = self.graph
        others = graph.others(cache.other_buffers, len(token_ids))
        _values = [graph.bind_arrays(binding, other.inputs, other.outputs) for other in others]
        graph.run(binding, stop, others, (cache.length + len(token_ids),))
        return list(binding.get_outputs())

    def _computed(self, cache: KVCache, token_ids: Sequence[int], values: list[Any]) -> None:
        # At once: an interrupt between them would leave values that are of other tokens.
        self._token_ids, self._values = [*cache.token_ids, *token_ids], values
        cache.leave_in(self.fetch, len(self._token_ids))

    def run_hidden(self, cache: KVCache, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: hidden states [T, D]."""
        hidden_TD: NDArray[np.float32] = self._call(cache, token_ids, HIDDEN_STATE, None)[0].astype(np.float32)
        return hidden_TD

    def run(
        self, cache: KVCache, token_ids: Sequence[int], all_logits: bool, stop: StopSwitch | None
    ) -> NDArray[np.float32]:
        """Compute T tokens behind those in `cache`: logits [1, V] of the last, or [T, V] of all."""
        logits_TV: NDArray[np.float32] = self._call(cache, token_ids, "logits", stop, keep_all=all_logits)[0]
        return (logits_TV if all_logits else logits_TV[-1:]).astype(np.float32, copy=False)

    @abstractmethod
    def _call(
        self, cache: KVCache, token_ids: Sequence[int], output: str, stop: StopSwitch | None, keep_all: bool = False
    ) -> NDArray[Any]:
        """Compute T tokens, and return one of the graph's outputs: [1, T', V] or [1, T, D]."""

    def _bound(
        self, cache: KVCache, token_ids: Sequence[int], length: int, mask_length: int, keep: int, output: str
    ) -> Any:
        """Bind what changes from call to call."""
        graph = self.graph
        binding = graph.session.io_binding()
        arrays = graph.inputs(np.array([token_ids], np.int64), length, keep)
        if "attention_mask" in graph.facts.inputs:
            mask = np.arange(mask_length) < length
            arrays["attention_mask"] = mask[None].astype(graph.facts.inputs["attention_mask"])
        self._inputs = graph.bind_arrays(binding, arrays, {})
        for name, value in zip(graph.facts.cross, cache.source_values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(output, _CPU)
        return binding


class DeviceBinding(_HeldElsewhere):
    """The graph bound to keys and values in memory of a device, or of another type than the cache's buffers.

    Past and present are the same memory, as long as the cache's buffers.
    """

    def __init__(self, graph: Graph, cache: KVCache) -> None:
        super().__init__(graph)
        self._capacity = cache.capacity

    def _call(
        self, cache: KVCache, token_ids: Sequence[int], output: str, stop: StopSwitch | None, keep_all: bool = False
    ) -> NDArray[Any]:
        if not self._values or self._token_ids[: cache.length] != cache.token_ids:
            arrays = self._arrays(cache, self._capacity)
            new = self.graph.runtime.OrtValue.ortvalue_from_numpy
            self._values = [new(array, self.graph.device, 0) for array in arrays]
        length = cache.length + len(token_ids)
        binding = self._bound(cache, token_ids, length, self._capacity, 0 if keep_all else 1, output)
        facts = self.graph.facts
        for past, present, value in zip(facts.past, facts.present, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        for name, place in self.graph.shared:
            binding.bind_ortvalue_output(name, self._values[place])
        # A call that is stopped or fails may have written some of the layers, behind what is known.
        self._token_ids = list(cache.token_ids)
        outputs = self._run(binding, cache, token_ids, stop)
        self._computed(cache, token_ids, self._values)
        result: NDArray[Any] = outputs[0].numpy()
        return result


class PassingBinding(_HeldElsewhere):
    """The graph called with the keys and values of exactly the tokens before, which it gives back with those of the new
    ones: attention of plain operators. What a call gives is what the next one takes.
    """

    def _call(
        self, cache: KVCache, token_ids: Sequence[int], output: str, stop: StopSwitch | None, keep_all: bool = False
    ) -> NDArray[Any]:
        past_length, length = cache.length, cache.length + len(token_ids)
        if not self._values or self._token_ids != cache.token_ids:
            self._values = [self.graph.value(array) for array in self._arrays(cache, past_length)]
        facts = self.graph.facts
        # With LongRoPE a graph of ours turns by what there is room for.
        mask_length = cache.capacity if facts.takes_longer_mask else length
        binding = self._bound(cache, token_ids, length, mask_length, 0 if keep_all else 1, output)
        for name, value in zip(facts.past, self._values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in facts.present:
            binding.bind_output(name, self.graph.device)
        result, *values = self._run(binding, cache, token_ids, stop)
        self._computed(cache, token_ids, values[: len(facts.present)])
        array: NDArray[Any] = result.numpy()
        return array
