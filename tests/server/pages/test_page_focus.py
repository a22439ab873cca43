"""What has the focus, and what is selected, where the page is drawn anew."""

from chat_page import Page, Route, ask, done, expect, slowly


@slowly
def test_the_focus_is_kept_where_messages_are_drawn_anew(page: Page) -> None:
    ask(page)
    done(page)
    page.get_by_role("button", name="Regenerate").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()  # the answer that had the button is gone
    page.locator(".message.user").get_by_role("button", name="Copy").focus()
    done(page)
    expect(page.locator(".message.user").get_by_role("button", name="Copy")).to_be_focused()
    page.get_by_role("button", name="The version before").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .branch")).to_have_text("1/2")
    forward = page.get_by_role("button", name="The next version")
    expect(forward).to_be_focused()  # there is no version before the first
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Version 2 of 2")
    edit = page.locator(".message.user").get_by_role("button", name="Edit")
    edit.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(edit).to_be_focused()


@slowly
def test_the_focus_is_kept_where_a_button_goes_away(page: Page) -> None:
    question, stop = page.locator("#question"), page.locator("#stop")
    question.fill("What is the sea?")
    page.locator("#send").focus()
    page.keyboard.press("Space")
    expect(stop).to_be_visible()
    expect(question).to_be_focused()
    stop.focus()
    page.keyboard.press("Space")
    done(page)
    expect(question).to_be_focused()
    ask(page, "line\n" * 40)
    stop.focus()
    done(page)  # it ends by itself
    expect(question).to_be_focused()
    page.evaluate("document.getElementById('scroll').scrollTop = 0")
    page.locator("#to-end").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#to-end")).to_be_hidden()
    expect(page.get_by_role("region", name="Conversation")).to_be_focused()  # the arrow keys scroll it


@slowly
def test_what_is_selected_in_messages_stays_so_when_an_answer_ends(page: Page) -> None:
    ask(page)
    expect(page.locator(".answer")).to_contain_text("The")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.message.user .text'))")
    page.evaluate("getSelection().extend(document.querySelector('.answer p').firstChild, 3)")
    done(page)
    selected = page.evaluate("getSelection().toString()")
    assert (selected[:16], selected[-3:]) == ("What is the sea?", "The")


def test_what_is_selected_in_thoughts_stays_so_while_others_come(page: Page) -> None:
    shown = page.evaluate("""async () => {
        const { Message } = await import("/page/message.js");
        const node = { id: "1", role: "assistant", text: "", thinking: "First", model: "told", state: "running" };
        const message = new Message(node, { tokensShown: new Set(), thinkingShown: new Set(["1"]) });
        document.querySelector("#thread").append(message.article);
        message.update();
        const [heading, thoughts] = message.article.querySelectorAll("h2, .thinking div");
        const changes = [];
        new MutationObserver((found) => changes.push(...found)).observe(heading, { childList: true });
        getSelection().setBaseAndExtent(thoughts.firstChild, 0, thoughts.firstChild, 5);
        node.thinking += " second";
        message.update();
        await null;
        return [getSelection().toString(), thoughts.textContent, changes.length];
    }""")
    assert shown == ["First", "First second", 0]


def test_the_focus_stays_in_a_message_whose_edit_is_given_up(page: Page) -> None:
    ask(page)
    done(page)
    held: list[Route] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.locator(".message.user").get_by_role("button", name="Edit").click()
    ask(page, "Another question")
    expect(page.locator("#stop")).to_be_visible()
    field = page.locator(".edit textarea")
    field.focus()
    page.keyboard.press("Escape")
    expect(field).to_have_count(0)
    expect(page.locator("#question")).to_be_focused()  # Edit waits for the answer
    expect(page.locator("#stop")).to_be_visible()  # which is not what was stopped


@slowly
def test_the_focus_is_kept_where_the_list_is_drawn_anew(page: Page) -> None:
    for text in ("First question", "Second question"):
        page.keyboard.press("Alt+n")
        ask(page, text)
    first = page.get_by_role("navigation").get_by_role("button", name="First question", exact=True)
    first.focus()
    expect(page.locator("#stop")).to_be_visible()
    done(page)
    expect(first).to_be_focused()
    page.on("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(first).to_have_count(0)
    expect(page.get_by_role("button", name="New conversation")).to_be_focused()
