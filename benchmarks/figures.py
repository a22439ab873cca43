"""Figures: medians and ratios of a result, as the report and the goals read them."""

from __future__ import annotations

import statistics
from typing import Any

NONE, ALL = "none", "all"  # who has its memory on huge pages


class Figures:
    """Read a result: everything by contestant's name, and rates by (huge pages, workload) too.

    A ratio is the median of the ratios within each round: what slows the machine for a while slows both sides of one.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self._result = result

    @property
    def model(self) -> str:
        """The model's name among `models.MODELS`."""
        return str(self._result["model"])

    @property
    def workloads(self) -> list[str]:
        return [workload["name"] for workload in self._result["workloads"]]

    def has(self, *names: str) -> bool:
        """Whether these were measured."""
        return all(name in self._result["bytes_on_disk"] for name in names)

    @property
    def has_perplexity(self) -> bool:
        return bool(self._result["perplexity"])

    def timed(self) -> list[str]:
        return list(self._result["rounds"][NONE])

    def _prompt_tokens(self, workload: str) -> int:
        return next(row["prompt_tokens"] for row in self._result["workloads"] if row["name"] == workload)

    def _rounds(self, name: str, pages: str, workload: str, key: str) -> list[float]:
        return [row[key] for row in self._result["rounds"][pages][name]["workloads"][workload]]

    def _seconds(self, name: str, pages: str, workload: str, key: str) -> float:
        return statistics.median(self._rounds(name, pages, workload, key))

    def prefill(self, name: str, pages: str, workload: str) -> float:
        """Prompt tokens per second, until the first new token."""
        return self._prompt_tokens(workload) / self.first_token(name, pages, workload)

    def decode(self, name: str, pages: str, workload: str) -> float:
        """New tokens per second after the first."""
        return 1 / self._seconds(name, pages, workload, "step_median")

    def first_token(self, name: str, pages: str, workload: str) -> float:
        return self._seconds(name, pages, workload, "first_token")

    def python_share(self, name: str, pages: str, workload: str) -> float:
        return self._seconds(name, pages, workload, "python_median")

    def prefill_ratio(self, name: str, peer: str, pages: str, workload: str) -> float:
        return self._ratio(name, peer, pages, workload, "first_token")

    def decode_ratio(self, name: str, peer: str, pages: str, workload: str) -> float:
        return self._ratio(name, peer, pages, workload, "step_median")

    def _ratio(self, name: str, peer: str, pages: str, workload: str, key: str) -> float:
        pairs = zip(self._rounds(peer, pages, workload, key), self._rounds(name, pages, workload, key), strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def bandwidth(self, pages: str) -> float:
        """Bytes a second that are read from memory."""
        return statistics.median(self._result["read_bandwidth"][pages])

    def weight_bytes(self, name: str) -> int:
        """Bytes of weights that a step reads."""
        return int(self._result["weight_bytes"][name])

    def bandwidth_share(self, name: str, pages: str, workload: str) -> float:
        """A step's weights over its time, of what is read from memory; above 1 where they lie in the caches."""
        steps, bandwidths = self._rounds(name, pages, workload, "step_median"), self._result["read_bandwidth"][pages]
        shares = (self.weight_bytes(name) / step / read for step, read in zip(steps, bandwidths, strict=True))
        return statistics.median(shares)

    def peak_bytes(self, name: str, pages: str) -> int:
        return int(self._result["rounds"][pages][name]["peak_bytes"])

    def huge_page_bytes(self, name: str, pages: str) -> int:
        return int(self._result["rounds"][pages][name]["huge_page_bytes"])

    def perplexity(self, name: str) -> float:
        return float(self._result["perplexity"][name])

    def bytes_on_disk(self, name: str) -> int:
        return int(self._result["bytes_on_disk"][name])

    def load(self, name: str) -> float:
        return statistics.median(self._result["starts"][name]["load_seconds"])

    def start(self, name: str) -> float:
        """Import and load together."""
        starts = self._result["starts"][name]
        return statistics.median(map(sum, zip(starts["import_seconds"], starts["load_seconds"], strict=True)))

    def import_edgelm(self) -> float:
        return statistics.median(self._result["import_edgelm_seconds"])

    def others_cpus(self) -> float:
        """The median of what other processes took of the machine, in CPUs."""
        return statistics.median(
            row["others_cpus"]
            for by_name in self._result["rounds"].values()
            for measured in by_name.values()
            for rows in measured["workloads"].values()
            for row in rows
        )
