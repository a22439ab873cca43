import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.generation import logits_process as oracle

from edgelm import sampling
from edgelm.errors import ConfigError, EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.sampling import Sampler, token_logprobs

SIZES = (1, 2, 255, 256, 257, 5000)
Row = NDArray[np.float32]


def rows(size: int) -> list[Row]:
    rng = np.random.default_rng(size)
    return [(rng.standard_normal(size) * scale).astype(np.float32) for scale in (0.1, 1.0, 4.0, 20.0)]


def reference(process: Callable[..., torch.Tensor], row: Row, ids: list[int] | None = None) -> NDArray[np.float64]:
    # In float64, so that a border of top-p or typical does not hang on the oracle's own rounding.
    scores = torch.from_numpy(row.astype(np.float64))[None]
    result: NDArray[np.float64] = process(torch.tensor([ids or [0]]), scores)[0].numpy()
    return result


def history(prompt: list[int], answer: list[int], size: int) -> sampling.History:
    seen, counts = np.zeros(size, np.bool_), np.zeros(size, np.float32)
    seen[prompt + answer] = True
    np.add.at(counts, answer, 1)
    return sampling.History(seen=seen, counts=counts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("keep", "fields", "warper"),
    [
        (sampling.keep_top_k, {"top_k": 1}, oracle.TopKLogitsWarper(1)),
        (sampling.keep_top_k, {"top_k": 40}, oracle.TopKLogitsWarper(40)),
        (sampling.keep_top_p, {"top_p": 0.05}, oracle.TopPLogitsWarper(0.05)),
        (sampling.keep_top_p, {"top_p": 0.9}, oracle.TopPLogitsWarper(0.9)),
        (sampling.keep_top_p, {"top_p": 0.999}, oracle.TopPLogitsWarper(0.999)),
        (sampling.keep_min_p, {"min_p": 0.05}, oracle.MinPLogitsWarper(0.05)),
        (sampling.keep_min_p, {"min_p": 1.0}, oracle.MinPLogitsWarper(1.0)),
        (sampling.keep_typical, {"typical_p": 0.2}, oracle.TypicalLogitsWarper(0.2)),
        (sampling.keep_typical, {"typical_p": 0.95}, oracle.TypicalLogitsWarper(0.95)),
    ],
)
def test_a_filter_keeps_what_transformers_keeps(
    size: int,
    keep: Callable[[Row, GenerationConfig], None],
    fields: dict[str, float],
    warper: oracle.LogitsProcessor,
) -> None:
    for row in rows(size):
        kept = row.copy()
        keep(kept, GenerationConfig(**fields))
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
    assert list(sampling.FILTERS) == ["temperature", "top_k", "top_p", "min_p", "typical_p"]
    for row in rows(5000):
        kept = row.copy()
        for keep in sampling.FILTERS.values():
            keep(kept, config)
        np.testing.assert_array_equal(np.isinf(kept), np.isinf(reference(warpers, row)))


def test_temperature_divides_up_to_a_constant_shift() -> None:
    for row in rows(5000):
        scaled = row.copy()
        sampling.scale_by_temperature(scaled, GenerationConfig(temperature=0.3))
        expected = reference(oracle.TemperatureLogitsWarper(0.3), row)
        # Two float32 roundings: 1.4e-7 of the value, measured.
        np.testing.assert_allclose(scaled, expected - expected.max(), rtol=1e-6, atol=1e-6)


def test_repetition_penalty_is_that_of_transformers_on_prompt_and_answer() -> None:
    for penalty in (1.3, 0.8):
        for row in rows(255):
            changed = row.copy()
            config = GenerationConfig(repetition_penalty=penalty)
            sampling.penalize_repetition(changed, config, history([3, 9, 3], [200, 9], 255))
            expected = reference(oracle.RepetitionPenaltyLogitsProcessor(penalty), row, [3, 9, 3, 200, 9])
            # One float32 rounding: 7e-8 of the value, measured.
            np.testing.assert_allclose(changed, expected, rtol=2e-7)


def test_penalties_and_bias_are_openais() -> None:
    row = np.array([1.0, 2.0, -1.0, 0.5], np.float32)
    seen = history([3], [1, 1, 2], 4)
    for process, fields, expected in (
        (sampling.penalize_presence, {"presence_penalty": 0.5}, [1.0, 1.5, -1.5, 0.5]),
        (sampling.penalize_frequency, {"frequency_penalty": 0.5}, [1.0, 1.0, -1.5, 0.5]),
        (sampling.penalize_repetition, {"repetition_penalty": 2.0}, [1.0, 1.0, -2.0, 0.25]),
        (sampling.add_logit_bias, {"logit_bias": {0: -3.0, 2: 4.0}}, [-2.0, 2.0, 3.0, 0.5]),
    ):
        changed = row.copy()
        process(changed, GenerationConfig(**fields), seen)  # type: ignore[arg-type]
        assert changed.tolist() == expected


def test_filters_keep_a_hand_computed_set() -> None:
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    for keep, fields, expected in (
        (sampling.keep_top_k, {"top_k": 2}, [0, 1]),
        (sampling.keep_top_p, {"top_p": 0.7}, [0, 1]),
        (sampling.keep_top_p, {"top_p": 0.8}, [0, 1, 2]),
        (sampling.keep_min_p, {"min_p": 0.2}, [0, 1, 2]),
        # Entropy 1.875 bits: 0.25 (2 bits) is nearest, then 0.5 (1 bit), then 0.125 (3 bits).
        (sampling.keep_typical, {"typical_p": 0.2}, [1]),
        (sampling.keep_typical, {"typical_p": 0.7}, [0, 1]),
    ):
        row = np.log(probabilities).astype(np.float32)
        keep(row, GenerationConfig(**fields))  # type: ignore[arg-type]
        assert np.flatnonzero(np.isfinite(row)).tolist() == expected


def test_greedy_is_the_first_of_the_most_likely_tokens() -> None:
    row = np.array([0.0, 3.0, 3.0, -1.0], np.float32)
    assert Sampler(GenerationConfig()).sample(row) == 1
    assert Sampler(GenerationConfig(top_k=3, top_p=0.1)).sample(row) == 1
    assert type(Sampler(GenerationConfig()).sample(row)) is int


def test_greedy_decoding_obeys_the_processors() -> None:
    row = np.array([1.0, 3.0, 2.9, 2.8], np.float32)
    sampler = Sampler(GenerationConfig(presence_penalty=0.2), [1])
    assert [sampler.sample(row) for _ in range(4)] == [1, 2, 1, 1]
    sampler = Sampler(GenerationConfig(frequency_penalty=0.2), [1])
    assert [sampler.sample(row) for _ in range(6)] == [1, 2, 1, 3, 2, 1]
    assert Sampler(GenerationConfig(repetition_penalty=1.5), [1]).sample(row) == 2
    assert Sampler(GenerationConfig(logit_bias={0: 5.0})).sample(row) == 0


ALL_FIELDS = GenerationConfig(
    temperature=0.8,
    top_k=50,
    top_p=0.95,
    min_p=0.01,
    typical_p=0.99,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={3: 2.0},
    seed=7,
)


@pytest.mark.parametrize("config", [GenerationConfig(), GenerationConfig(temperature=1.0), ALL_FIELDS])
def test_the_callers_row_stays_as_it_is(config: GenerationConfig) -> None:
    row = rows(257)[2]
    row.flags.writeable = False
    sampler = Sampler(config, [1, 2])
    for _ in range(20):
        assert 0 <= sampler.sample(row) < row.size
    token_logprobs(row, 0, 5)


def test_the_same_seed_gives_the_same_tokens_and_a_fresh_one_can_be_read() -> None:
    steps = [row for _ in range(10) for row in rows(257)]

    def run(config: GenerationConfig) -> tuple[list[int], int]:
        sampler = Sampler(config, [1, 2])
        return [sampler.sample(row) for row in steps], sampler.seed

    tokens, seed = run(ALL_FIELDS)
    assert (tokens, seed) == run(ALL_FIELDS)
    assert seed == 7
    assert tokens != run(ALL_FIELDS.replace(seed=8))[0]
    free = GenerationConfig(temperature=2.0)
    tokens, seed = run(free)
    assert seed != run(free)[1]
    assert run(free.replace(seed=seed)) == (tokens, seed)


@pytest.mark.parametrize("size", SIZES)
def test_tokens_are_drawn_as_often_as_their_probability_says(size: int) -> None:
    row = rows(size)[2]
    sampler = Sampler(GenerationConfig(temperature=1.5, seed=1))
    draws = 4000
    counts = np.bincount([sampler.sample(row) for _ in range(draws)], minlength=size)
    probabilities = torch.softmax(torch.from_numpy(row).double() / 1.5, 0).numpy()
    deviation = np.abs(counts - draws * probabilities) / np.sqrt(draws * probabilities * (1 - probabilities) + 1)
    # Standard deviations; over all sizes the largest is 3.8, measured.
    assert deviation.max() < 5


@pytest.mark.parametrize("size", SIZES)
def test_a_dropped_token_is_never_drawn(size: int) -> None:
    row = np.full(size, 1.0, np.float32)
    row[size // 2] = 1.01
    sampler = Sampler(GenerationConfig(temperature=5.0, top_k=1, seed=1))
    assert {sampler.sample(row) for _ in range(300)} == {size // 2}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    for row in rows(257):
        assert Sampler(GenerationConfig(temperature=temperature)).sample(row) == row.argmax()


def test_impossible_tokens_may_have_minus_infinity() -> None:
    row = np.full(300, -np.inf, np.float32)
    row[[5, 290]] = 1.0
    sampler = Sampler(ALL_FIELDS.replace(logit_bias={}))
    assert {sampler.sample(row) for _ in range(50)} == {5, 290}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("config", [GenerationConfig(), ALL_FIELDS])
def test_logits_that_are_not_finite_are_an_error(value: float, config: GenerationConfig) -> None:
    row = rows(257)[0]
    row[100] = value
    with pytest.raises(EdgeLMError, match="logits are not finite"):
        Sampler(config).sample(row)
    with pytest.raises(EdgeLMError, match="logits are not finite"):
        token_logprobs(row, 0, 0)
    with pytest.raises(EdgeLMError, match="logits are not finite"):
        Sampler(config).sample(np.full(5, -np.inf, np.float32))


def test_a_bias_for_a_token_that_does_not_exist_is_an_error() -> None:
    for id_ in (257, -1):
        with pytest.raises(ConfigError, match=f"logit_bias names token {id_}; the model's ids are 0 to 256"):
            Sampler(GenerationConfig(logit_bias={id_: 1.0})).sample(rows(257)[0])


@pytest.mark.parametrize("size", SIZES)
def test_logprobs_are_those_of_torch_with_the_best_alternatives_first(size: int) -> None:
    for row in rows(size):
        expected = torch.log_softmax(torch.from_numpy(row).double(), 0)
        logprob, best = token_logprobs(row, size // 2, 5)
        values, ids = expected.topk(min(5, size))
        assert [id_ for id_, _ in best] == ids.tolist()
        # The exponentials are float32, their sum is not: 4e-8, measured.
        np.testing.assert_allclose([value for _, value in best], values, atol=1e-6)
        assert logprob == pytest.approx(float(expected[size // 2]), abs=1e-6)


def test_equal_alternatives_come_in_the_order_of_their_ids() -> None:
    logprob, best = token_logprobs(np.zeros(4, np.float32), 3, 3)
    assert logprob == pytest.approx(math.log(0.25))
    assert best == [(0, logprob), (1, logprob), (2, logprob)]
