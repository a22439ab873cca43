"""AdapterBank: the matrices of the loaded adapters, as the products of the adapted graph take them.

The adapters lie behind one another by rank, so that a call binds a slice of each matrix, and nothing is copied: of one
adapter its own ranks, of several those from the first to the last, of none no rows at all. The gate is one where a
row's own adapter is, and zero elsewhere. Shapes: B rows, R ranks, P projections that a product fuses, C = R P
components, D and N what the product takes and gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgelm.errors import ConfigError, PackageError
from edgelm.package.adapter import Adapter, AdapterManifest, Matrix
from edgelm.runtime.adapter_graph import (
    FACTOR,
    FUSED_PROJECTIONS,
    SUM_BLOCK,
    block_of,
    gate_name,
    matrix_names,
    parts_of,
)

_PARTS = sorted({1, *map(len, FUSED_PROJECTIONS.values())})
GraphProducts = Mapping[str, Sequence[tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class AdapterBank:
    """Hold the loaded adapters.

    matrices: A [C, D] and B [C, N] of each product that an adapter changes. ranks: the place of each adapter.
    products: what each of them changes. manifests: what each of them is.
    """

    matrices: Mapping[str, tuple[Matrix, Matrix]] = field(default_factory=dict)
    ranks: Mapping[str, range] = field(default_factory=dict)
    products: Mapping[str, Collection[str]] = field(default_factory=dict)
    manifests: Mapping[str, AdapterManifest] = field(default_factory=dict)

    def with_adapter(self, name: str, adapter: Adapter, graph_products: GraphProducts) -> AdapterBank:
        """Return a bank with one more adapter, behind the others; it has copies of the matrices.

        graph_products: what the graph computes in one product each, and the shapes [N, D] of its projections.

        Raises:
            PackageError: the graph has no product for one of the adapter's layers.
        """
        return self._with(name, adapter.manifest, _joined(adapter, graph_products))

    def _with(self, name: str, manifest: AdapterManifest, own: Mapping[str, tuple[Matrix, Matrix]]) -> AdapterBank:
        start = _start_behind(self._size, manifest.rank)
        stop = start + manifest.rank
        matrices = {}
        for product in sorted({*self.matrices, *own}):
            P = len(parts_of(product))
            a, b = self.matrices.get(product, (None, None))
            own_a, own_b = own.get(product, (None, None))
            matrices[product] = _stacked(a, own_a, start * P, stop * P), _stacked(b, own_b, start * P, stop * P)
        return AdapterBank(
            matrices=matrices,
            ranks={**self.ranks, name: range(start, stop)},
            products={**self.products, name: frozenset(own)},
            manifests={**self.manifests, name: manifest},
        )

    def without_adapter(self, name: str) -> AdapterBank:
        """Return a bank with one adapter less; it has copies of the matrices.

        Raises:
            ConfigError: none of that name is loaded.
        """
        self._place(name)
        left = AdapterBank()
        for other, manifest in self.manifests.items():
            if other != name:
                left = left._with(other, manifest, self._matrices_of(other))
        return left

    def _matrices_of(self, name: str) -> dict[str, tuple[Matrix, Matrix]]:
        matrices, place = {}, self.ranks[name]
        for product in self.products[name]:
            P = len(parts_of(product))
            a, b = self.matrices[product]
            matrices[product] = a[place.start * P : place.stop * P], b[place.start * P : place.stop * P]
        return matrices

    def covering(self, names: Sequence[str | None]) -> range:
        """Return the ranks from the first to the last of some adapters; None is the base alone.

        Raises:
            ConfigError: one of them is not loaded.
        """
        places = {self._place(name) for name in names if name is not None}
        if len(places) < 2:
            return next(iter(places), range(0))
        first = min(place.start for place in places) // SUM_BLOCK * SUM_BLOCK
        return range(first, max(place.stop for place in places))

    @property
    def widths(self) -> dict[str, int]:
        """The D of each product that an adapter changes."""
        return {product: a.shape[1] for product, (a, _) in self.matrices.items()}

    def inputs(self, ranks: range, fewest_rows: int = 0) -> dict[str, Matrix]:
        """Return the graph's inputs A [C, G, K] and B [C, N] for some of the ranks: views.

        fewest_rows: so many has A where there are no ranks; the gate takes nothing of them.
        """
        inputs = {}
        for product, (a, b) in self.matrices.items():
            P, K = len(parts_of(product)), block_of(a.shape[1])
            name_a, name_b = matrix_names(product)
            rows = slice(ranks.start * P, ranks.stop * P)
            taken = a[rows] if ranks else a[:fewest_rows]
            inputs[name_a], inputs[name_b] = taken.reshape(len(taken), a.shape[1] // K, K), b[rows]
        return inputs

    def gates(self, names: Sequence[str | None], ranks: range) -> dict[str, Matrix]:
        """Return the graph's gates [B, 1, C] for B rows, each with its own adapter."""
        gate_BR = np.zeros((len(names), len(ranks)), np.float32)
        for row, name in enumerate(names):
            if name is not None:
                place = self._place(name)
                gate_BR[row, place.start - ranks.start : place.stop - ranks.start] = 1.0
        parts = {len(parts_of(product)) for product in self.matrices}
        return {gate_name(P): np.repeat(gate_BR, P, axis=1)[:, None] for P in parts}

    def _place(self, name: str) -> range:
        if name not in tuple(self.ranks):  # a list that stands in its place has no hash
            raise ConfigError(f"No adapter {name!r} is loaded. Loaded: {', '.join(self.ranks) or 'none'}.")
        return self.ranks[name]

    @property
    def _size(self) -> int:
        return max((place.stop for place in self.ranks.values()), default=0)


def _joined(adapter: Adapter, graph_products: GraphProducts) -> dict[str, tuple[Matrix, Matrix]]:
    """Join the matrices of the projections that a product fuses: their components in turn, B zero outside its part."""
    product_of = {part: product for product in graph_products for part in parts_of(product)}
    for layer in adapter.matrices:
        if layer not in product_of:
            raise PackageError(
                f"The graph has no product for {layer}, which the adapter {adapter.manifest.name} changes. Merge the "
                "adapter into its base instead: edgelm merge"
            )
    changed = {product_of[layer] for layer in adapter.matrices}
    return {product: _joined_product(adapter, product, graph_products[product]) for product in sorted(changed)}


def _joined_product(adapter: Adapter, product: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Matrix, Matrix]:
    rank, widths = adapter.manifest.rank, [N for N, _ in shapes]
    a_RPD = np.zeros((rank, len(shapes), shapes[0][1]), np.float32)
    b_RPN = np.zeros((rank, len(shapes), sum(widths)), np.float32)
    for i, part in enumerate(parts_of(product)):
        if part in adapter.matrices:
            a, b = adapter.matrices[part]
            first = sum(widths[:i])
            a_RPD[: len(a), i] = a
            b_RPN[: len(a), i, first : first + widths[i]] = b.T / FACTOR**2  # the graph's two products have it each
    return a_RPD.reshape(-1, a_RPD.shape[2]), b_RPN.reshape(-1, b_RPN.shape[2])


def _start_behind(size: int, rank: int) -> int:
    """Return where an adapter may begin, behind what has `size` ranks.

    No product's sum over its components goes past a multiple of SUM_BLOCK, unless it begins at one: it would be added
    up in other pieces than alone.
    """
    whole_block = -(-size // SUM_BLOCK) * SUM_BLOCK
    for start in range(size, whole_block):
        if all(start * P // SUM_BLOCK == ((start + rank) * P - 1) // SUM_BLOCK for P in _PARTS):
            return start
    return whole_block


def _stacked(others: Matrix | None, own: Matrix | None, start: int, stop: int) -> Matrix:
    """Put one adapter's rows, from `start` to `stop`, behind the others'; zeros stand for what changes nothing."""
    there = others if others is not None else own
    assert there is not None
    stacked = np.zeros((stop, there.shape[1]), np.float32)
    if others is not None:
        stacked[: len(others)] = others
    if own is not None:
        stacked[start:] = own
    return stacked
