"""DecoderSession: the decoder graph in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.shortlist import SHORTLISTED_POSITIONS
from edgelm.config import SUPPRESSED_LOGIT, ModelConfig
from edgelm.errors import ConfigError, EdgeLMError, ProviderError
from edgelm.memory.holders import Holders
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.malloc import Returned
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.adapter import Adapter, AdapterManifest
from edgelm.package.graph_file import (
    DATA_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    GRAPH_FILE,
    PREFILL_FILE,
    read_graph,
)
from edgelm.package.manifest import Manifest, check_hash
from edgelm.package.onnx_walk import GraphFacts
from edgelm.runtime import onnx_runtime
from edgelm.runtime.adapter_bank import AdapterBank
from edgelm.runtime.adapter_graph import parts_of, products_of, with_adapters
from edgelm.runtime.binding import Binding, Graph, InPlaceBinding, bind, forget_half_written, works_in_place
from edgelm.runtime.cpu import usable_cores
from edgelm.runtime.decoder_graph import HIDDEN_STATE, DecoderGraph, GraphValue
from edgelm.runtime.length_switch import longest_short_text
from edgelm.runtime.prefill_graph import check_prefill_graph, read_prompt
from edgelm.runtime.providers import CPU, provider_named
from edgelm.runtime.row_steps import step_rows
from edgelm.runtime.session_options import SessionOptions
from edgelm.runtime.single_steps import SingleSteps
from edgelm.runtime.source_encoder import SourceEncoder
from edgelm.runtime.stop_switch import StopSwitch
from edgelm.runtime.tables import Tables
from edgelm.shared_use import SharedUse, end_with_program

# One matrix product over 128 tokens beats 128 products over one; larger chunks lose that to attention, which computes
# the masked positions of a chunk too (docs/results/graph-and-settings.md).
PREFILL_CHUNK = 128
PREFILL_GRAPH_CHUNK = 256  # of a package's prefill graph, whose products gain more by more rows


class DecoderSession(Returned):
    """Run the graph of one package: token ids and a KV cache in, logits out; of one with an encoder, both graphs.

    Many threads may call `forward` at once, each with a cache of its own. manifest: by which the graphs are checked;
    None, and their hashes are not (their content is, either way). The caller has checked the weights; a change of the
    graph checks them again. foreign_graph: the path below `folder` of a graph that another program wrote; None is
    edgelm's own.

    Raises:
        ProviderError: ONNX Runtime is not installed, has not the provider or refuses the graph; or the provider left
            work to the CPU.
        PackageError: the graph is not what the manifest says, has something that no decoder needs, or takes what
            edgelm does not give.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        options: SessionOptions | None = None,
        *,
        manifest: Manifest | None = None,
        foreign_graph: Path | None = None,
    ) -> None:
        self._options = options = options or SessionOptions()
        provider = provider_named(options.provider)
        path = folder / (foreign_graph or (GRAPH_FILE if config.encoder is None else DECODER_FILE))
        # Absolute, as it is read again when an adapter comes or goes: the program may have another folder then.
        self._path, self._manifest = path.absolute(), manifest
        self._runtime = onnx_runtime.import_onnxruntime()
        self._process = os.getpid()
        graph, facts = self._read(path)
        session, tables = self._started(graph, path)
        inputs, outputs = _values_of(session)
        is_foreign = foreign_graph is not None
        short = longest_short_text(graph, path) if is_foreign and ("", "If") in facts.operators else None
        decoder = DecoderGraph.of(path, inputs, outputs, facts.operators, is_foreign=is_foreign, short_context=short)
        decoder = dataclasses.replace(decoder, shares_cache=provider.shares_cache and decoder.shares_cache)
        _check_cache_type(path, decoder, options.provider)
        self.config = decoder.fitted(config, path)
        self._graph = Graph(self._runtime, session, tables, decoder, self.config, provider.device)
        self._encoder: SourceEncoder | None = None
        if config.encoder is not None:
            encoder_path = folder / ENCODER_FILE
            session, tables = self._started(self._read(encoder_path)[0], encoder_path)
            self._encoder = SourceEncoder(session, tables, encoder_path, decoder.cross, provider.device)
        self._single_steps: SingleSteps | None = None
        plain = self._encoder is None and foreign_graph is None
        if works_in_place(self._graph) and options.provider == CPU and plain:
            self._single_steps = SingleSteps(
                self.config, options.threads or usable_cores(), partial(InPlaceBinding, self._graph)
            )
        self._prefill: Graph | None = None
        prefill_path = folder / PREFILL_FILE
        if options.prefill_graph and self._single_steps is not None and prefill_path.exists():
            session, tables = self._started(self._read(prefill_path)[0], prefill_path, is_prefill_graph=True)
            check_prefill_graph(prefill_path, *_values_of(session), inputs, outputs)
            self._prefill = Graph(self._runtime, session, tables, decoder, self.config, provider.device)
        self._takes_adapters = self._single_steps is not None
        self._use = SharedUse()  # of the graph, which an adapter can be put into
        end_with_program(self._use, self)
        # All that was bound to the graph, or adopted: another graph has to bind it anew, and an adapter that some cache
        # uses is not unloaded.
        self._holders = Holders()
        # The half of an old merged decoder that takes a cache takes one token with it.
        self._steps_behind_cache = "use_cache_branch" in decoder.inputs
        if is_foreign and not decoder.shares_cache and ("com.microsoft", "MultiHeadAttention") in facts.operators:
            self._steps_behind_cache |= self._fails_at_two_behind_one()

    def _fails_at_two_behind_one(self) -> bool:
        """Tell whether the graph fails at several tokens behind a cache; nothing but a trial shows it.

        It does where onnxruntime-genai's builder makes the mask of a MultiHeadAttention.
        """
        cache = self.new_cache()
        try:
            for token_ids in ((0,), (0, 0)):
                self._forward(token_ids, cache, stop=StopSwitch())  # with which ONNX Runtime reports no error
        except ProviderError:
            return cache.length == 1
        return False

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied, and with it the model, the engine or the conversation that holds it."""
        raise EdgeLMError(
            "A loaded model can be neither pickled nor copied: it lives in this process, and threads share it. "
            "Give another process its name or path, to load it there (edgelm.load), or let it ask `edgelm serve`."
        )

    def new_cache(self) -> KVCache:
        """Return an empty KV cache for this model."""
        return KVCache(self.config)

    def reserve(self, cache: KVCache, length: int) -> None:
        """Let a cache have room for a text of `length` tokens before it comes, and give back what texts have read of
        the embedding's file.
        """
        with self._use:
            self._give_tables_back()
            self._make_room(cache, length)

    def adopt(self, cache: KVCache) -> None:
        """Take a cache that was read from a file for one of this model: while it lives, its adapter is not unloaded."""
        cache.join(self._holders)

    def check_process(self) -> None:
        """Check that this is the process that loaded the model.

        Raises:
            ProviderError: it is a fork of that one.
        """
        if os.getpid() != self._process:
            # A fork has none of ONNX Runtime's threads: the step would wait for them for ever.
            raise ProviderError(
                f"This model was loaded by process {self._process}; its fork {os.getpid()} cannot run it. Load the "
                'model after the fork, or start processes with multiprocessing.get_context("spawn").'
            )

    @property
    def has_prefill_graph(self) -> bool:
        """Whether prompts are read by a graph of their own."""
        return self._prefill is not None

    @property
    def adapters(self) -> Mapping[str, AdapterManifest]:
        """The adapters that are loaded now, by name."""
        return self._graph.adapters.manifests

    def check_takes_adapters(self) -> None:
        """Check that this graph can have adapters.

        Raises:
            ConfigError: it has none.
        """
        if not self._takes_adapters:
            raise ConfigError(
                f"{self._path} takes no adapters here: they run on the CPU, beside packages of edgelm's own whose "
                "attention is ONNX Runtime's. Merge the adapter into the checkpoint that this was made of, and export "
                "that: edgelm merge ADAPTER --base CHECKPOINT -o merged/, then edgelm export merged/ -o PACKAGE"
            )

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Load an adapter beside those that are; what is being computed ends its step before.

        The first one puts another graph in the place of the package's, over the same weights: both together would hold
        them twice. So does one that changes layers that none before it does.

        Raises:
            ConfigError: an adapter of that name is loaded, or this graph takes none.
            ProviderError: the process is a fork of the one that loaded the model.
            PackageError: the graph has no product for one of its layers, or the package was changed.
        """
        self.check_takes_adapters()
        shapes = self.config.tensor_shapes()
        products: dict[str, list[tuple[int, ...]]] = {}
        for product in products_of(self._read(self._path)[0], self._path):
            weights = [f"{part}.weight" for part in parts_of(product)]
            if all(weight in shapes for weight in weights):
                products[product] = [shapes[weight] for weight in weights]

        def with_it() -> AdapterBank:
            bank = self._graph.adapters
            if name in bank.ranks:  # asked here, where no other thread loads one meanwhile
                raise ConfigError(
                    f"An adapter {name!r} is loaded already. Unload it first, or give this one another name."
                )
            return bank.with_adapter(name, adapter, products)

        self._put_in(with_it)

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter; with the last one, the package's own graph is back.

        Raises:
            ConfigError: none of that name is loaded, or a KV cache that was computed with it is still in use.
            ProviderError: as from `load_adapter`.
        """

        def without() -> AdapterBank:
            # Counted, not listed: the error would hold them.
            users = sum(isinstance(holder, KVCache) and holder.adapter == name for holder in self._holders.all())
            if users:
                raise ConfigError(
                    f"The adapter {name!r} is in use by {users} KV caches. First end those answers, and the "
                    "conversations that are held with it."
                )
            left = self._graph.adapters.without_adapter(name)
            for holder in self._holders.all():
                if isinstance(holder, PrefixCache):
                    holder.forget_adapter(name)
            return left

        self._put_in(without)

    def _put_in(self, change: Callable[[], AdapterBank]) -> None:
        """Give the graph other adapters, when nothing is being computed."""
        self.check_process()  # first: in a fork, threads that were computing when it began never leave `_use`
        with self._use.alone():
            old, new = self._graph.adapters, change()
            for holder in self._holders.all():
                if isinstance(holder, KVCache | KVBatch):
                    holder.forget_bindings()  # they hold the session, and its weights with it
            if self._single_steps is not None:
                self._single_steps.forget_bindings()
            if new.matrices.keys() != old.matrices.keys():
                before, after = self._graphs_for(old, new)
                self._graph.session = None
                try:
                    self._graph.session, self._graph.tables = self._started(after, self._path)
                except BaseException:
                    self._graph.session, self._graph.tables = self._started(before, self._path)
                    raise
            self._graph.adapters = new

    def _started(self, graph: bytes, path: Path, *, is_prefill_graph: bool = False) -> tuple[Any, Tables]:
        return onnx_runtime.start(self._runtime, graph, path, self._options, is_prefill_graph=is_prefill_graph)

    def _graphs_for(self, *banks: AdapterBank) -> list[bytes]:
        """Return the graph for each of some banks; the package is checked again, since its weights are read again."""
        if self._manifest is not None:
            check_hash(self._path.parent, self._manifest.entry(DATA_FILE))
        graph, _ = self._read(self._path)
        return [with_adapters(graph, self._path, bank.widths) if bank.matrices else graph for bank in banks]

    def _read(self, path: Path) -> tuple[bytes, GraphFacts]:
        return read_graph(path, None if self._manifest is None else self._manifest.entry(path.name))

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
            ProviderError: the process is a fork of the one that loaded the model, or ONNX Runtime fails.
            StoppedError: `stop` was pressed; the cache is as before.
        """
        with self._use:
            return self._forward(token_ids, cache, all_logits, stop)

    def _forward(
        self, token_ids: Sequence[int], cache: KVCache, all_logits: bool = False, stop: StopSwitch | None = None
    ) -> NDArray[np.float32]:
        # A step passes here with cold caches, where each call of a function costs as much as its work: so it makes few.
        length = len(cache.token_ids) + len(token_ids)
        if len(token_ids) > 1:
            facts = self._graph.facts
            if (self._steps_behind_cache and cache.length > 0) or (all_logits and facts.gives_last_logits):
                return self._forward_in_pieces(1, token_ids, cache, all_logits, stop)
            if all_logits and facts.has_shortlist and len(token_ids) > SHORTLISTED_POSITIONS:
                return self._forward_in_pieces(SHORTLISTED_POSITIONS, token_ids, cache, all_logits, stop)
        try:
            logits_TV = self._bound(cache, length).run(cache, token_ids, all_logits, stop)
            cache.extend(token_ids)
        except BaseException as error:
            forget_half_written(cache, error)
            raise
        if self.config.suppressed_token_ids:
            logits_TV[:, list(self.config.suppressed_token_ids)] = SUPPRESSED_LOGIT
        return logits_TV

    def _forward_in_pieces(
        self, size: int, token_ids: Sequence[int], cache: KVCache, all_logits: bool, stop: StopSwitch | None
    ) -> NDArray[np.float32]:
        before, kept = cache.length, cache.snapshots
        cache.snapshots = kept.copy()
        cache.take_snapshot(is_passing=True)  # to go back to, where a piece is stopped
        pieces = (token_ids[start : start + size] for start in range(0, len(token_ids), size))
        try:
            rows = [self._forward(piece, cache, all_logits, stop).copy() for piece in pieces]
        except BaseException:
            cache.truncate(before)
            raise
        finally:  # that snapshot may lie inside a block of the prefix cache, which has states at the ends of blocks
            kept.forget_after(cache.length)
            cache.snapshots = kept
        return np.concatenate(rows if all_logits else rows[-1:])

    def forward_hidden(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute T tokens after those in `cache`, and add them to it, as `forward` does.

        Returns what the head reads of them: the hidden states float32 [T, D] behind the last norm.

        Raises:
            ConfigError: the graph does not give them.
            ContextLengthError, ProviderError: as from `forward`.
        """
        if not self._graph.facts.has_hidden_state:
            raise ConfigError(
                f"The graph of this package has no output {HIDDEN_STATE}, which these embeddings are made of. Export "
                'the model again (edgelm export SOURCE -o FOLDER), or take the pooling "values".'
            )
        with self._use:
            try:
                hidden_TD = self._bound(cache, cache.length + len(token_ids)).run_hidden(cache, token_ids)
                cache.extend(token_ids)
            except BaseException as error:
                forget_half_written(cache, error)
                raise
        return hidden_TD

    def reads_prompts(self, cache: KVCache) -> bool:
        """Tell whether a graph of its own reads prompts into a cache: the decoder's alone has places for adapters."""
        return self._prefill is not None and cache.adapter is None

    def read_prompt(self, token_ids: Sequence[int], cache: KVCache, *, stop: StopSwitch | None = None) -> None:
        """Compute T tokens after those in `cache` by the prefill graph, where `reads_prompts`, and add them to it.

        Their logits are not computed: the decoder's graph computes a prompt's last token.

        Raises:
            ContextLengthError, ProviderError, StoppedError: as from `forward`.
        """
        with self._use:
            self._read_prompt(token_ids, cache, stop)

    def _read_prompt(self, token_ids: Sequence[int], cache: KVCache, stop: StopSwitch | None = None) -> None:
        assert self._prefill is not None
        length = cache.length + len(token_ids)
        self._make_room(cache, length)
        try:
            read_prompt(self._prefill, token_ids, cache, stop)
            cache.extend(token_ids)
        except BaseException as error:
            forget_half_written(cache, error)
            raise

    def _make_room(self, cache: KVCache, length: int) -> None:
        """Let a cache have room for `length` tokens, and what it holds be theirs."""
        self.check_process()
        if length > cache.capacity:
            if cache.is_outgrown_by(length):
                self._recompute(cache, length)
            self._give_tables_back()
            cache.reserve(length)  # forgets the binding where it grows: nothing may keep the memory that is outgrown

    def _give_tables_back(self) -> None:
        for graph in (self._graph, self._prefill, self._encoder):
            if graph is not None:
                graph.tables.give_back()  # of the embedding, what the tokens until now have read

    def _bound(self, cache: KVCache, length: int) -> Binding:
        """Return the graph bound to a cache that has room for `length` tokens."""
        self._make_room(cache, length)
        binding: Binding | None = cache.binding
        if binding is None or binding.graph is not self._graph:
            if self._encoder is not None and not cache.source_values:
                cache.source_values = self._encoder.encode(cache.source_ids)
            binding = cache.binding = bind(self._graph, cache)
            cache.join(self._holders)
        return binding

    def _recompute(self, cache: KVCache, length: int) -> None:
        """Compute the cached tokens again, as those of a text of `length` tokens (LongRoPE)."""
        token_ids = list(cache.token_ids)
        cache.truncate(0)
        cache.reserve(length)
        reads = self.reads_prompts(cache)
        size = PREFILL_GRAPH_CHUNK if reads else PREFILL_CHUNK
        for start in range(0, len(token_ids), size):
            (self._read_prompt if reads else self._forward)(token_ids[start : start + size], cache)

    def most_single_steps(self) -> int:
        """Return how many tokens of a text one call of the graph computes with the bits of single steps: in
        `forward_single_steps`, and as a row's next token and its guesses in `forward_rows`.
        """
        with self._use:
            return self._most_single_steps()

    def _most_single_steps(self) -> int:
        return 1 if self._single_steps is None else self._single_steps.most()

    def forward_single_steps(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute T tokens after those in `cache`, and add them to it, with the bits of T calls of `forward`.

        Returns float32 logits [T, V], which the next call with the same cache overwrites.

        Raises:
            ContextLengthError, ProviderError: as from `forward`.
        """
        length = cache.length + len(token_ids)
        with self._use:
            if self._single_steps is not None and 1 < len(token_ids) <= self._most_single_steps():
                self.check_process()
                if not cache.is_outgrown_by(length):
                    cache.reserve(length)
                    logits_TV = self._single_steps.step(token_ids, cache)
                    if logits_TV is not None:
                        cache.join(self._holders)
                        cache.token_ids.extend(token_ids)
                        return logits_TV
            return np.concatenate([self._forward((id_,), cache).copy() for id_ in token_ids])

    def forward_rows(
        self, token_ids: Sequence[int], batch: KVBatch, guesses: Sequence[Sequence[int]] = ()
    ) -> NDArray[np.float32]:
        """Compute one more token for each of the first B rows of a batch, together, and add it to its row.

        guesses: for each row the tokens that may follow this one, with which it has up to `most_single_steps`; up to
        MOST_SHOWN for all rows of a batch that mirrors. They are added too, and whoever finds them wrong truncates the
        row.

        Returns float32 logits [B, V], and behind them those of the guesses, row after row; the next `forward_rows`
        overwrites them. A row's logits have the bits that `forward` gives for it alone. Where the system has no memory
        for guesses any more there are none, neither logits nor tokens.

        Raises:
            ContextLengthError: a token does not fit the model's context.
            ProviderError: the process is a fork of the one that loaded the model, or ONNX Runtime fails.
        """
        rows = batch.rows[: len(token_ids)]
        if not works_in_place(self._graph) or self._encoder is not None:
            return np.concatenate([self.forward((id_,), row) for id_, row in zip(token_ids, rows, strict=True)])
        self.check_process()
        with self._use:
            return step_rows(self._graph, self._holders, token_ids, batch, guesses)


def _check_cache_type(path: Path, decoder: DecoderGraph, name: str) -> None:
    provider = provider_named(name)
    if provider.cache_types and decoder.cache_type.name not in provider.cache_types:
        raise ProviderError(
            f"{path} has keys and values of {decoder.cache_type}; the attention of {name!r} computes with "
            f"{' or '.join(provider.cache_types)}, and would be left to the CPU. It takes a graph of "
            f"{provider.precision} (docs/guides/devices.md says how to make one); this one runs with provider='cpu'."
        )


def _values_of(session: Any) -> tuple[list[GraphValue], list[GraphValue]]:
    """Describe what a session takes, also what has a default, and what it gives."""
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]
    return _described(inputs), _described(session.get_outputs())


def _described(values: Iterable[Any]) -> list[GraphValue]:
    return [GraphValue(name=value.name, type=value.type, shape=value.shape) for value in values]
