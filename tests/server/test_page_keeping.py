"""What the page keeps in a browser, and what it does where it may keep nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chat_page import SENTENCE, Page, ask, done, expect, scripted, slowly
from edgelm_server import TINY, EdgelmServer

NOTHING_MAY_BE_KEPT = """
for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}
"""


@slowly
def test_a_conversation_that_is_deleted_during_its_answer_does_not_come_back(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The")
    page.fill("#question", "And the next thing is")
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete What is the sea?").click()
    expect(page.locator("#conversations")).to_have_text("No conversations yet.")
    expect(page.locator("#status")).to_have_text("Stopped")
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('edgelm.draft'))") == []
    page.reload()
    expect(page.locator("#conversations")).to_have_text("No conversations yet.")


@slowly
def test_a_tab_that_opens_during_an_answer_does_not_cut_it_off(page: Page) -> None:
    ask(page, "First question")
    expect(page.locator(".answer")).to_contain_text("The")
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#conversations .open").click()
    expect(other.locator(".problem")).to_contain_text("interrupted")
    done(page)
    ask(other, "Second question")
    done(other)
    other.reload()
    expect(other.locator(".answer").first).to_have_text(SENTENCE.replace("*", ""))
    expect(other.locator(".answer >> nth=1")).to_have_text(SENTENCE.replace("*", ""))


def test_a_browser_that_keeps_nothing_can_chat(page: Page) -> None:
    page.add_init_script(NOTHING_MAY_BE_KEPT)
    page.reload()
    expect(page.locator("#note")).to_have_text("This browser does not keep conversations (denied).")
    ask(page)
    done(page)
    expect(page.locator(".answer")).to_have_text(SENTENCE.replace("*", ""))
    page.get_by_role("button", name="Switch between light and dark").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#conversations li").hover()
    page.get_by_role("button", name="Delete What is the sea?").click()
    expect(page.locator("#conversations")).to_have_text("No conversations yet.")


def exported(page: Page, path: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(path)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_a_file_of_the_conversation_that_is_open_adds_to_it(page: Page, tmp_path: Path) -> None:
    ask(page, "First question")
    done(page)
    exported(page, tmp_path / "file.json")
    ask(page, "Second question")
    done(page)
    page.set_input_files("#import-file", tmp_path / "file.json")
    expect(page.locator(".message.user")).to_have_count(1)  # where the file stood
    ask(page, "Third question")
    done(page)
    expect(page.locator("#conversations .open")).to_have_count(1)
    page.locator(".message.user").last.get_by_role("button", name="The version before").click()
    expect(page.locator(".message.user .text").last).to_have_text("Second question")
    page.reload()
    expect(page.locator("#conversations .open")).to_have_count(1)
    expect(page.locator(".message.user .branch")).to_have_text(re.compile("[12]/2"))


@slowly
def test_an_answer_that_was_on_its_way_in_a_file_can_be_asked_for_again(page: Page, tmp_path: Path) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The")
    content = exported(page, tmp_path / "file.json")
    (conversation,) = content["conversations"]
    assert "running" in [node.get("state") for node in conversation["nodes"].values()]
    conversation["id"] = "another"
    (tmp_path / "file.json").write_text(json.dumps(content), encoding="utf-8")
    done(page)
    page.set_input_files("#import-file", tmp_path / "file.json")
    expect(page.locator("#conversations .open")).to_have_count(2)
    page.locator("#conversations li:not(.current) .open").click()
    page.get_by_role("button", name="Try again").click()
    done(page)
    expect(page.locator(".answer")).to_have_text(SENTENCE.replace("*", ""))


def ring(conversation: dict[str, Any]) -> None:
    first, second = conversation["nodes"].values()
    first["parent"], second["parent"] = second["id"], first["id"]


BROKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "a leaf that every object has": lambda conversation: conversation.update(leaf="toString"),
    "messages in a circle": ring,
    "no message": lambda conversation: conversation["nodes"].update(none=None),
    "a count that is a text": lambda conversation: conversation.update(used="many"),
    "a speed that is none": lambda conversation: answer_of(conversation).update(stats={"tokens": 3}),
    "a token without alternatives": lambda conversation: answer_of(conversation).update(tokens=[["The", -0.5]]),
    "tokens that are a text": lambda conversation: answer_of(conversation).update(tokens="The"),
    "a problem that is no text": lambda conversation: answer_of(conversation).update(problem=[]),
}


def answer_of(conversation: dict[str, Any]) -> dict[str, Any]:
    (answer,) = [node for node in conversation["nodes"].values() if node["role"] == "assistant"]
    return answer


def test_a_broken_file_is_refused_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    ask(page)
    done(page)
    sound = json.dumps(exported(page, tmp_path / "file.json"))
    messages: list[str] = []
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.accept()))
    for damage in BROKEN.values():
        content = json.loads(sound)
        damage(content["conversations"][0])
        (tmp_path / "file.json").write_text(json.dumps(content), encoding="utf-8")
        with page.expect_event("dialog"):
            page.set_input_files("#import-file", tmp_path / "file.json")
    assert messages == len(BROKEN) * ['The conversation "What is the sea?" in this file is broken.']
    content = json.loads(sound)
    (conversation,) = content["conversations"]
    conversation["id"] = "another"
    answer_of(conversation)["created"] -= 3_600_000  # a clock that was set back breaks nothing
    (tmp_path / "file.json").write_text(json.dumps(content), encoding="utf-8")
    page.set_input_files("#import-file", tmp_path / "file.json")
    expect(page.locator("#conversations .open")).to_have_count(2)


def test_an_answer_that_is_made_again_streams_though_its_tokens_were_shown(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted(f"{SENTENCE} " * 2, seconds_per_token=0.05)) as server:
        page = open_page(server)
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        expect(page.locator(".answer")).to_contain_text("blue. The sea")  # after more than a second some of it is kept
        page.reload()
        expect(page.locator(".problem")).to_contain_text("interrupted")
        page.get_by_role("button", name="Tokens").click()
        expect(page.locator(".token").first).to_be_visible()
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".answer")).to_contain_text("The sea")
        expect(page.locator("#stop")).to_be_visible()  # while it is still on its way
        done(page)
        expect(page.locator(".token").first).to_be_visible()
