"""A file's text beside a message: the fence around it."""

import pytest

from edgelm.cli.attachment import Attachment, message_with


@pytest.mark.parametrize(
    ("text", "fence"),
    [("Salt: `3.5`, ``4``\n\n", "```"), ("```\n3.5\n```", "````"), ("`````", "``````")],
)
def test_a_fence_is_one_that_the_text_does_not_have(text: str, fence: str) -> None:
    message = message_with([Attachment(name="a.md", text=text)], "How much?")
    assert message == f"File a.md:\n{fence}\n{text.rstrip()}\n{fence}\n\nHow much?"
