"""Text files that go to the model with a message."""

from pathlib import Path

import pytest
from chat_page import Page, expect

GIVE_FILE = """([type, bytes, times]) => {
  const data = new DataTransfer();
  data.items.add(new File(Array(times).fill(new Uint8Array(bytes)), "essay.md"));
  const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
  const event = type === "drop" ? new DragEvent(type, options) : new ClipboardEvent(type, options);
  return !document.getElementById("question").dispatchEvent(event);
}"""


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_text_file_goes_into_the_message_and_no_other_takes_the_place_of_the_page(page: Page, event: str) -> None:
    page.fill("#question", "What is it about?")
    for content, times, words in (
        (b"\xff", 1, "not a text file"),
        (b"x", 262_145, "too large"),
        (b"P\0", 1, "not a text"),
    ):
        assert page.evaluate(GIVE_FILE, [event, list(content), times])
        expect(page.locator("#note")).to_contain_text(f"essay.md is {words}")
    assert page.evaluate(GIVE_FILE, [event, list("The sea.\r\n```\n\u304b\n".encode()), 1])
    whole = "File essay.md:\n````\nThe sea.\n```\n\u304b\n````\n\nWhat is it about?"
    expect(page.locator("#question")).to_have_value(whole)
    expect(page.locator("#note")).to_contain_text("Answers can be wrong.")
    page.keyboard.press("ControlOrMeta+z")
    expect(page.locator("#question")).to_have_value("What is it about?")
    page.reload()
    expect(page.locator("#question")).to_have_value("What is it about?")


def test_a_browser_that_calls_a_dropped_file_a_link_does_not_leave_the_page_for_it(page: Page) -> None:
    """As WebKitGTK does, which gives the page no more of it."""
    drop = """([name, ...kinds]) => {
      const data = new DataTransfer();
      for (const kind of kinds) data.setData(kind, "x");
      const options = { bubbles: true, cancelable: true, dataTransfer: data };
      return !document.getElementById("question").dispatchEvent(new DragEvent(name, options));
    }"""
    for name in ("dragenter", "dragover", "drop"):
        assert page.evaluate(drop, [name, "text/uri-list", "text/html"])
        assert not page.evaluate(drop, [name, "text/uri-list", "text/plain"])  # a link goes where the browser puts it
    expect(page.locator("#note")).to_contain_text("does not give the page what was dropped. Use + for a file.")


def test_a_file_that_comes_while_a_dialog_is_open_goes_into_the_message_too(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.fill("#system", "Be brief.")
    page.evaluate(GIVE_FILE, ["paste", list(b"The sea."), 1])
    expect(page.locator("#question")).to_have_value("File essay.md:\n```\nThe sea.\n```\n\n")
    expect(page.locator("#system")).to_have_value("Be brief.")


def test_files_that_are_too_large_together_are_refused(page: Page) -> None:
    file = {"name": "a.txt", "mimeType": "text/plain", "buffer": b'"s' * 95_000}  # a request has a sign before each "
    page.set_input_files("#files", [file] * 4)
    expect(page.locator("#note")).to_contain_text("that is more than the server takes (1 MB)")
    expect(page.locator("#question")).to_have_value("")
    page.set_input_files("#files", [file] * 3)
    expect(page.locator("#status")).to_have_text("Added: 3")
    page.set_input_files("#files", [file])
    expect(page.locator("#note")).to_contain_text("With what is said already")


def test_what_is_typed_while_a_file_is_read_stays(page: Page) -> None:
    slow_disk = """() => {
      const { arrayBuffer } = Blob.prototype, held = new Promise((go) => (window.go = go));
      Blob.prototype.arrayBuffer = function () { return held.then(() => arrayBuffer.call(this)); };
    }"""
    page.evaluate(slow_disk)
    page.evaluate(GIVE_FILE, ["drop", list(b"The sea."), 1])
    page.fill("#question", "What is it about?")
    page.evaluate("go()")
    expect(page.locator("#question")).to_have_value("File essay.md:\n```\nThe sea.\n```\n\nWhat is it about?")


def test_text_files_are_chosen_with_the_keyboard(page: Page, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name[0], encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        # Playwright begins to look for one while the next steps are done: the key must not be the first of them.
        page.press("#question", "Shift+Tab")
        expect(page.get_by_label("Add text files")).to_be_focused()
        page.keyboard.press("Enter")
    chooser.value.set_files([tmp_path / "a.txt", tmp_path / "b.txt"])
    expect(page.locator("#question")).to_have_value("File a.txt:\n```\na\n```\n\nFile b.txt:\n```\nb\n```\n\n")
    expect(page.locator("#question")).to_be_focused()
