import random

from edgelm.text.stop import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


def cut(rng: random.Random, text: str) -> list[str]:
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(6)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def text_before_first_stop(text: str, stops: list[str]) -> str | None:
    """Read the text character by character, and look for a stop at its end."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: end - max(map(len, hits))]
    return None


def test_the_text_ends_before_the_first_stop_however_it_is_cut() -> None:
    rng = random.Random(0)
    stopped_texts = 0
    for _ in range(5000):
        text = "".join(rng.choices("ab\n", k=rng.randrange(20)))
        stops = ["".join(rng.choices("ab\n", k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        expected = text_before_first_stop(text, stops)
        shown, stopped = run(stops, cut(rng, text))
        assert stopped == (expected is not None)
        assert "".join(shown) == (text if expected is None else expected)
        if len(stops) == 1 and expected is not None:
            assert expected == text[: text.find(stops[0])]
        stopped_texts += stopped
    assert 1000 < stopped_texts < 4500


def test_only_the_tail_that_could_begin_a_stop_is_held_back() -> None:
    assert run(["\nUser:"], ["Hello\n", "Us", "ula", "\nUser", ": x"]) == (["Hello", "", "\nUsula", "", ""], True)


def test_what_was_held_back_comes_at_the_end() -> None:
    assert run(["END"], ["the EN"]) == (["the ", "EN"], False)


def test_without_stops_the_text_passes_as_it_is() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], False)


def test_the_stop_that_was_hit_is_known() -> None:
    for stops, found in ((["b", "ab"], "ab"), (["bc", "a"], "a"), (["c"], None)):
        matcher = StopMatcher(stops)
        matcher.push("a")
        matcher.push("b")
        assert matcher.found == found


def test_nothing_comes_after_a_stop() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == ("a", True)
    assert matcher.push("c") == ("", True)
    assert matcher.flush() == ""
