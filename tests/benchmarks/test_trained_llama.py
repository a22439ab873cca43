"""The texts of the model that is trained here: what of them is kept from it."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

from trained_llama import documents, pages

_OWN = "A paragraph that stands in no topic of the help and that training may have seen."


def test_pages_lack_the_reference_and_what_pythons_help_has_of_them(tmp_path: Path) -> None:
    shared = max(topics["assert"].split("\n\n"), key=len)
    for name, text in {"reference/stmts": _OWN, "library/stdtypes": f"{_OWN}\n\n{shared}\n\nThe end."}.items():
        page = tmp_path / f"{name}.rst.txt"
        page.parent.mkdir()
        page.write_text(text, encoding="utf-8")
    assert list(pages(tmp_path)) == [f"{_OWN}\n\nThe end."]


def test_meanings_are_read_from_wordnet_with_their_words(tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("  1 A licence.\n", encoding="ascii")
    line = '00000001 04 a 02 law_practice 0 galore(ip) 1 000 | the practice of law; "a law practice"  \n'
    with (tmp_path / "data.adj").open("a", encoding="ascii") as file:
        file.write(line * 33)
    meaning = 'law practice, galore: the practice of law; "a law practice"'
    assert list(documents(tmp_path)) == ["\n".join([meaning] * 32), meaning]
