"""Filters: which of the likely tokens may be drawn, and the draw. Pure numpy; N is the tokens that are left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgelm.config import SUPPRESSED_LOGIT
from edgelm.generation_config import GenerationConfig

Logits = NDArray[np.float32]
_BLOCK = 256
_BINS = 4096
_GROUP = 64
_LARGE = 100_000
# So far below the best one, all the tokens of a vocabulary of 262,144 weigh less than float32 rounds its weight by.
_FAR = np.float32(30.0)
_BANNED = SUPPRESSED_LOGIT / 2  # behind the best: what a model suppresses, also after a penalty, or a bias bans


class Candidates(NamedTuple):
    """The tokens that may be drawn, in the order of their ids: their logits [N], and the best of those.

    ids_N: None where they are the whole vocabulary.
    """

    logits_N: Logits
    best: np.float32
    ids_N: NDArray[np.intp] | None = None

    def at(self, places: NDArray[np.intp]) -> Candidates:
        """Return those at these places, which are in order, and have the best one among them."""
        return Candidates(self.logits_N[places], self.best, places if self.ids_N is None else self.ids_N[places])

    @classmethod
    def of(cls, logits_N: Logits, ids_N: NDArray[np.intp] | None = None) -> Candidates:
        """Return those with these logits."""
        return cls(logits_N, logits_N.max(), ids_N)

    def from_logit(self, lowest: np.float32) -> Candidates:
        """Return those with this logit or more."""
        return self.at((self.logits_N >= lowest).nonzero()[0])

    def weights(self) -> Logits:
        """Return their probabilities [N], but for a factor that makes the best one 1."""
        weights_N: Logits = self.logits_N - self.best
        return np.exp(weights_N, out=weights_N)

    def log_sum(self) -> float:
        """Return the natural logarithm of the sum of exp(logit)."""
        return float(self.best) + math.log(float(self.weights().sum(dtype=np.float64)))

    def spread(self, vocab_size: int) -> Logits:
        """Return a row of logits [V] of the whole vocabulary, -inf where a token is not left."""
        logits_V = np.full(vocab_size, -np.inf, np.float32)
        logits_V[slice(None) if self.ids_N is None else self.ids_N] = self.logits_N
        return logits_V

    def id_at(self, place: int) -> int:
        """Return the id of the token at a place."""
        return place if self.ids_N is None else int(self.ids_N[place])

    def draw(self, random: np.random.Generator) -> int:
        """Return the place of a token that is drawn by its probability."""
        weights_N, share, first = self.weights(), random.random(), 0
        if weights_N.size > _BLOCK:
            # Sums of blocks first: one running sum over 49,152 weights takes 0.4 ms.
            starts = np.arange(0, weights_N.size, _BLOCK)
            mass = np.cumsum(np.add.reduceat(weights_N, starts, dtype=np.float64))
            block, share = _place_in(mass, share)
            first = block * _BLOCK
        place, _ = _place_in(np.cumsum(weights_N[first : first + _BLOCK], dtype=np.float64), share)
        return first + place


# Where logits are equal, filters keep all or none of their tokens. A step drives their code from the processor's
# caches, so that the first call of each function of numpy costs 10 to 50 us, whatever it has to do: they call few.


def scale_by_temperature(left: Candidates, config: GenerationConfig) -> Candidates:
    """Divide by the temperature: below 1 the likely tokens gain, above 1 the unlikely ones."""
    # With the best one at 0 and this floor, no temperature makes a logit overflow, nor what a bias puts far below.
    temperature = np.float32(max(config.temperature, 1e-20))
    if temperature < 1 and left.logits_N.size > _LARGE:
        left = left.from_logit(left.best - _FAR * temperature)
    logits_N = (left.logits_N - left.best) / temperature
    return left._replace(logits_N=logits_N, best=np.float32(0.0))


def keep_top_k(left: Candidates, config: GenerationConfig) -> Candidates:
    """Keep the k most likely tokens."""
    logits_N, k = left.logits_N, config.top_k
    if k >= logits_N.size:
        return left
    # To part all of 262,144 logits takes 4 ms. But of the largest one in each of some groups, k are as large as the kth
    # of those, so that nothing below it is among the k most likely.
    groups = logits_N.size // _GROUP
    if k <= groups:
        peaks = logits_N[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        left = left.from_logit(_kth_largest(peaks, k))
    return left.from_logit(_kth_largest(left.logits_N, k))


def keep_top_p(left: Candidates, config: GenerationConfig) -> Candidates:
    """Keep the most likely tokens that together have the probability `top_p` (arXiv:1904.09751)."""
    weights_N = left.weights()
    whole_mass = float(weights_N.sum(dtype=np.float64))
    mass_to_drop = (1.0 - config.top_p) * whole_mass
    # Few tokens are sorted: those that have a thousandth of the best one's weight, where they are enough; else all but
    # those below an equal share of the mass to drop, which are dropped for sure.
    for least in (1e-3, mass_to_drop / weights_N.size):
        places = (weights_N >= least).nonzero()[0]
        if whole_mass - float(weights_N[places].sum(dtype=np.float64)) <= mass_to_drop:
            break
    left = left.at(places)
    mass = np.cumsum(np.sort(weights_N[places]), dtype=np.float64)
    mass += whole_mass - mass[-1]
    first_kept = int(mass.searchsorted(mass_to_drop, side="right"))
    return left.from_logit(np.sort(left.logits_N)[min(first_kept, mass.size - 1)])


def keep_min_p(left: Candidates, config: GenerationConfig) -> Candidates:
    """Keep the tokens at least `min_p` times as probable as the most likely one (arXiv:2407.01082)."""
    return left.from_logit(left.best + np.float32(math.log(config.min_p)))


def keep_typical(left: Candidates, config: GenerationConfig) -> Candidates:
    """Keep the tokens whose surprise is nearest to the expected one, with the probability `typical_p` (2202.00666)."""
    left = left.at(np.flatnonzero(left.logits_N > -np.inf))
    logprobs = left.logits_N - np.float32(left.log_sum())
    probabilities = np.exp(logprobs)
    distances = np.abs(logprobs - np.dot(probabilities, logprobs))
    # Only the tokens of the bin in which the mass is reached are sorted: to sort all of 49,152 takes 4 ms.
    bins = (distances * (_BINS / max(float(distances.max()), 1e-30))).astype(np.int32)
    mass = np.cumsum(np.bincount(bins, weights=probabilities))
    bin_ = min(int(np.searchsorted(mass, config.typical_p, side="left")), mass.size - 1)
    inside = np.flatnonzero(bins == bin_)
    order = inside[np.argsort(distances[inside])]
    running = (
        mass[bin_] - np.sum(probabilities[order], dtype=np.float64) + np.cumsum(probabilities[order], dtype=np.float64)
    )
    last_kept = min(int(np.searchsorted(running, config.typical_p, side="left")), order.size - 1)
    left = left.at((distances <= distances[order[last_kept]]).nonzero()[0])
    return Candidates.of(left.logits_N, left.ids_N)  # the best one may have been dropped


def keep_near_best(left: Candidates, config: GenerationConfig) -> Candidates:
    """Keep the tokens within `top_n_sigma` standard deviations of the best logit (top-n-sigma, arXiv:2411.07641)."""
    best = left.best
    kept = left.logits_N[left.logits_N > best + _BANNED]
    return left.from_logit(best - np.float32(config.top_n_sigma) * kept.std())


def exclude_top_choices(left: Candidates, config: GenerationConfig) -> Candidates:
    """Drop all tokens of the probability `xtc_threshold` or more, but for the least likely of them (XTC).

    Source: text-generation-webui, pull request 6335. The sampler does it by chance, with `xtc_probability`.
    """
    threshold = np.float32(left.log_sum() + math.log(config.xtc_threshold))
    choices = np.flatnonzero(left.logits_N >= threshold)
    if choices.size < 2:
        return left
    is_left_N = left.logits_N < threshold
    is_left_N[choices[np.argmin(left.logits_N[choices])]] = True
    left = left.at(is_left_N.nonzero()[0])
    return Candidates.of(left.logits_N, left.ids_N)


def keep_surprise(left: Candidates, limit: float) -> Candidates:
    """Keep the tokens whose surprise is at most `limit` bits, and the best one (Mirostat 2.0, arXiv:2007.14966)."""
    threshold = left.log_sum() - limit * math.log(2)
    return left.from_logit(min(np.float32(threshold), left.best))


# One row each: the field of GenerationConfig, and the function it turns on when it is not neutral. They apply in this
# order, which is transformers'; but the k most likely are the same at any temperature, and fewer to divide by it.
FILTERS: dict[str, Callable[[Candidates, GenerationConfig], Candidates]] = {
    "top_n_sigma": keep_near_best,
    "top_k": keep_top_k,
    "temperature": scale_by_temperature,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical,
}


def _kth_largest(logits_N: Logits, k: int) -> np.float32:
    place = logits_N.size - k
    lowest: np.float32 = np.partition(logits_N, place)[place]
    return lowest


def _place_in(mass: NDArray[np.float64], share: float) -> tuple[int, float]:
    """Return the first place whose running mass exceeds a share of the whole, and what share of its own mass that is.

    Rounding may not lead past the last one with a mass.
    """
    whole = float(mass[-1])
    target = min(share * whole, math.nextafter(whole, 0.0))
    place = int(mass.searchsorted(target, side="right"))
    below = float(mass[place - 1]) if place else 0.0
    return place, (target - below) / (float(mass[place]) - below)
