"""How many tokens to guess: lookups in the text, the costs of steps, and what is learned from guesses."""

from collections import deque

import pytest
from speculating import FixedCosts

from edgelm.decoding import draft_length
from edgelm.decoding.draft_length import DraftLength, StepCosts, StepPlan
from edgelm.decoding.prompt_lookup import PromptLookup

STEP_OF_ONE = 6.0


def costs(**seconds: float) -> StepCosts:
    known = StepCosts()
    known.add(1, STEP_OF_ONE)
    for tokens, value in seconds.items():
        known.add(int(tokens.removeprefix("of_")), value)
    return known


def test_what_followed_the_longest_match_is_the_guess() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 4, 50, 51, 52, 9, 3, 4, 60, 61, 7, 1, 2, 3, 4])
    assert lookup.look() == 4
    assert lookup.guess(3) == [50, 51, 52]
    lookup.extend([60])
    assert lookup.look() == 2
    assert lookup.guess(2) == [61, 7]


def test_a_match_at_the_very_beginning_counts() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 3, 1, 2])
    assert lookup.look() == 2
    assert lookup.guess(1) == [3]


def test_the_latest_of_equal_matches_counts() -> None:
    lookup = PromptLookup()
    lookup.extend([1, 2, 30, 1, 2, 40, 1, 2])
    assert lookup.look() == 2
    assert lookup.guess(1) == [40]


def test_a_guess_beyond_the_end_of_the_text_goes_on_with_its_period() -> None:
    lookup = PromptLookup()
    lookup.extend([8, 1, 2, 3, 1, 2, 3, 1, 2])
    assert lookup.look() == 4
    assert lookup.guess(8) == [3, 1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3, 4, 5]])
def test_a_text_without_repetition_gives_no_guess(ids: list[int]) -> None:
    lookup = PromptLookup()
    lookup.extend(ids)
    assert lookup.look() is None


def test_a_step_takes_the_median_of_the_last_ones() -> None:
    known = costs()
    for seconds in (9.0, 100.0, 10.0):
        known.add(4, seconds)
    assert known.seconds(4) == 10.0
    for _ in range(9):
        known.add(4, 20.0)
    assert known.seconds(4) == 20.0


def test_threads_may_share_the_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    known = StepCosts()

    def sorted_while_another_adds(samples: deque[float]) -> list[float]:
        ordered = sorted(samples)
        samples.append(9.0)
        return ordered

    monkeypatch.setattr(draft_length, "sorted", sorted_while_another_adds, raising=False)
    known.add(1, STEP_OF_ONE)
    assert known.seconds(1) == STEP_OF_ONE


def test_a_step_that_was_not_seen_is_estimated_from_the_nearest_one() -> None:
    assert costs(of_3=8.0).seconds(5) == pytest.approx(6.0 + 2.0 / 2 * 4)
    assert costs(of_3=8.0, of_9=30.0).seconds(8) == pytest.approx(6.0 + 24.0 / 8 * 7)
    assert costs().seconds(2) > STEP_OF_ONE
    assert costs(of_3=5.0).seconds(9) == STEP_OF_ONE  # none is cheaper than a step of one token


def counted(length: DraftLength, known: StepCosts, most: int = 15, kind: int = 1) -> int:
    """Return how many tokens are guessed behind one."""
    return length.best(kind, most, StepPlan(known)).computed - 1


def test_nothing_is_guessed_before_a_step_was_seen() -> None:
    assert counted(DraftLength({1: 1.0}), StepCosts()) == 0


def test_as_much_is_guessed_as_pays() -> None:
    flat, steep = costs(of_9=6.5), costs(of_9=6.0 * 9)
    assert counted(DraftLength({1: 0.99}), flat) == 15
    assert counted(DraftLength({1: 0.99}), flat, most=4) == 4
    assert counted(DraftLength({1: 0.99}), steep) == 0  # nine tokens in one step for the time of nine steps
    assert 0 < counted(DraftLength({1: 0.5}), costs()) < counted(DraftLength({1: 0.9}), costs())


def test_guesses_that_fail_turn_guessing_off_and_others_turn_it_on_again() -> None:
    length = DraftLength({2: 0.5, 4: 0.5})
    for _ in range(20):
        length.learn(2, 0, True)
    assert counted(length, costs(), kind=2) == 0
    assert counted(length, costs(), kind=4) > 0
    for _ in range(40):
        length.learn(2, 1, False)
    assert counted(length, costs(), kind=2) > 4


def test_a_guess_that_takes_long_is_not_made() -> None:
    length = DraftLength({1: 0.8})
    assert counted(length, costs()) > 3
    length.learn_cost(4, 100 * STEP_OF_ONE)  # with the prompt
    assert counted(length, costs()) > 3
    length.learn_cost(4, 4 * STEP_OF_ONE)
    assert counted(length, costs()) == 0
    cheap = DraftLength({1: 0.8})
    cheap.learn_cost(10, STEP_OF_ONE)
    cheap.learn_cost(10, STEP_OF_ONE)  # a tenth of a step for each token
    assert counted(cheap, costs()) > 0


def test_the_more_requests_share_a_step_the_surer_a_guess_has_to_be() -> None:
    costs, length = FixedCosts(0.2), DraftLength({1: 0.6})
    counts = [length.best(1, 7, StepPlan(costs, rows, rows)).computed - rows for rows in (1, 2, 4, 8)]
    assert counts == [2, 1, 0, 0]
    # Of two requests: with a guess of the first 2.6 tokens in 1.4 steps' time, with one of each 3.2 in 1.6.
    first = length.best(1, 7, StepPlan(costs, 2, 2.0))
    second = length.best(1, 7, first)
    assert (first.computed, second.computed) == (3, 4)
    assert (first.tokens, second.tokens) == pytest.approx((2.6, 3.2))


def test_steps_of_other_lengths_let_expect_what_one_takes() -> None:
    costs = StepCosts()
    assert not costs.is_known
    costs.add(4, 1.6)
    assert costs.seconds(4) == 1.6
    assert costs.seconds(2) < 1.6 < costs.seconds(8)
    costs.add(8, 2.4)
    assert costs.seconds(6) == pytest.approx(2.0)
    assert costs.seconds(2) == pytest.approx(1.2)


def test_a_step_takes_no_less_than_its_part_of_a_longer_one() -> None:
    costs = StepCosts()
    for rows, seconds in ((8, 1.0), (9, 2.0)):  # from the 9th on a kernel takes another round
        costs.add(rows, seconds)
    assert [costs.seconds(rows) for rows in (1, 7, 8, 9, 10)] == [1 / 8, 7 / 8, 1.0, 2.0, 3.0]
    # Of two rows, when six of the eight have their ends, unlikely guesses gain nothing.
    assert DraftLength({1: 0.1}).best(1, 7, StepPlan(costs, 2, 2.0)).computed == 2
