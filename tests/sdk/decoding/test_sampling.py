import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from logit_rows import SIZES, Row, reference, rows
from transformers.generation import logits_process as oracle

from edgelm.decoding import sampling
from edgelm.decoding.history import History
from edgelm.decoding.sampling import Sampler, token_logprobs
from edgelm.errors import ConfigError, EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.testing import scripted_model


def history(prompt: list[int], answer: list[int], size: int) -> History:
    past = History.of_prompt(prompt, size)
    for id_ in answer:
        past.add(id_)
    return past


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
    draws = 2000
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


@pytest.mark.filterwarnings("error")
def test_a_tiny_temperature_beside_a_large_bias_is_no_reason_for_a_warning() -> None:
    config = GenerationConfig(temperature=1e-30, logit_bias={3: -1e9, 5: 1e9})
    assert Sampler(config).sample(np.zeros(8, np.float32)) == 5


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


def test_dry_penalizes_what_would_prolong_a_repeated_sequence() -> None:
    config = GenerationConfig(dry_multiplier=0.8, dry_base=2.0, dry_allowed_length=2)

    def penalties(ids: list[int], breakers: tuple[int, ...] = ()) -> dict[int, float]:
        row = np.zeros(10, np.float32)
        sampling.penalize_repeated_sequences(row, config, History.of_prompt(ids, row.size, breakers=breakers))
        return {int(id_): round(float(-row[id_]), 4) for id_ in np.flatnonzero(row)}

    # 1 2 3 | 4 ... 1 2 3: the sequence of three would go on with 4: 0.8 * 2 ** (3 - 2).
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3]) == {4: 1.6}
    assert penalties([1, 2, 3, 4, 9, 7, 2, 3]) == {4: 0.8}
    assert penalties([1, 2, 3, 4, 9, 7, 7, 3]) == {}  # one token alone is allowed
    # The longest of several; and what overlaps itself.
    assert penalties([2, 3, 5, 1, 2, 3, 4, 9, 1, 2, 3]) == {5: 0.8, 4: 1.6}
    assert penalties([1, 2, 3, 4, 7, 2, 3, 4, 8, 1, 2, 3]) == {4: 1.6}  # three before 4, and later two
    assert penalties([6, 6, 6, 6]) == {6: 1.6}
    # Sequences end at a breaker, and nothing follows one that would be said to prolong them.
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], breakers=(2,)) == {}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], breakers=(1,)) == {4: 0.8}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], breakers=(3,)) == {}
    assert penalties([1, 2, 3, 4, 9, 1, 2, 3], breakers=(4,)) == {}
    assert penalties([], breakers=(4,)) == {}
    assert penalties([5] * 2000)[5] == pytest.approx(0.8 * 2.0**49)  # finite however long the repetition is


def test_custom_processors_and_samplers_are_plain_callables() -> None:
    seen: list[list[int]] = []

    def ban_the_last(logits_V: Row, token_ids: Sequence[int]) -> None:
        seen.append(list(token_ids))
        logits_V[token_ids[-1]] = -np.inf

    row = np.array([1.0, 3.0, 2.0], np.float32)
    sampler = Sampler(GenerationConfig(processors=[ban_the_last]), [1])  # type: ignore[arg-type]
    assert [sampler.sample(row) for _ in range(3)] == [2, 1, 2]
    assert seen == [[1], [1, 2], [1, 2, 1]]
    assert list(row) == [1.0, 3.0, 2.0]
    assert Sampler(GenerationConfig(processors=(lambda logits_V, token_ids: -logits_V,))).sample(row) == 0

    config = GenerationConfig(top_k=2, temperature=1.0, sampler=lambda logits_V, random: int(np.argmin(-logits_V)))
    assert Sampler(config).sample(row) == 1
    least = GenerationConfig(sampler=lambda logits_V, random: int(np.argmin(np.where(logits_V > -np.inf, logits_V, 9))))
    for temperature in (0.0, 1.0):  # what a sampler chooses from does not hang on it
        config = least.replace(top_k=2, temperature=temperature)
        assert (Sampler(least).sample(row), Sampler(config).sample(row)) == (0, 2)
        config = config.replace(top_k=0, xtc_probability=1.0, xtc_threshold=0.2, sampler=lambda logits_V, _: 1)
        with pytest.raises(ConfigError, match="sampler returned 1; it must be a token whose logit is not -inf"):
            Sampler(config).sample(row)
    config = GenerationConfig(sampler=lambda logits_V, random: int(random.integers(3)), seed=1)
    again = [Sampler(config).sample(row), Sampler(config).sample(row)]
    assert again[0] == again[1]


class Allowed:
    """A matcher that allows some tokens."""

    is_active, is_complete = True, False

    def __init__(self, *ids: int) -> None:
        self.ids = ids

    def mask(self, logits_V: Row) -> None:
        logits_V[[id_ for id_ in range(logits_V.size) if id_ not in self.ids]] = -np.inf

    def forced(self) -> list[int]:
        return []

    def advance(self, token_id: int) -> None:
        assert token_id in self.ids


def test_neither_processors_nor_a_sampler_bring_back_what_a_constraint_masks() -> None:
    row = np.array([1.0, 3.0, 2.0], np.float32)

    def raise_the_second(logits_V: Row, token_ids: Sequence[int]) -> None:
        logits_V[1] = 99.0

    def sample(config: GenerationConfig, *allowed: int) -> int:
        return Sampler(config, matcher=Allowed(*allowed)).sample(row)  # type: ignore[arg-type]

    assert sample(GenerationConfig(processors=(raise_the_second,)), 0, 2) == 2
    assert sample(GenerationConfig(processors=(lambda logits_V, _: np.zeros(3), raise_the_second)), 0, 2) == 0
    assert sample(GenerationConfig(processors=(raise_the_second,)), 0, 1) == 1
    with pytest.raises(ConfigError, match="A processor of the config left -inf as the best logit; it must leave one"):
        sample(GenerationConfig(processors=(lambda logits_V, _: np.array([-np.inf, 1, -np.inf]),)), 0, 2)

    def unmask(logits_V: Row, random: np.random.Generator) -> int:
        logits_V.fill(0)
        return 1

    with pytest.raises(ConfigError, match="sampler returned 1; it must be a token whose logit is not -inf"):
        sample(GenerationConfig(sampler=unmask), 0, 2)


def test_callables_that_do_not_fit_are_named() -> None:
    row = np.array([1.0, 3.0, 2.0], np.float32)
    for returned, found in (
        (row[:2], r"the shape \(2,\) of float32; it must be \(3,\) of float32, or None\."),
        (np.array(["a", "b", "c"]), r"the shape \(3,\) of <U1; it must be \(3,\) of float32, or None\."),
        ([None] * 3, r"the shape \(3,\) of object; it"),
        (row + 1j, r"the shape \(3,\) of complex64; it"),
        ([1.0, [2.0], 3.0], r"no array: .*inhomogeneous"),
    ):
        with pytest.raises(ConfigError, match=f"A processor returned {found}"):
            Sampler(GenerationConfig(processors=(lambda _, __, given=returned: given,))).sample(row)
    assert Sampler(GenerationConfig(processors=(lambda logits_V, _: [0, 1, 2],))).sample(row) == 2
    for choice in (3, -1, 0.5, True):
        with pytest.raises(ConfigError, match=f"sampler returned {choice}; it must be a token"):
            Sampler(GenerationConfig(sampler=lambda logits_V, random, choice=choice: choice)).sample(row)
    for left in (-np.inf, np.nan, np.inf):
        process = GenerationConfig(processors=(lambda logits_V, _, left=left: logits_V.fill(left),))
        with pytest.raises(ConfigError, match=f"A processor of the config left {left} as the best logit; it"):
            Sampler(process).sample(row)
        with pytest.raises(EdgeLMError, match="logits are not finite"):  # they were so before
            Sampler(process).sample(np.full(3, left, np.float32))
    with pytest.raises(ConfigError, match="must be callables; 3 is none"):
        GenerationConfig(processors=(3,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be callables; 'x' is none"):
        GenerationConfig(sampler="x")  # type: ignore[arg-type]


def test_breakers_are_the_tokens_that_have_one_of_the_texts_and_control_tokens() -> None:
    model = scripted_model("aXaXaXaXaX")
    config = GenerationConfig(max_new_tokens=10, dry_multiplier=50.0)
    assert model.generate("x", config.replace(dry_breakers=("X",))).text == "aXaXaXaXaX"
    assert model.generate("x", config).text != "aXaXaXaXaX"
    breakers = model.answer("x", config.replace(dry_breakers=("a",))).sampler._breakers
    texts = [model.tokenizer.token_text(id_) for id_ in range(model.tokenizer.vocab_size)]
    longer = texts.index(next(text for text in texts if "a" in text and len(text) > 1))
    assert {texts.index("a"), longer, *model.tokenizer.control_token_ids} <= set(breakers)
    assert texts.index("b") not in breakers


def test_the_next_request_with_the_same_breakers_does_not_look_through_the_vocabulary(monkeypatch) -> None:
    model, config = scripted_model("a"), GenerationConfig(dry_multiplier=1.0)
    breakers = model.answer("x", config).sampler._breakers
    monkeypatch.setattr(model.tokenizer, "token_text", None)
    assert model.answer("y", config).sampler._breakers == breakers
