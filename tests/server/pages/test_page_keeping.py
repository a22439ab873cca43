"""What the page keeps in a browser, and what it does where it may keep nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chat_page import SENTENCE, Page, ask, at_length, done, expect, scripted, slowly
from edgelm_server import TINY, EdgelmServer

NOTHING_MAY_BE_KEPT = """
for (const name of ["localStorage", "sessionStorage", "indexedDB"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });
}
"""


def test_a_search_finds_what_reads_alike(page: Page) -> None:
    accents, syllables, widths = (
        ("cafe\u0301", "CAF\u00c9"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("ﾃｽﾄ ＡＢＣ", "テスト\u3000abc"),
    )
    found = """async (pairs) => {
        const { matches } = await import("/page/conversations.js");
        return pairs.map(([said, sought]) => matches({ title: said, nodes: {} }, sought));
    }"""
    assert page.evaluate(found, [accents, syllables, widths, ("cafe", "caf\u00e9")]) == [True, True, True, False]


def in_another_tab(page: Page) -> Page:
    """Open the only conversation of a page in another tab."""
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#conversations .open").click()
    return other


def test_two_tabs_of_one_conversation_lose_nothing_of_each_other(page: Page) -> None:
    ask(page, "First question")
    done(page)
    other = in_another_tab(page)
    ask(other, "Asked in the other tab")
    done(other)
    ask(page, "Asked here")
    done(page)
    other.reload()
    expect(other.locator(".message.user .text >> nth=1")).to_have_text("Asked here")
    other.locator(".message.user").get_by_role("button", name="The version before").click()
    expect(other.locator(".message.user .text >> nth=1")).to_have_text("Asked in the other tab")


@at_length
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
    other = in_another_tab(page)
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
    expect(page.locator("#status")).to_have_text("Imported: 1")
    expect(page.locator(".message.user .text")).to_have_text(["First question", "Second question"])
    expect(page.locator("#conversations .open")).to_have_count(1)
    page.reload()
    expect(page.locator(".message.user .text")).to_have_text(["First question", "Second question"])


def test_what_another_tab_has_added_is_shown_though_this_one_saved_last(page: Page) -> None:
    ask(page, "First question")
    done(page)
    other = in_another_tab(page)
    ask(other, "Second question")
    done(other)
    page.on("dialog", lambda dialog: dialog.accept("Renamed"))
    page.get_by_label("Rename First question").dispatch_event("click")
    expect(page.locator("#conversations .open")).to_have_text("Renamed")
    other.reload()
    expect(other.locator("#conversations .open")).to_have_text("Renamed")
    expect(other.locator(".message.user .text")).to_have_text(["First question", "Second question"])


def test_what_one_tab_has_renamed_another_that_speaks_on_does_not_name_back(page: Page) -> None:
    ask(page, "First question")
    done(page)
    other = in_another_tab(page)
    page.on("dialog", lambda dialog: dialog.accept("Renamed"))
    page.get_by_label("Rename First question").dispatch_event("click")
    page.keyboard.press("Alt+s")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    ask(other, "Second question")
    done(other)
    expect(other.locator("#conversations .open")).to_have_text("Renamed")
    expect(other.locator("#system")).to_have_value("Be brief.")
    page.reload()
    expect(page.locator("#conversations .open")).to_have_text("Renamed")
    expect(page.locator("#system")).to_have_value("Be brief.")


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
    "a time that is a text": lambda conversation: conversation.update(titleAt="now"),
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
    conversation |= {"id": "another", "title": "Before", "titleAt": conversation["created"] + 3_600_000}
    answer_of(conversation)["created"] -= 3_600_000  # a clock that was set back breaks nothing
    (tmp_path / "file.json").write_text(json.dumps(content), encoding="utf-8")
    page.set_input_files("#import-file", tmp_path / "file.json")
    expect(page.locator("#conversations .open")).to_have_count(2)
    page.evaluate("window.prompt = () => 'After'")
    page.get_by_label("Rename Before").dispatch_event("click")
    kept = "async () => (await (await import('/page/conversations.js')).all()).map(({ title }) => title)"
    assert "After" in page.evaluate(kept)


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
        page.press("#question", "Escape")
        done(page)
        expect(page.locator(".token").first).to_be_visible()


def broken_off(*deltas: dict[str, str]) -> dict[str, str]:
    """Return an answer whose connection ends in the middle, as Route.fulfill takes it."""
    events = (json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas)
    return {"content_type": "text/event-stream", "body": "".join(f"data: {event}\n\n" for event in events)}


def test_an_answer_of_a_page_that_is_left_was_interrupted(page: Page) -> None:
    """Firefox breaks the connection off first, as this does."""
    leave = """() => { window.fetch = async () => {
        dispatchEvent(new Event("beforeunload"));
        throw new TypeError("NetworkError when attempting to fetch resource.");
    }; }"""
    page.evaluate(leave)
    ask(page)
    expect(page.locator(".problem")).to_contain_text("This answer was interrupted.")
    expect(page.locator("#status")).to_have_text("The answer was interrupted")  # after a download, it stays


def test_an_answer_that_is_made_again_is_thought_of_anew(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**broken_off({"reasoning_content": "Half a"})))
    ask(page)
    expect(page.locator(".problem")).to_contain_text("broke off")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".problem")).to_contain_text("broke off")
    expect(page.locator(".thinking div")).to_have_text("Half a", use_inner_text=False)


def test_an_answer_that_another_tab_made_again_stays(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**broken_off({"content": "The"})))
    ask(page)
    expect(page.locator(".problem")).to_contain_text("broke off")
    other = in_another_tab(page)
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".stats")).to_contain_text("tokens/s")
    ask(other, "And now?")
    done(other)
    page.reload()
    expect(page.locator(".answer").first).to_have_text(SENTENCE.replace("*", ""))


def test_an_answer_that_went_on_in_another_tab_stays(page: Page) -> None:
    ask(page)
    done(page)
    answer = page.locator(".message.assistant")
    answer.get_by_role("button", name="Edit").click()
    page.get_by_label("Answer", exact=True).fill("Water.")
    answer.get_by_role("button", name="Keep").click()
    other = in_another_tab(page)
    expect(other.locator(".answer")).to_have_text("Water.")
    page.get_by_role("button", name="Continue").click()
    done(page)
    ask(other, "And now?")
    done(other)
    page.reload()
    expect(page.locator(".answer").first).to_have_text("Water.The sea is deep and blue.")


def test_what_another_tab_has_added_is_exported_too(page: Page, tmp_path: Path) -> None:
    ask(page, "Asked here")
    done(page)
    other = page.context.new_page()
    other.goto(page.url)
    ask(other, "A conversation of the other tab")
    done(other)
    other.locator("#conversations .open").last.click()
    ask(other, "Added in the other tab")
    done(other)
    expect(other.locator(".stats").last).to_contain_text("tokens/s")
    conversations = exported(page, tmp_path / "file.json")["conversations"]
    said = {node["text"] for conversation in conversations for node in conversation["nodes"].values()}
    assert said == {"Asked here", "A conversation of the other tab", "Added in the other tab", SENTENCE}


def test_settings_that_two_tabs_change_are_all_kept(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    page.keyboard.press("Alt+s")
    page.get_by_label("Temperature").fill("0.72")
    page.get_by_role("button", name="Done").click()
    other.bring_to_front()
    expect(other.get_by_label("Temperature")).to_have_value("0.72")
    other.keyboard.press("Alt+s")
    other.get_by_label("Top k").fill("5")
    other.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page)
    assert (sent.value.post_data_json["temperature"], sent.value.post_data_json["top_k"]) == (0.72, 5)


def test_a_setting_that_is_out_of_range_does_not_seem_to_be_taken(page: Page) -> None:
    page.keyboard.press("Alt+s")
    page.get_by_label("Temperature").fill("3")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Temperature")).to_have_value("")


def test_a_message_that_is_edited_stays_so_while_others_are_drawn_anew(page: Page) -> None:
    ask(page, "First question")
    done(page)
    page.keyboard.press("Alt+e")
    field = page.locator(".edit textarea")
    field.fill("Rewritten")
    field.press("ArrowLeft")
    page.keyboard.press("Alt+e")  # it is being edited already
    page.on("dialog", lambda dialog: dialog.accept("Renamed"))
    page.get_by_label("Rename First question").dispatch_event("click")
    expect(page.locator("#conversations .open")).to_have_text("Renamed")
    page.keyboard.type("_")
    expect(field).to_have_value("Rewritte_n")
    ask(page, "Second question")
    done(page)
    expect(page.locator("#question")).to_be_focused()
    expect(field).to_have_value("Rewritte_n")
    field.press("Enter")
    done(page)
    expect(page.locator(".message.user .text")).to_have_text("Rewritte_n")
    expect(page.locator(".message.user .branch")).to_have_text("2/2")


def test_an_answer_that_was_edited_is_a_version_and_what_the_model_goes_on_with(page: Page) -> None:
    ask(page)
    done(page)
    answer = page.locator(".message.assistant")
    answer.get_by_role("button", name="Edit").click()
    field = page.get_by_label("Answer", exact=True)
    expect(field).to_have_value("The sea is **deep** and blue.")
    field.fill("The sea")
    field.press("Enter")
    field.press_sequentially("is *red*.")
    answer.get_by_role("button", name="Keep").press("Enter")
    expect(page.locator("#status")).to_have_text("Kept")
    expect(answer.get_by_role("button", name="Edit")).to_be_focused()
    expect(answer.locator("em")).to_have_text("red")
    expect(answer.locator(".branch")).to_have_text("2/2")
    expect(answer.locator(".stats")).to_contain_text("edited")
    page.reload()
    page.route("**/v1/chat/completions", lambda route: route.abort(), times=1)
    answer.get_by_role("button", name="Continue").click()
    expect(page.locator(".problem")).to_contain_text("The server does not answer.")
    expect(answer.locator("em")).to_have_text("red")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer.get_by_role("button", name="Try again").click()
    done(page)
    assert sent.value.post_data_json["messages"][-1] == {"role": "assistant", "content": "The sea\nis *red*."}
    expect(answer.locator(".answer")).to_contain_text("is red.The sea is deep and blue.")
    expect(answer.get_by_role("button", name="Continue")).to_have_count(0)
    answer.get_by_role("button", name="The version before").click()
    expect(answer.locator(".answer")).to_have_text("The sea is deep and blue.")


def test_a_message_that_is_too_long_to_be_kept_can_be_sent(page: Page) -> None:
    page.evaluate("localStorage.setItem('other', 'x'.repeat(5 * 2 ** 20 - 2000))")
    page.fill("#question", "A word. " * 500)
    page.press("#question", "Enter")
    expect(page.locator(".message.user .text")).to_contain_text("A word.")


def test_a_title_ends_with_a_whole_character(page: Page) -> None:
    ask(page, "a" * 79 + "\U0001f30a and the sea")
    expect(page.locator("#conversations .open")).to_have_text("a" * 79 + "\U0001f30a")


def test_what_is_said_of_a_server_that_was_away_is_gone_with_its_first_answer(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#note")).to_contain_text("does not answer")
    page.unroute("**/v1/models")
    ask(page)
    expect(page.locator("#note")).to_contain_text("Runs on this machine")
