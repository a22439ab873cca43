"""Which GGUF files belong together, by their names alone."""

from __future__ import annotations

import pytest

from edgelm.files.gguf_part_names import MOST_PARTS, name_of_whole, names_of_parts, one_of_each_model

PARTS = ["q4/m-00001-of-00003.gguf", "q4/m-00002-of-00003.gguf", "q4/m-00003-of-00003.gguf"]


@pytest.mark.parametrize("name", PARTS)
def test_every_part_names_all_of_its_model(name: str) -> None:
    assert names_of_parts(name) == PARTS
    assert name_of_whole(name) == "q4/m.gguf"


@pytest.mark.parametrize(
    "name",
    [
        "m.gguf",
        "m-1-of-2.gguf",
        "m-00000-of-00002.gguf",
        "m-00003-of-00002.gguf",
        f"m-00001-of-{MOST_PARTS + 1:05}.gguf",
        "m-٠٠٠٠١-of-00002.gguf",
        "m-00001-of-00002.safetensors",
    ],
)
def test_any_other_name_stands_for_itself(name: str) -> None:
    assert names_of_parts(name) == [name]
    assert name_of_whole(name) == name


def test_the_most_parts_are_as_many() -> None:
    assert len(names_of_parts(f"m-00007-of-{MOST_PARTS:05}.gguf")) == MOST_PARTS


def test_of_each_model_the_first_part_that_is_there_is_left() -> None:
    assert one_of_each_model(["b-00002-of-00002.gguf", *reversed(PARTS), "a.gguf"]) == [
        "a.gguf",
        "b-00002-of-00002.gguf",
        PARTS[0],
    ]


def test_what_reads_images_beside_a_model_is_no_model_unless_it_is_alone() -> None:
    assert one_of_each_model(["mmproj-F16.gguf", "a.gguf", "more/a.mmproj-Q8_0.gguf"]) == ["a.gguf"]
    assert one_of_each_model(["mmproj-F16.gguf"]) == ["mmproj-F16.gguf"]
