"""Markdown that is still being written is cut only where no later text changes what stands before."""

from __future__ import annotations

import random

import pytest

from edgelm.cli.markdown_blocks import MarkdownBlocks


def blocks_of(text: str) -> list[str]:
    blocks = MarkdownBlocks()
    return [*blocks.push(text), blocks.pending]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line", ["one line"]),
        ("one\ntwo\n\nthree", ["one\ntwo\n\nthree"]),  # the line "three" is not complete yet
        ("one\n\ntwo\n", ["one\n\n", "two\n"]),
        ("one\n\n\n  \ntwo\n", ["one\n\n\n  \n", "two\n"]),
        ("- a\n\n  more of a\n\n- b\n", ["- a\n\n  more of a\n\n", "- b\n"]),
        ("```\na\n\nb\n```\n\nend\n", ["```\na\n\nb\n```\n\n", "end\n"]),
        ("~~~~\n\n~~~\n\nx\n", ["~~~~\n\n~~~\n\nx\n"]),  # a shorter fence does not close
        ("```py\n\n```` \n\nx\n", ["```py\n\n```` \n\n", "x\n"]),  # a longer one does
        ("```\n```py\n\nx\n", ["```\n```py\n\nx\n"]),  # one with a language does not
        ("```x``` is\n\nb\n", ["```x``` is\n\n", "b\n"]),
        ("a\n\n    indented code\n\nb\n", ["a\n\n    indented code\n\n", "b\n"]),
        (
            "\u3000\u3000第一段。\n\n\u3000\u3000第二段。\n",
            ["\u3000\u3000第一段。\n\n", "\u3000\u3000第二段。\n"],
        ),  # no indent
        ("一\n\u3000\n二\n", ["一\n\u3000\n二\n"]),  # nor an empty line
        ("", [""]),
    ],
)
def test_a_block_ends_at_an_empty_line_outside_code_and_lists(text, expected):
    assert blocks_of(text) == expected


def test_the_pieces_of_a_text_do_not_matter_and_nothing_is_lost():
    text = "# Title\n\nSome text.\n\n```py\nx = 1\n\ny = 2\n```\n\n- a\n\n  b\n- c\n\n| x | y |\n|---|---|\n\nEnd."
    whole = blocks_of(text)
    assert "".join(whole) == text
    for seed in range(50):
        generator = random.Random(seed)
        blocks, cut, rest = MarkdownBlocks(), [], text
        while rest:
            size = generator.randint(1, 7)
            cut += blocks.push(rest[:size])
            rest = rest[size:]
        assert [*cut, blocks.pending] == whole
