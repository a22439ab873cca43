"""A layer quantized in passing: each projection when its inputs come to it, before its outputs go on from there.

So each projection is quantized for the outputs of those before it as the package will have them, and one run of the
layer does for all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import numpy as np

from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoints.tensor_map import EXPERTS
from edgelm_export.quantize.gptq import quantize_gptq
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, rows_of, unpack
from edgelm_export.quantize.statistics import InputStatistics
from edgelm_export.reference.weights import Array, ObservedWeights

_ATTENTION_WRITERS, _FEED_FORWARD_WRITER = ("self_attn.o_proj", "conv.out_proj"), "mlp.down_proj"


class LayerInPassing:
    """The weights of one layer, for one run of it with all tokens of a text.

    weights: for `reference.run_layer`; they are on their grids when it returns, and `packed` has them by their names.
    source: what each projection meets in the source, [T, K]. lacking_TD: what the package's residual stream lacks of
    the source's where it enters the layer; None where the layer's parts are not added to it one by one as they are.
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        source: Mapping[str, Array],
        scheme_of: Callable[[str], Scheme | None],
        lacking_TD: Array | None,
    ) -> None:
        quantize = weakref.WeakMethod(self._quantize)

        def observe(module: str, inputs_TK: Array) -> None:
            method = quantize()
            assert method is not None  # whoever runs the layer has it
            method(module, inputs_TK)

        # Weak: in a cycle, what the layer meets, some hundred megabytes, would stay until Python looks for cycles.
        self.weights = ObservedWeights(weights, observe)
        self.packed: dict[str, PackedWeight] = {}
        self._source, self._scheme_of, self._lacking_TD = source, scheme_of, lacking_TD
        self._seen: set[str] = set()

    def _quantize(self, module: str, inputs_TK: Array) -> None:
        if module in self._seen:
            return
        shared = [other for other, source_TK in self._source.items() if source_TK is self._source[module]]
        self._seen.update(shared)
        by_scheme: dict[Scheme, list[str]] = {}
        for other in shared:
            scheme = self._scheme_of(other)
            if scheme is not None and self.weights[f"{other}.weight"].ndim == 2:
                by_scheme.setdefault(scheme, []).append(other)
        statistics = None
        if any(scheme.method == "gptq" for scheme in by_scheme) and len(inputs_TK):
            statistics = self._statistics(module, inputs_TK)
        before = self.weights[f"{module}.weight"]
        for scheme, modules in by_scheme.items():
            self._store(modules, scheme, statistics)
        if module in _ATTENTION_WRITERS and self._lacking_TD is not None:
            # What is between attention and feed-forward, in the source and here.
            apart_TD = self._source[module] @ before.T - inputs_TK @ self.weights[f"{module}.weight"].T
            self._lacking_TD = self._lacking_TD + apart_TD

    def _statistics(self, module: str, inputs_TK: Array) -> InputStatistics:
        if EXPERTS in module:
            return InputStatistics.of(inputs_TK, inputs_TK)  # in the source, other tokens came to this one
        writes = module in (*_ATTENTION_WRITERS, _FEED_FORWARD_WRITER)
        return InputStatistics.of(self._source[module], inputs_TK, self._lacking_TD if writes else None)

    def _store(self, modules: list[str], scheme: Scheme, statistics: InputStatistics | None) -> None:
        """Quantize matrices of one input and one scheme as one: their rows do not know of each other."""
        weights = [self.weights[f"{module}.weight"] for module in modules]
        stacked_NK = np.concatenate(weights)
        if scheme.method != "gptq" or statistics is None:  # no token of the text came to this expert
            packed = quantize_alone(stacked_NK, scheme)
        else:
            packed = quantize_gptq(stacked_NK, statistics, scheme)
        start = 0
        for module, weight in zip(modules, weights, strict=True):
            part = rows_of(packed, slice(start, start + len(weight)))
            self.packed[f"{module}.weight"], self.weights[f"{module}.weight"] = part, unpack(part)
            start += len(weight)
