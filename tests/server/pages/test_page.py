"""The page in a real browser, against a real server."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_page import Page, ask, at_length, done, expect, scripted, slowly
from edgelm_server import TINY, EdgelmServer
from loopback_server import LoopbackServer
from playwright.sync_api import Browser

HOSTILE = (
    "<img src=x onerror=\"document.title='hacked'\"> <script>document.title='hacked'</script> "
    "[click](javascript:document.title='hacked') ![p](http://127.0.0.1:1/x.png?a&amp;b) <b>bold</b>\n\n"
    "```html\n<script>document.title='hacked'</script>\n```\n\n- **one**\n- `two`\n\n"
    "| a | b |\n|---|---|\n| 1 | <i>2</i> |\n"
)


@slowly
def test_an_answer_streams_and_its_markdown_is_rendered(page: Page) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The sea")
    expect(page.locator("#stop")).to_be_visible()  # it is still on its way
    done(page)
    expect(page.locator(".answer strong")).to_have_text("deep")
    expect(page.locator(".stats")).to_contain_text(re.compile(r"\d+ tokens · [\d.]+ tokens/s"))
    expect(page.locator("#context")).to_contain_text("tokens")
    expect(page.locator("#status")).to_have_text("Answer complete: The sea is deep and blue.")


@at_length
def test_stop_keeps_what_arrived_and_frees_the_server(page: Page) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The")
    leaves_composing = {"key": "Escape", "isComposing": True, "bubbles": True}
    page.locator("#question").dispatch_event("keydown", leaves_composing)  # of a word in Japanese, say
    expect(page.locator(".answer")).to_contain_text("The sea is")
    page.press("#question", "Escape")
    done(page)
    expect(page.locator(".stats")).to_contain_text("stopped")
    assert page.locator(".answer").inner_text().startswith("The")
    ask(page, "And now?")
    expect(page.locator(".answer >> nth=1")).to_contain_text("blue.")


@at_length
def test_an_answer_that_was_stopped_goes_on_behind_what_arrived(page: Page) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The sea is")
    page.press("#question", "Escape")
    done(page)
    page.keyboard.press("Alt+s")
    page.get_by_label("Longest answer").fill("8")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Continue").click()
    done(page)
    begun = sent.value.post_data_json["messages"][-1]
    assert (begun["role"], begun["content"][:10]) == ("assistant", "The sea is")
    expect(page.locator(".stats")).to_contain_text(re.compile(r"^reached the longest answer · \d+ tokens"))
    page.get_by_role("button", name="Tokens").click()
    # The scripted model begins anew, whatever was said before.
    whole = "".join(page.locator(".token").all_inner_texts())
    assert re.fullmatch(re.escape(begun["content"]) + "The sea.*", whole)
    page.keyboard.press("Alt+s")
    page.locator("#with-probabilities").uncheck()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Continue").click()  # behind these tokens come some that have none to show
    done(page)
    expect(page.get_by_role("button", name="Tokens")).to_have_count(0)
    expect(page.locator(".answer")).to_contain_text(re.compile("^The sea is.*The sea.*The sea"))


@at_length
def test_a_conversation_survives_a_reload_in_the_middle_of_an_answer(page: Page) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The")
    page.reload()
    expect(page.locator(".message.user")).to_contain_text("What is the sea?")
    expect(page.locator(".problem")).to_contain_text("interrupted")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_contain_text("blue.")
    expect(page.locator(".answer")).to_have_count(1)


def test_regenerate_and_edit_make_versions_that_can_be_gone_through(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Regenerate").click()
    done(page)
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")
    page.get_by_role("button", name="The version before").click()
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    page.fill(".edit textarea", "What is a lake?")
    page.press(".edit textarea", "Enter")
    done(page)
    expect(page.locator(".message.user .text")).to_have_text("What is a lake?")
    expect(page.locator(".message.user .branch")).to_have_text("2/2")
    page.locator(".message.user").get_by_role("button", name="The version before").click()
    expect(page.locator(".message.user .text")).to_have_text("What is the sea?")
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")  # of a question, the newest answer


def test_the_token_view_colours_tokens_and_shows_the_alternatives(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Tokens", exact=True).click()
    tokens = page.locator(".token")
    assert "".join(tokens.all_inner_texts()).startswith("The sea is **deep** and blue.")
    assert tokens.first.evaluate("node => Number(node.style.getPropertyValue('--p'))") == pytest.approx(1, abs=0.01)
    tokens.nth(2).hover()
    expect(page.locator("#alternatives tr")).to_have_count(5)
    expect(page.locator("#alternatives tr.chosen")).to_contain_text("100.0 %")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator("#alternatives")).to_be_visible()
    page.get_by_role("button", name="Tokens", exact=True).click()
    expect(page.locator(".answer strong")).to_have_text("deep")


def test_hostile_markdown_runs_nothing_and_loads_nothing(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted(HOSTILE)) as server:
        page = open_page(server)
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        ask(page)
        done(page)
        assert page.title() == "What is the sea? · edgelm"
        assert page.locator(".answer script, .answer img, .answer b, .answer i").count() == 0
        assert page.locator(".answer a").evaluate_all("links => links.map(link => link.href)") == [
            "http://127.0.0.1:1/x.png?a&b"
        ]
        assert page.locator(".answer a").get_attribute("rel") == "noopener noreferrer"
        expect(page.locator(".code pre")).to_have_text(
            "<script>document.title='hacked'</script>\n", use_inner_text=False
        )
        expect(page.locator(".answer li")).to_have_count(2)
        expect(page.locator(".answer td >> nth=1")).to_have_text("<i>2</i>")
        assert {url.split("/")[2] for url in requested} == {f"{server.host}:{server.port}"}


def test_a_block_of_code_is_copied_as_it_stands(open_page: Callable[..., Page]) -> None:
    code = "if one < 2:\n    print('<b>')"
    with EdgelmServer((TINY,), prelude=scripted(f"Look:\n\n```python\n{code}\n```\n")) as server:
        page = open_page(server, permissions=["clipboard-read", "clipboard-write"])
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        done(page)
        copy = page.locator(".answer .bar button")
        copy.dblclick()
        expect(copy).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == code
        expect(copy).to_have_text("Copy")


def test_one_of_several_models_is_chosen_and_stays_chosen(open_page: Callable[..., Page], own_library: Path) -> None:
    with EdgelmServer((), prelude=scripted("Yes.")) as server:
        page = open_page(server)
        expect(page.locator("#note")).to_have_text(
            "No model is here yet. In a terminal: edgelm pull smollm2-135m-instruct"
        )
        for name in ("first", "second"):
            shutil.copytree(TINY, own_library / "models" / name)
        page.reload()
        expect(page.locator("#model option")).to_have_text(["first", "second"])
        page.select_option("#model", "second")
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page)
        assert sent.value.post_data_json["model"] == "second"
        done(page)
        page.reload()
        expect(page.locator("#model")).to_have_value("second")
        shutil.copytree(TINY, own_library / "models" / "third")  # pulled meanwhile, in a terminal
        page.evaluate("dispatchEvent(new Event('focus'))")
        expect(page.locator("#model option")).to_have_text(["first", "second", "third"])
        expect(page.locator("#model")).to_have_value("second")
        shutil.rmtree(own_library / "models" / "second")
        ask(page)
        expect(page.locator(".problem")).to_contain_text("There is no model 'second' here.")
        expect(page.locator("#model option")).to_have_text(["first", "third"])
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".stats").last).to_contain_text("first")


def test_no_other_script_may_run_on_the_page(page: Page) -> None:
    added = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    page.evaluate(added)
    assert page.evaluate("window.ran") is None
    policy = page.request.get(page.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_errors_are_told_in_plain_words_and_can_be_retried(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted("Back again.")) as server:
        page = open_page(server)
        expect(page.locator("#model option")).to_have_count(1)
        page.route("**/v1/chat/completions", lambda route: route.abort())
        ask(page)
        expect(page.locator(".problem")).to_contain_text("The server does not answer. Is it still running?")
        page.unroute("**/v1/chat/completions")
        busy = {"status": 429, "json": {"error": {"message": "The queue is full."}}}
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**busy))
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".problem")).to_contain_text("too much to do right now")
        page.unroute("**/v1/chat/completions")
        page.route("**/v1/chat/completions", lambda route: route.continue_(post_data="x" * 1_100_000))
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".problem")).to_contain_text("more than the server takes. Shorten a message, or")
        page.unroute("**/v1/chat/completions")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".answer")).to_contain_text("Back again.")
        expect(page.locator(".problem")).to_have_count(0)
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("word " * 400)
        page.get_by_role("button", name="Done").click()
        ask(page)
        expect(page.locator(".problem")).to_contain_text("these are its system message and tools: shorten them")


def test_an_answer_that_breaks_off_keeps_what_arrived(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted("A long answer. " * 8, seconds_per_token=0.02)) as server:
        page = open_page(server)
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        expect(page.locator(".answer")).to_contain_text("A long")
        server.process.kill()
        expect(page.locator(".problem")).to_contain_text("broke off")
        assert page.locator(".answer").inner_text().startswith("A long")


def test_a_server_with_a_key_is_asked_with_it(open_page: Callable[..., Page]) -> None:
    environment = {"EDGELM_API_KEY": "open-sesame-123456"}
    with EdgelmServer((TINY,), prelude=scripted("Welcome."), environment=environment) as server:
        page = open_page(server)
        expect(page.locator("#ask-key")).to_be_visible()
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        expect(page.locator("#ask-key-title")).to_have_text("The server does not take this key")
        page.fill("#key", "open-sesame-123456”")  # as a text program writes it, and no header can carry it
        page.press("#key", "Enter")
        expect(page.locator("#ask-key-title")).to_have_text("The server does not take this key")
        expect(page.locator("#ask-key")).to_be_visible()
        page.press("#key", "Escape")
        expect(page.locator("#ask-key")).to_be_hidden()  # what was said before can be read without a key
        ask(page, "May I?")
        expect(page.locator("#ask-key")).to_be_visible()
        page.fill("#key", "open-sesame-123456")
        page.press("#key", "Enter")
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        expect(page.locator(".answer").last).to_contain_text("Welcome.")
        assert page.evaluate("JSON.stringify(localStorage)").find("sesame") == -1  # gone with the tab


def test_conversations_are_listed_searched_renamed_and_deleted(page: Page) -> None:
    ask(page, "First question")
    done(page)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "Second question")
    done(page)
    titles = page.locator("#conversations .open")
    assert titles.all_inner_texts() == ["Second question", "First question"]
    page.fill("#search", "first")
    assert titles.all_inner_texts() == ["First question"]
    page.fill("#search", "")
    page.on("dialog", lambda dialog: dialog.accept("Renamed" if dialog.type == "prompt" else ""))
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Rename Second question").click()
    assert titles.all_inner_texts() == ["Renamed", "First question"]
    page.locator("#conversations li").first.hover()
    page.get_by_role("button", name="Delete Renamed").click()
    expect(titles).to_have_text(["First question"])
    page.reload()
    expect(titles).to_have_text(["First question"])


def test_conversations_move_to_another_browser_as_a_file(
    open_page: Callable[..., Page], scripted_server: EdgelmServer, page: Page, tmp_path: Path
) -> None:
    ask(page, "Take me along")
    done(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    download.value.save_as(tmp_path / "conversations.json")
    other = open_page(scripted_server)
    other.on("dialog", lambda dialog: dialog.accept())
    for _ in range(2):  # also the same file again
        expect(other.locator("#conversations")).to_have_text("No conversations yet.")
        other.set_input_files("#import-file", tmp_path / "conversations.json")
        expect(other.locator("#conversations .open")).to_have_count(1)
        other.locator("#conversations li").hover()
        other.get_by_role("button", name="Delete Take me along").click()
    other.set_input_files("#import-file", tmp_path / "conversations.json")
    other.locator("#conversations .open").click()
    expect(other.locator(".message.user .text")).to_have_text("Take me along")
    broken = json.loads((tmp_path / "conversations.json").read_text())
    broken["conversations"][0]["leaf"] = "nowhere"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with other.expect_event("dialog") as dialog:
        other.set_input_files("#import-file", tmp_path / "broken.json")
    assert dialog.value.message == 'The conversation "Take me along" in this file is broken.'


def test_it_says_on_which_machine_the_model_runs(
    open_page: Callable[..., Page], scripted_server: EdgelmServer, page: Page
) -> None:
    expect(page.locator("#note")).to_have_text("Runs on this machine. Answers can be wrong.")
    expect(page.locator(".welcome")).to_contain_text("What you write stays on this machine.")
    page.route(
        "http://desk.example/**",  # as the page of another machine looks, without one
        lambda route: route.fulfill(
            response=page.request.get(route.request.url.replace("http://desk.example", scripted_server.url))
        ),
    )
    page.goto("http://desk.example/", wait_until="networkidle")  # a request left over would fail in the next test
    expect(page.locator("#note")).to_have_text("Runs on desk.example. Answers can be wrong.")
    expect(page.locator(".welcome")).to_contain_text("What you write goes to desk.example")


def test_who_reads_an_earlier_place_stays_there_when_the_answer_ends(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted("A\n\n" * 300, seconds_per_token=0.03)) as server:
        page = open_page(server, viewport={"width": 800, "height": 360})
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        expect(page.locator(".answer p >> nth=20")).to_be_attached()  # more than fit
        page.mouse.move(500, 100)
        page.mouse.wheel(0, -15)  # as little as a finger goes in a moment
        expect(page.locator("#to-end")).to_be_visible()  # the end goes on without it
        page.evaluate("document.getElementById('scroll').scrollTop = 7")
        page.press("#question", "Escape")
        done(page)
        assert page.evaluate("document.getElementById('scroll').scrollTop") == 7
        page.locator("#to-end").click()
        expect(page.locator(".answer p").last).to_be_in_viewport()
        expect(page.locator("#to-end")).to_be_hidden()
        page.fill("#question", "line\n" * 5)
        expect(page.locator(".stats")).to_be_in_viewport(ratio=1)  # the end is still seen above a long question


def test_settings_and_the_system_prompt_are_sent(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.fill("#system", "Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("Stop before").fill("one\ntwo")
    page.locator("#with-probabilities").uncheck()
    page.get_by_role("button", name="Done").click()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page)
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_completion_tokens"], body["stop"]) == (0.5, 3, ["one", "two"])
    assert "logprobs" not in body
    done(page)
    expect(page.locator(".stats")).to_contain_text("reached the longest answer")
    page.reload()
    page.get_by_role("button", name="Settings").click()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")
    expect(page.locator("#system")).to_have_value("Be brief.")


def test_a_message_that_was_not_sent_is_kept(page: Page) -> None:
    page.fill("#question", "Half a thou")
    page.reload()
    expect(page.locator("#question")).to_have_value("Half a thou")
    page.press("#question", "Shift+Enter")
    page.type("#question", "ght")
    expect(page.locator("#question")).to_have_value("Half a thou\nght")


@pytest.mark.parametrize("kept", [None, 7])
def test_a_conversation_that_outgrows_the_context_goes_on_and_says_so(
    kept: int | None, open_page: Callable[..., Page]
) -> None:
    told = () if kept is None else ("--context-shift", str(kept))
    with EdgelmServer((TINY, *told), prelude=scripted("The sea.")) as server:  # the model's context is 1,024 tokens
        page = open_page(server)
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "word " * 250)
        assert sent.value.post_data_json["context_shift"] == (kept or 0)
        done(page)
        expect(page.locator(".stats")).not_to_contain_text("left out")
        ask(page, "word " * 250)
        done(page)
        expect(page.locator(".answer >> nth=1")).to_have_text("The sea.")
        expect(page.locator(".stats >> nth=1")).to_contain_text("the oldest part was left out")
        page.route("**/v1/chat/completions", lambda route: None)
        ask(page)
        page.press("#question", "Escape")
        expect(page.locator(".stats >> nth=2")).to_contain_text("stopped · the oldest part was left out")


def test_the_browser_says_that_another_site_asked(browser: Browser, scripted_server: EdgelmServer) -> None:
    refused = 'edgelm_requests_total{route="/tokenizer_info",status="403"}'
    before = scripted_server.metric(refused)
    html = f'<!doctype html><img src="{scripted_server.url}/tokenizer_info"><a href="{scripted_server.url}/">chat</a>'
    with LoopbackServer({"/": html.encode()}) as other:
        page = browser.new_page()
        page.goto(other.url)  # until its picture is answered too
        assert scripted_server.metric(refused) == before + 1
        page.click("a")
        page.wait_for_selector("#question")
        page.close()
