"""The input of a call of a custom tool, out of whatever a model writes as its arguments."""

from __future__ import annotations

import pytest

from edgelm.completion import Chunk, ToolCallDelta, Usage
from edgelm.server.custom_tools import CustomCalls


class Written:
    """What takes calls apart, when it has."""

    def take(self, chunk):
        return chunk


def said(*deltas, finish_reason=None):
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    return Chunk(text="", token_ids=(), tool_calls=deltas, finish_reason=finish_reason, usage=usage)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (['{"in', 'put": "a', "\\", "n", "\\ud83", "d", "\\ude00\\", '"b"', "}"], 'a\n😀"b'),
        (['{"x": 1, "input": ', '"a"}'], "a"),
        (['{"input": "a\\ud83db\\ud83d"}'], "a\ufffdb\ufffd"),
        (['{"input": "a\\qb"}'], "a\\qb"),
        (['{"input": "a\\n\\qb\\\\n"}'], "a\n\\qb\\n"),
        (['{"input": "a\nb'], "a\nb"),
        (["print(", "1)"], "print(1)"),
        (['["a"]'], '["a"]'),
    ],
)
def test_an_input_is_read_as_it_comes(pieces, expected):
    calls = CustomCalls(Written, {"edit"})
    chunks = [said(ToolCallDelta(index=0, id="i", name="edit"))]
    chunks += [said(ToolCallDelta(index=0, arguments=piece)) for piece in pieces]
    chunks += [said(ToolCallDelta(index=1, id="j", name="other", arguments='{"input": 1}'))]
    deltas = [delta for chunk in (*chunks, said(finish_reason="tool_calls")) for delta in calls.take(chunk).tool_calls]
    assert "".join(delta.arguments for delta in deltas if delta.index == 0) == expected
    assert [delta.arguments for delta in deltas if delta.index == 1] == ['{"input": 1}']
    assert [delta.index for delta in deltas] == sorted(delta.index for delta in deltas)
    assert [delta.name for delta in deltas if delta.name] == ["edit", "other"]


def test_what_ends_inside_of_an_input_has_its_beginning():
    calls = CustomCalls(Written, {"edit"})
    deltas = calls.take(said(ToolCallDelta(index=0, id="i", name="edit", arguments='{"input": "a\\'))).tool_calls
    assert (deltas[0].arguments, calls.take(said(finish_reason="length")).tool_calls) == ("a", ())


@pytest.mark.parametrize("said_behind", [{"text": "Done."}, {"text": "", "reasoning": "Done."}])
def test_a_call_is_over_where_something_is_said_behind_it(said_behind):
    calls = CustomCalls(Written, {"edit"})
    calls.take(said(ToolCallDelta(index=0, id="i", name="edit", arguments='{"text": 1')))
    calls.take(said(ToolCallDelta(index=0, arguments="}")))
    behind = calls.take(Chunk(token_ids=(), **said_behind))
    assert [delta.arguments for delta in behind.tool_calls] == ['{"text": 1}']
    assert calls.take(said(finish_reason="tool_calls")).tool_calls == ()
