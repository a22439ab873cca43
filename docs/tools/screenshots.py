"""Take the page's pictures, with a real model: python docs/tools/screenshots.py [MODEL [FOLDER]]

Needs Chromium (apt-get install chromium, or chromium-headless-shell) and playwright (in the dev extra). Settings and
seed are fixed, so the same package gives the same pictures. They go to FOLDER, else to docs/pictures/.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

PICTURES = Path(__file__).parent.parent / "pictures"
QUESTIONS = (
    "Write a Python function that tells whether a number is even.",
    "Explain what a wave is, in two sentences.",
)
SETTINGS = {"Temperature": "0.2", "Longest answer": "130", "Seed": "1"}


def ask(page: Page, question: str) -> None:
    """Ask, and wait for the end of the answer."""
    page.get_by_role("button", name="New conversation").click()
    page.fill("#question", question)
    page.press("#question", "Enter")
    expect(page.locator("#send")).to_be_visible(timeout=120_000)


def take(page: Page, pictures: Path) -> None:
    """Take all pictures, one state of the page after the other."""
    page.get_by_role("button", name="Settings").click()
    for name, value in SETTINGS.items():
        page.get_by_label(name).fill(value)
    page.get_by_role("button", name="Done").click()
    for question in QUESTIONS:
        ask(page, question)
    page.get_by_text(QUESTIONS[0][:20]).first.click()
    page.screenshot(path=pictures / "page.png")
    page.get_by_text(QUESTIONS[1][:20]).first.click()
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.locator(".token").nth(7).hover()
    page.screenshot(path=pictures / "page-tokens.png")
    page.get_by_role("button", name="Tokens", exact=True).click()
    page.get_by_role("button", name="Switch between light and dark").click()
    page.set_viewport_size({"width": 390, "height": 680})
    page.wait_for_timeout(400)  # the list slides out
    page.screenshot(path=pictures / "page-phone.png")


def main() -> None:
    """Start a server and a browser, and take the pictures."""
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
    pictures = Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURES
    pictures.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).with_name("edgelm")), "serve", model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stderr is not None
        try:
            url = next(match[1] for line in server.stderr if (match := re.search(r"Listening at (\S+)", line)))
            chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 640})
            page.goto(url)
            expect(page.locator("#model option")).not_to_have_count(0)
            take(page, pictures)
            browser.close()
        finally:  # else it would be waited for where a picture fails
            server.terminate()


if __name__ == "__main__":
    main()
