"""SessionOptions: how ONNX Runtime runs a graph, validated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgelm.arguments import check_boolean, is_whole
from edgelm.errors import ConfigError
from edgelm.runtime.cpu import MOST_THREADS
from edgelm.runtime.providers import CPU, provider_named


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How ONNX Runtime runs the graph.

    threads: of one step; None takes the physical cores. More threads than cores halve the speed
    (docs/results/graph-and-settings.md). provider: what computes: "cpu", "cuda", "tensorrt", "directml", "coreml",
    "openvino", "qnn" or "webgpu" (docs/guides/devices.md). provider_options: in ONNX Runtime's words, besides those
    that edgelm sets and before them. prefill_graph: whether prompts are read by the graph that a package may have for
    them, on the CPU; False saves the memory of its weights, and prompts take longer.

    Raises:
        ConfigError: threads is out of range, provider_options are no texts, or prefill_graph is neither True nor False.
        ProviderError: there is no such provider.
    """

    threads: int | None = None
    provider: str = CPU
    provider_options: Mapping[str, str] = field(default_factory=dict, hash=False)  # a copy is kept
    prefill_graph: bool = True

    def __post_init__(self) -> None:
        if self.threads is not None and not (is_whole(self.threads) and 1 <= self.threads <= MOST_THREADS):
            raise ConfigError(f"threads is {self.threads!r}; it must be a whole number from 1 to {MOST_THREADS}.")
        provider_named(self.provider)
        given = self.provider_options
        if not isinstance(given, Mapping) or not all(isinstance(text, str) for pair in given.items() for text in pair):
            raise ConfigError(f"provider_options is {given!r}; it must map texts to texts.")
        object.__setattr__(self, "provider_options", dict(given))
        check_boolean("prefill_graph", self.prefill_graph)
