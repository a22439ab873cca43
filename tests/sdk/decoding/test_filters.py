import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from logit_rows import SIZES, Row, reference, rows
from transformers.generation import logits_process as oracle

from edgelm.config import SUPPRESSED_LOGIT
from edgelm.decoding import filters
from edgelm.decoding.filters import Candidates
from edgelm.decoding.sampling import Sampler
from edgelm.generation_config import GenerationConfig

Filter = Callable[[Candidates, GenerationConfig], Candidates]


def left_by(keep: Filter, row: Row, config: GenerationConfig) -> Row:
    """Return a row as a filter leaves it, -inf where it drops a token."""
    return keep(Candidates.of(row), config).spread(row.size)


def ids_left(keep: Filter, row: Row, config: GenerationConfig) -> list[int]:
    return np.flatnonzero(left_by(keep, row, config) > -np.inf).tolist()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("keep", "fields", "warper"),
    [
        (filters.keep_top_k, {"top_k": 1}, oracle.TopKLogitsWarper(1)),
        (filters.keep_top_k, {"top_k": 40}, oracle.TopKLogitsWarper(40)),
        (filters.keep_top_p, {"top_p": 0.05}, oracle.TopPLogitsWarper(0.05)),
        (filters.keep_top_p, {"top_p": 0.9}, oracle.TopPLogitsWarper(0.9)),
        (filters.keep_top_p, {"top_p": 0.999}, oracle.TopPLogitsWarper(0.999)),
        (filters.keep_min_p, {"min_p": 0.05}, oracle.MinPLogitsWarper(0.05)),
        (filters.keep_min_p, {"min_p": 1.0}, oracle.MinPLogitsWarper(1.0)),
        (filters.keep_typical, {"typical_p": 0.2}, oracle.TypicalLogitsWarper(0.2)),
        (filters.keep_typical, {"typical_p": 0.95}, oracle.TypicalLogitsWarper(0.95)),
    ],
)
def test_a_filter_keeps_what_transformers_keeps(
    size: int,
    keep: Filter,
    fields: dict[str, float],
    warper: oracle.LogitsProcessor,
) -> None:
    for row in rows(size):
        kept = left_by(keep, row, GenerationConfig(**fields))
        np.testing.assert_array_equal(kept, reference(warper, row).astype(np.float32))


def test_a_chain_of_filters_keeps_what_transformers_keeps() -> None:
    config = GenerationConfig(temperature=0.7, top_k=50, top_p=0.9, min_p=0.02, typical_p=0.9)
    warpers = oracle.LogitsProcessorList(
        [
            oracle.TemperatureLogitsWarper(0.7),
            oracle.TopKLogitsWarper(50),
            oracle.TopPLogitsWarper(0.9),
            oracle.MinPLogitsWarper(0.02),
            oracle.TypicalLogitsWarper(0.9),
        ]
    )
    assert list(filters.FILTERS) == ["top_n_sigma", "top_k", "temperature", "top_p", "min_p", "typical_p"]
    for row in rows(5000):
        left = Candidates.of(row)
        for field, keep in filters.FILTERS.items():
            if field != "top_n_sigma":  # transformers has none
                left = keep(left, config)
        kept = left.spread(row.size)
        np.testing.assert_array_equal(np.isinf(kept), np.isinf(reference(warpers, row)))


@pytest.mark.parametrize(("k", "allowed"), [(20, 49152), (20, 300), (20, 20), (20, 7), (700, 49152), (2000, 49152)])
def test_the_k_most_likely_of_a_large_vocabulary_are_those_of_transformers(k: int, allowed: int) -> None:
    for row in rows(49152):
        row[np.random.default_rng(1).permutation(row.size)[allowed:]] = -np.inf  # a constraint bans the others
        in_steps = np.round(row)  # of which many are equal
        for each in (row, in_steps):
            kept = left_by(filters.keep_top_k, each, GenerationConfig(top_k=k))
            np.testing.assert_array_equal(kept, reference(oracle.TopKLogitsWarper(k), each).astype(np.float32))


@pytest.mark.parametrize("p", [0.3, 0.9, 0.99])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_transformers(p: float) -> None:
    for row in rows(49152):  # from an even one, in which no token stands out, to one in which a single one does
        kept = left_by(filters.keep_top_p, row, GenerationConfig(top_p=p))
        np.testing.assert_array_equal(kept, reference(oracle.TopPLogitsWarper(p), row).astype(np.float32))


def test_temperature_divides_up_to_a_constant_shift() -> None:
    for row in [*rows(5000), *rows(200_000)]:
        scaled = left_by(filters.scale_by_temperature, row, GenerationConfig(temperature=0.3))
        expected = reference(oracle.TemperatureLogitsWarper(0.3), row)
        expected -= expected.max()
        is_left = scaled > -np.inf
        # Two float32 roundings: 1.4e-7 of the value, measured.
        np.testing.assert_allclose(scaled[is_left], expected[is_left], rtol=1e-6, atol=1e-6)
        assert is_left.all() or row.size > 100_000
        assert np.exp(expected[~is_left]).sum() < np.finfo(np.float32).eps / 2


def test_filters_keep_a_hand_computed_set() -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    for keep, fields, expected in (
        (filters.keep_top_k, {"top_k": 2}, [0, 1]),
        (filters.keep_top_p, {"top_p": 1e-300}, [0]),
        (filters.keep_top_p, {"top_p": 0.7}, [0, 1]),
        (filters.keep_top_p, {"top_p": 0.8}, [0, 1, 2]),
        (filters.keep_min_p, {"min_p": 0.2}, [0, 1, 2]),
        # Entropy 1.875 bits: 0.25 (2 bits) is nearest, then 0.5 (1 bit), then 0.125 (3 bits).
        (filters.keep_typical, {"typical_p": 0.2}, [1]),
        (filters.keep_typical, {"typical_p": 0.7}, [0, 1]),
    ):
        row = np.log(probabilities).astype(np.float32)
        assert ids_left(keep, row, GenerationConfig(**fields)) == expected  # type: ignore[arg-type]


def test_xtc_drops_the_top_choices_but_the_least_likely_of_them() -> None:
    probabilities = np.array([0.4, 0.3, 0.05, 0.15, 0.1], np.float32)
    for threshold, kept in ((0.12, [2, 3, 4]), (0.25, [1, 2, 3, 4]), (0.35, [0, 1, 2, 3, 4]), (0.5, [0, 1, 2, 3, 4])):
        row = np.log(probabilities) + np.float32(3.0)
        assert ids_left(filters.exclude_top_choices, row, GenerationConfig(xtc_threshold=threshold)) == kept
    both_just_have = GenerationConfig(xtc_threshold=0.5)
    assert len(ids_left(filters.exclude_top_choices, np.zeros(2, np.float32), both_just_have)) == 1
    config = GenerationConfig(temperature=1.0, xtc_probability=0.25, xtc_threshold=0.12, seed=1)
    sampler = Sampler(config)
    drawn = np.bincount([sampler.sample(np.log(probabilities)) for _ in range(4000)], minlength=5) / 4000
    # Three of four draws from the whole, one from 0.05, 0.15 and 0.1 of 0.3. Five sigma of 4,000 draws are 0.04.
    np.testing.assert_allclose(drawn, 0.75 * probabilities + 0.25 * np.array([0, 0, 0.05, 0.15, 0.1]) / 0.3, atol=0.04)


def test_top_n_sigma_keeps_what_is_near_the_best_logit() -> None:
    row = np.array([4.0, 3.0, 0.0, 1.0, -np.inf], np.float32)  # standard deviation of the four: sqrt(2.5) = 1.58
    for sigmas, kept in ((0.5, [0]), (1.0, [0, 1]), (2.0, [0, 1, 3]), (3.0, [0, 1, 2, 3])):
        assert ids_left(filters.keep_near_best, row, GenerationConfig(top_n_sigma=sigmas)) == kept


@pytest.mark.parametrize("banned", [SUPPRESSED_LOGIT, -0.9e9])
def test_top_n_sigma_leaves_banned_tokens_out_of_the_deviation(banned: float) -> None:
    row = np.array([4.0, 3.0, 0.0, 1.0, banned], np.float32)
    assert ids_left(filters.keep_near_best, row, GenerationConfig(top_n_sigma=1.0)) == [0, 1]
    only = np.array([banned, banned - 640, -np.inf], np.float32)  # a constraint allows no others
    assert ids_left(filters.keep_near_best, only, GenerationConfig(top_n_sigma=1.0)) == [0]


def test_mirostat_keeps_the_surprise_where_it_is_asked_to_be() -> None:
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))  # 1, 2, 3 and 3 bits
    for limit, kept in ((0.5, [0]), (1.5, [0]), (2.01, [0, 1]), (3.01, [0, 1, 2, 3])):
        left = filters.keep_surprise(Candidates.of(row), limit)
        assert [left.id_at(place) for place in range(left.logits_N.size)] == kept
    logits = rows(5000)[2]
    probabilities = np.exp(logits - logits.max())
    surprises = -np.log2(probabilities / probabilities.sum())
    for tau in (1.0, 2.5):  # below the row's own entropy, 3.7 bits
        sampler = Sampler(GenerationConfig(temperature=1.0, mirostat_tau=tau, seed=0))
        mean = np.mean([surprises[sampler.sample(logits)] for _ in range(1000)])
        # Within what is kept, which is what Mirostat steers, the surprise is less by the bits of what was dropped.
        assert tau - 0.1 <= mean <= tau + 1.0


def test_typical_sampling_of_a_large_vocabulary_keeps_what_transformers_keeps() -> None:
    for size, p in ((49152, 0.2), (49152, 0.95), (3000, 0.999)):
        for row in rows(size):
            kept = left_by(filters.keep_typical, row, GenerationConfig(typical_p=p))
            expected = reference(oracle.TypicalLogitsWarper(p), row)
            # Two tokens whose distances float32 cannot tell apart may change places: measured once, at the border.
            assert np.count_nonzero(np.isfinite(kept) != np.isfinite(expected)) <= 2


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("field", ["top_p", "typical_p"])
def test_a_probability_of_nearly_one_keeps_nearly_all(field: str, size: int) -> None:
    for row in rows(size):
        # The running sum of float32 probabilities may end below it.
        kept = left_by(filters.FILTERS[field], row, GenerationConfig(**{field: math.nextafter(1.0, 0.0)}))
        probabilities = torch.softmax(torch.from_numpy(row).double(), 0).numpy()
        assert probabilities[np.isfinite(kept)].sum() > 1 - 1e-6
