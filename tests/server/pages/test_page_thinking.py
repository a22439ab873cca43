"""What a model thinks, on the page, and whether it is to think."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_page import Page, Route, ask, done, expect
from edgelm_server import TINY, EdgelmServer
from thinking_model import SAID, THOUGHT, thinking_server
from thinking_template import THINKING


def sent_variables(page: Page) -> object:
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page)
    done(page)
    return sent.value.post_data_json.get("chat_template_kwargs")


def test_what_is_thought_is_folded_above_the_answer(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=thinking_server(seconds_per_token=0.02)) as server:
        page = open_page(server)
        ask(page)
        thinking = page.locator(".thinking div")
        expect(thinking).to_have_text(re.compile("^What"), use_inner_text=False)
        expect(thinking).to_be_hidden()
        page.get_by_text("Thinking", exact=True).click()
        expect(thinking).to_be_visible()
        done(page)
        expect(page.locator(".answer")).to_have_text(SAID)
        assert thinking.inner_text() == THOUGHT  # as open as it was while the answer came
        ask(page, "And the sky?")
        done(page)
        page.reload()
        expect(thinking).to_have_count(2)
        expect(thinking.first).to_be_hidden()
        expect(page.locator(".answer")).to_have_text([SAID, SAID])


def test_a_model_that_can_be_told_whether_to_think_has_a_switch(
    open_page: Callable[..., Page], own_library: Path
) -> None:
    for name in ("plain", "told"):
        shutil.copytree(TINY, own_library / "models" / name)
    (own_library / "models" / "told" / "chat_template.jinja").write_text(THINKING)
    with EdgelmServer((), prelude=thinking_server(SAID, THINKING)) as server:
        page = open_page(server)
        switch = page.get_by_role("checkbox", name="Think")

        expect(page.locator("#model")).to_have_value("plain")
        assert sent_variables(page) is None
        expect(switch).to_be_hidden()
        page.select_option("#model", "told")
        assert sent_variables(page) == {"enable_thinking": True}
        switch.uncheck()
        assert sent_variables(page) == {"enable_thinking": False}
        page.reload()
        expect(switch).not_to_be_checked()
        assert sent_variables(page) == {"enable_thinking": False}
        page.select_option("#model", "plain")
        assert sent_variables(page) is None
        expect(switch).to_be_hidden()


def test_a_question_that_comes_before_the_models_waits_for_them(
    open_page: Callable[..., Page], own_library: Path
) -> None:
    shutil.copytree(TINY, own_library / "models" / "told")
    (own_library / "models" / "told" / "chat_template.jinja").write_text(THINKING)
    with EdgelmServer((), prelude=thinking_server(SAID, THINKING)) as server:
        page = open_page(server)
        expect(page.locator("#model")).to_have_value("told")
        page.evaluate("localStorage.clear()")
        held: list[Route] = []
        page.route("**/v1/models", lambda route: held.append(route))
        page.reload()
        ask(page)
        expect(page.locator(".message.assistant")).to_be_visible()
        assert not page.locator("#model").input_value()
        with page.expect_request("**/v1/chat/completions") as sent:
            for route in held:
                route.continue_()
        done(page)
        body = sent.value.post_data_json
        assert (body["model"], body["chat_template_kwargs"]) == ("told", {"enable_thinking": True})
        expect(page.locator(".message.assistant")).to_have_accessible_name("told")


@pytest.mark.parametrize(
    ("template", "sent"),
    [
        # As those of Granite and DeepSeek, which think where they are told to, and as that of gpt-oss.
        ("{% if thinking %}Think!{% endif %}", [{"thinking": False}, {"thinking": True}]),
        ("Reasoning: {{ reasoning_effort or 'medium' }}", [None, {"reasoning_effort": "high"}]),
    ],
)
def test_other_names_of_thinking_are_offered_too(
    template: str, sent: list[dict[str, object] | None], open_page: Callable[..., Page], own_library: Path
) -> None:
    template += "{% for message in messages %}{{ message.content }}{% endfor %}"
    shutil.copytree(TINY, own_library / "models" / "told")
    (own_library / "models" / "told" / "chat_template.jinja").write_text(template)
    with EdgelmServer((), prelude=thinking_server(SAID, template)) as server:
        page = open_page(server)
        switch, effort = page.get_by_role("checkbox", name="Think"), page.get_by_label("Effort")

        assert sent_variables(page) == sent[0]
        if "thinking" in template:
            expect(effort).to_be_hidden()
            switch.check()
        else:
            expect(switch).to_be_hidden()
            effort.select_option("high")
        assert sent_variables(page) == sent[1]
        page.reload()
        assert sent_variables(page) == sent[1]
