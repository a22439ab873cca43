"""The page without a mouse, for a screen reader, in the dark, enlarged, and on a phone."""

import json
from collections.abc import Callable

import pytest
from chat_page import Page, ask, done, expect
from edgelm_server import EdgelmServer

CONTRAST = 4.5  # WCAG 2.2, 1.4.3, for text
CONTRAST_OF_CONTROLS = 3  # 1.4.11
GROUNDS = ("--ground", "--raised", "--sunken")


def test_everything_can_be_done_with_the_keyboard(page: Page) -> None:
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("What is the sea?")
    page.keyboard.press("Enter")
    done(page)
    page.keyboard.press("Alt+t")
    expect(page.locator(".token").first).to_be_visible()
    page.keyboard.press("Alt+r")
    done(page)
    expect(page.locator(".message.assistant .branch")).to_have_text("2/2")
    page.keyboard.press("Alt+e")
    expect(page.locator(".edit textarea")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+n")
    expect(page.locator(".welcome")).to_be_visible()
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("Alt+s")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(
    open_page: Callable[..., Page], scripted_server: EdgelmServer, scheme: str
) -> None:
    page = open_page(scripted_server, color_scheme=scheme)
    ask(page)
    done(page)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    pairs = [("--ink", "--ground"), ("--dim", "--ground"), ("--dim", "--sunken"), ("--accent-ink", "--accent")]
    pairs += [
        ("--dim", "--raised"),
        ("--accent", "--ground"),
        ("--danger", "--danger-soft"),
        ("--ink", "--sure"),
        ("--ink", "--unsure"),
    ]
    ratios = {pair: contrast(*(colour(page, name) for name in pair)) for pair in pairs}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < CONTRAST} == {}
    edges = {ground: contrast(colour(page, "--edge"), colour(page, ground)) for ground in GROUNDS}
    assert {ground: ratio for ground, ratio in edges.items() if ratio < CONTRAST_OF_CONTROLS} == {}
    page.locator("#new-conversation").focus()
    for field in ("#search", "#composer", "#system"):
        expect(page.locator(field)).to_have_css("border-top-color", rgb(page, "--edge"))
    placeholder = page.evaluate("getComputedStyle(document.getElementById('search'), '::placeholder').color")
    assert placeholder == rgb(page, "--dim")
    page.get_by_role("button", name="Switch between light and dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") != scheme


def colour(page: Page, name: str) -> tuple[float, float, float]:
    text = page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
    return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))


def rgb(page: Page, name: str) -> str:
    return "rgb({}, {}, {})".format(*(round(255 * part) for part in colour(page, name)))


def contrast(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Return the contrast ratio of WCAG 2.2."""

    def luminance(rgb: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_it_fits_a_phone(open_page: Callable[..., Page], scripted_server: EdgelmServer) -> None:
    page = open_page(scripted_server, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page.fill("#question", "A question with averyveryveryveryveryveryveryveryveryverylongword in it")
    page.locator("#send").tap()
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("#send", "#model", "#open-settings", "#open-sidebar"):
        box = page.locator(name).bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 360, name
        assert box["height"] >= 24, name  # WCAG 2.2, 2.5.8
    assert page.locator("#model").bounding_box()["width"] > 140  # enough of a model's name to tell it from others
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    page.locator("#open-sidebar").tap()
    expect(page.locator("#close-sidebar")).to_be_focused()  # the search field would bring up the keyboard
    page.locator("#conversations .open").tap()
    expect(page.locator("#sidebar")).not_to_be_in_viewport()
    sizes = "nodes => nodes.map(node => parseFloat(getComputedStyle(node).fontSize))"
    fields = page.locator("input:not([type=checkbox], [hidden]), textarea, select")
    assert min(fields.evaluate_all(sizes)) >= 16  # Safari enlarges the page for a field with smaller letters
    page.locator("#question").tap()
    page.keyboard.type("one")
    page.keyboard.press("Enter")  # a touch keyboard has no Shift Enter
    page.keyboard.type("two")
    expect(page.locator("#question")).to_have_value("one\ntwo")


def test_the_list_over_a_narrow_page_is_closed_with_escape_and_by_a_tap_beside_it(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, viewport={"width": 360, "height": 640})
    opener = page.locator("#open-sidebar")
    expect(opener).to_have_attribute("aria-expanded", "false")
    for close in (lambda: page.keyboard.press("Escape"), lambda: page.mouse.click(350, 300)):
        opener.click()
        expect(opener).to_have_attribute("aria-expanded", "true")
        expect(page.locator("#search")).to_be_focused()
        assert page.evaluate("document.getElementById('main').inert")  # Tab stays in the list
        close()
        expect(page.locator("#sidebar")).not_to_be_in_viewport()
        expect(opener).to_be_focused()
    opener.click()
    page.set_viewport_size({"width": 1000, "height": 640})
    expect(opener).to_have_attribute("aria-expanded", "false")
    page.locator("#question").click()


def test_it_can_be_used_enlarged_to_200_percent(open_page: Callable[..., Page], scripted_server: EdgelmServer) -> None:
    page = open_page(scripted_server, viewport={"width": 640, "height": 400}, device_scale_factor=2)
    ask(page)
    done(page)
    page.fill("#question", "\n".join(f"line {number}" for number in range(30)))
    assert page.evaluate("document.documentElement.scrollWidth") <= 640  # WCAG 2.2, 1.4.10
    for name in ("#send", "#open-settings"):
        expect(page.locator(name)).to_be_in_viewport(ratio=1)
    page.locator("#open-settings").click()
    page.get_by_role("button", name="Done").click()


def test_at_400_percent_the_shortcuts_are_still_listed(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, viewport={"width": 320, "height": 256}, device_scale_factor=4)
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(page.locator("#shortcuts").get_by_text("Edit the last message")).to_be_visible()
    page.keyboard.press("Escape")
    for control in page.locator("header > :visible").all():
        box = control.bounding_box()
        assert box["x"] + box["width"] <= 320, control


COMPOSING = {"of most browsers": {"isComposing": True}, "of Safari": {"keyCode": 229}}


@pytest.mark.parametrize("event", COMPOSING.values(), ids=COMPOSING)
def test_a_key_that_ends_a_composition_does_nothing_else(page: Page, event: dict[str, object]) -> None:
    ask(page)
    done(page)
    press = "(node, event) => node.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, ...event }))"
    page.fill("#question", "\u304b\u306a")
    page.locator("#question").evaluate(press, {"key": "Enter", **event})
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    for key in ("Enter", "Escape"):
        page.locator(".edit textarea").evaluate(press, {"key": key, **event})
    expect(page.locator(".edit textarea")).to_be_focused()
    expect(page.locator(".message")).to_have_count(2)


def test_every_control_has_a_name_for_a_screen_reader(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Tokens", exact=True).click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [tabindex='0']")]
            .filter(node => node.type !== "file" && !(node.getAttribute("aria-label") || node.textContent.trim() ||
                (node.labels && [...node.labels].some(label => label.textContent.trim()))))
            .map(node => node.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("#status").evaluate("node => [node.ariaLive, node.role]") == ["polite", None]  # for Orca


def test_its_parts_are_landmarks_headings_and_lists(page: Page) -> None:
    expect(page.get_by_role("main").get_by_role("textbox")).to_be_visible()
    ask(page)
    done(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("What is the sea?")
    expect(page.get_by_role("main").get_by_role("article")).to_have_count(2)
    strangers = page.evaluate("[...document.querySelectorAll('ul > :not(li), ol > :not(li)')].map(n => n.outerHTML)")
    assert strangers == []
    in_list = page.get_by_role("navigation").get_by_role("button", name="What is the sea?", exact=True)
    expect(in_list).to_have_attribute("aria-current", "true")


def test_a_screen_reader_is_told_what_else_a_token_could_have_been(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.mouse.move(0, 0)
    token = page.locator(".token").first
    token.focus()
    described_by = token.get_attribute("aria-describedby")
    expect(page.locator(f"#{described_by}")).to_have_role("tooltip")
    expect(page.locator(f"#{described_by}")).to_contain_text("100.0 %")
    page.keyboard.press("ArrowRight")
    assert token.get_attribute("aria-describedby") is None
    # A screen reader keeps the arrow keys to itself where there is nothing to choose from.
    expect(page.get_by_role("listbox").get_by_role("option", selected=True)).to_be_focused()


def test_a_token_without_letters_has_a_name(page: Page) -> None:
    tokens = [{"token": text, "logprob": 0, "top_logprobs": []} for text in ("The", " ", "\n", "")]
    answer(page, "The", tokens)
    page.get_by_role("button", name="Tokens", exact=True).click()
    names = page.locator(".token").evaluate_all("nodes => nodes.map(node => node.ariaLabel)")
    said = ["The", "space", "line break", "part of a character"]
    assert names == [f"{name}, 100.0 %" for name in said]


def test_escape_takes_away_what_else_a_token_could_have_been_and_stops_nothing(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page)
    expect(page.locator("#stop")).to_be_visible()
    page.locator(".token").first.hover()
    page.keyboard.press("Escape")
    expect(page.locator("#alternatives")).to_have_count(0)
    expect(page.locator("#stop")).to_be_visible()
    page.keyboard.press("Escape")
    done(page)


def answer(page: Page, text: str, tokens: list[dict[str, object]] | None = None) -> None:
    """Ask, and have it answered with that text at once."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": {"content": tokens or []}}
    body = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
    ask(page)
    done(page)


def test_an_answer_is_headed_by_who_gave_it_and_its_parts_have_names(page: Page) -> None:
    table, task = "| a |\n|---|\n| 1 |", "- [x] task\n- [ ] another"
    answer(page, f"# Title\n\n{table}\n\nand\n\n{table}\n\n{task}\n\n```python\nprint()\n```")
    headings = page.get_by_role("main").get_by_role("heading")
    levels = headings.evaluate_all("nodes => nodes.map(node => `${node.localName} ${node.textContent}`)")
    assert levels == ["h1 What is the sea?", "h2 You", f"h2 {page.locator('#model').input_value()}", "h3 Title"]
    expect(page.get_by_role("article", name="You")).to_be_visible()
    expect(page.get_by_role("region")).to_have_count(1)  # a table is no place of the page
    expect(page.get_by_role("group", name="Table")).to_have_count(2)
    expect(page.get_by_role("group", name="Code, python")).to_have_text("print()")
    expect(page.get_by_role("checkbox", name="Done", checked=True)).to_have_count(1)


def test_what_is_written_is_in_no_language_of_the_page(page: Page) -> None:
    answer(page, "Das Meer")
    for name in (".answer", ".message.user .text", "#question", "#title", "#conversations .open", "#system"):
        assert page.locator(name).evaluate("node => node.closest('[lang]').lang") == "", name


def test_what_happened_is_said_once(page: Page) -> None:
    said = """() => { window.said = []; new MutationObserver(() => {
        const text = document.getElementById('status').textContent; if (text) said.push(text);
    }).observe(document.getElementById('status'), { childList: true }); }"""
    page.evaluate(said)
    answer(page, "- **one**\n- `two`")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page)
    done(page)
    page.fill("#search", "no such word")
    page.fill("#search", "")
    broken = "The server does not answer. Is it still running?"
    answered = ["Answering", "Answer complete: one\ntwo", "Answering", broken]
    assert page.evaluate("said") == [*answered, "No conversations", "1 conversation"]
    expect(page.get_by_role("alert")).to_have_count(0)  # which would be said again each time that it is drawn


def test_what_was_said_does_not_stay_on_the_page(open_page: Callable[..., Page], scripted_server: EdgelmServer) -> None:
    page = open_page(scripted_server)
    page.clock.install()
    ask(page)
    done(page)
    expect(page.locator("#status")).to_contain_text("Answer complete")
    page.clock.fast_forward(5000)
    expect(page.locator("#status")).to_be_empty()


def test_what_is_said_below_the_question_is_read_aloud(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator("#status")).to_have_text("The server does not answer. Is it still running?")


def test_a_conversation_can_be_renamed_and_deleted_without_pointing_at_it(page: Page) -> None:
    ask(page)
    done(page)
    page.mouse.move(600, 300)
    expect(page.get_by_role("button", name="Rename What is the sea?")).to_be_visible()
    expect(page.get_by_role("button", name="Delete What is the sea?")).to_be_visible()


def test_what_cannot_be_copied_is_not_said_to_be(open_page: Callable[..., Page], scripted_server: EdgelmServer) -> None:
    page = open_page(scripted_server)
    ask(page)
    done(page)
    copy_button = page.locator(".message.user").get_by_role("button", name="Copy")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined }); null")  # as without https
    copy_button.focus()
    page.keyboard.press("Enter")
    copied = page.get_by_role("button", name="Copied")
    expect(copied).to_be_focused()
    page.evaluate("document.execCommand = () => false; null")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Not copied")).to_be_focused()


def test_a_conversation_is_printed_whole_and_on_white(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, color_scheme="dark")
    answer(page, "\n\n".join(f"Paragraph {number}" for number in range(200)))
    page.emulate_media(media="print")
    page.locator(".answer p").last.scroll_into_view_if_needed()
    expect(page.locator("#scroll")).to_have_css("overflow", "visible")
    assert page.evaluate("document.documentElement.scrollHeight") > 200 * 16
    for name in ("#sidebar", "header", "#composer", ".message.user .actions"):
        expect(page.locator(name)).to_be_hidden()
    assert colour(page, "--ground") > (0.9, 0.9, 0.9)
    expect(page.get_by_role("heading", name="You")).to_have_css("position", "static")


def test_nothing_moves_for_whom_motion_is_too_much(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, reduced_motion="reduce")
    page.route("**/v1/chat/completions", lambda route: None)
    ask(page)
    expect(page.locator(".waiting")).to_be_visible()
    assert page.evaluate("document.getAnimations({ subtree: true }).length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations({ subtree: true }).length") == 1


def test_colours_of_its_own_are_seen_with_those_that_a_person_has_chosen(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, forced_colors="active")
    answer(page, "The", [{"token": "The", "logprob": -1, "top_logprobs": [{"token": "The", "logprob": -1}]}])
    expect(page.locator("#question")).to_be_focused()
    assert page.locator("#composer").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.locator(".token").focus()
    for name in (".token", "#alternatives .meter span", ".legend .scale"):
        expect(page.locator(name)).to_have_css("forced-color-adjust", "none")


def test_what_is_written_from_right_to_left_is_shown_so(page: Page) -> None:
    arabic, block = "\u0645\u0631\u062d\u0628\u0627!", "- \u0645\u0631\u062d\u0628\u0627 `ls /`\n\n      code"
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": f"{arabic}\n\n{block}\n\nThe sea"}}]})
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=f"data: {event}\n\ndata: [DONE]\n\n"))
    ask(page, arabic)
    expect(page.locator(".answer p").last).to_have_text("The sea")
    direction = "nodes => nodes.map(node => getComputedStyle(node).direction)"
    assert page.locator(".answer p").evaluate_all(direction) == ["rtl", "rtl", "ltr"]
    assert page.locator(".answer ul, .answer li, .answer .code").evaluate_all(direction) == ["rtl", "rtl", "ltr"]
    in_the_line = page.locator(".answer li :not(pre) > code")
    assert in_the_line.evaluate_all(direction) == ["ltr"]
    expect(in_the_line).to_have_css("unicode-bidi", "isolate")
    assert page.locator(".message.user .text").evaluate("node => getComputedStyle(node).unicodeBidi") == "plaintext"
    page.fill("#question", arabic)
    assert page.locator("#question, #conversations .open").evaluate_all(direction) == ["rtl", "rtl"]


def test_the_list_over_a_narrow_page_stays_when_a_conversation_in_it_is_renamed(
    open_page: Callable[..., Page], scripted_server: EdgelmServer
) -> None:
    page = open_page(scripted_server, viewport={"width": 360, "height": 640})
    ask(page, "A question")
    done(page)
    page.locator("#open-sidebar").click()
    page.on("dialog", lambda dialog: dialog.accept("Renamed"))
    page.get_by_role("button", name="Rename A question").click()
    expect(page.locator("#conversations .open")).to_have_text("Renamed")
    expect(page.locator("#open-sidebar")).to_have_attribute("aria-expanded", "true")
