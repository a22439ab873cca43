"""What the page makes of the formulas that a model writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chat_page import Page, ask, done, expect, scripted
from edgelm_server import TINY, EdgelmServer

ANSWER = r"""By the **quadratic formula**:

\[
x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}
\]
The sum \( \sum_{i=1}^n i \) is $\frac{n(n+1)}{2}$, so that
$$
a
- b
= \begin{pmatrix} 1 & 2 \\[4pt] 3 & 4 \end{pmatrix}
$$

1. Prices are $5 and $10, or $3–$4; `$x$` is code.
2. Here it is \[ \boxed{42} \]
"""


def test_an_answer_has_its_formulas_drawn(open_page: Callable[..., Page]) -> None:
    with EdgelmServer((TINY,), prelude=scripted(ANSWER)) as server:
        page = open_page(server)
        expect(page.locator("#model option")).to_have_count(1)
        ask(page)
        done(page)
        answer = page.locator(".answer").last
        expect(answer.locator(".formula:has(math)")).to_have_count(5)
        expect(answer.locator("math.tml-display")).to_have_count(3)
        expect(answer.locator("mfrac")).to_have_count(2)
        expect(answer.locator("mtable mtr")).to_have_count(2)
        expect(answer.locator("ol li")).to_have_count(2)
        assert "Prices are $5 and $10, or $3–$4; $x$ is code." in answer.inner_text()
        assert answer.locator("h3, h4, ul").count() == 0  # what stands in a formula is no Markdown
        spoken = page.evaluate("async text => (await import('/page/markdown.js')).spoken(text)", ANSWER)
        assert r"The sum \sum_{i=1}^n i is \frac{n(n+1)}{2}, so that" in spoken


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("It costs $20,000, not $30,000.", []),
        ("From $HOME to $PATH, and \\$5 to \\$6.", []),
        ("In `\\(code\\)` and\n\n    $$ indented $$\n", []),
        ("never closed: \\( a + b, $$c and $d", []),
        ("**A:** $a*b$ and *c* \\(d*e\\)*f*", ["a*b", "d*e"]),
        ("$x_1$ and $x_2$", ["x_1", "x_2"]),
        ("$\\$5$, 是$y$吗", ["\\$5", "y"]),
        ("> \\[ a \\]\n> b", ["a"]),
        ("Here:\n\\[\na\n=\nb\n\\]\nso", ["a\n=\nb"]),
        ("| a | b |\n|---|---|\n| $x$ | \\(y\\) |", ["x", "y"]),
        ("\\[ \\begin{cases} 1 \\\\[2pt] 2 \\end{cases} \\]", ["\\begin{cases} 1 \\\\[2pt] 2 \\end{cases}"]),
        ("$" + "a" * 5000 + "$", []),
        ("$$ \\text{if $n$ is even} $$", ["\\text{if $n$ is even}"]),
        ("So\n$$\nx\n$$ where y is", ["x"]),
        ("$$\nx\n$$ where y is", ["x"]),
        ("See $$\nx\n$$ where y is", ["x"]),
        ("From $ over $$ (moderate) to $$$ (dear).", []),
        ("\\begin{equation*}\na_1 * b\n\\end{equation*}\nso", ["\\begin{equation*}\na_1 * b\n\\end{equation*}"]),
        ("So \\begin{align} a_1 &= b_1 \\end{align}.", ["\\begin{align} a_1 &= b_1 \\end{align}"]),
        ("$$ \\begin{align} a \\end{align} $$", ["\\begin{align} a \\end{align}"]),
        ("```latex\n\\begin{align}\na\n\\end{align}\n```\nand `\\begin{align} a \\end{align}`", []),
        ("\\begin{itemize} \\item a \\end{itemize}, and \\begin{align} alone", []),
    ],
)
def test_formulas_are_told_from_prices_code_and_emphasis(drawing_page: Page, text: str, formulas: list[str]) -> None:
    shown = drawing_page.evaluate(
        VIEW + "return [...target.querySelectorAll('.formula')].map(node => node.dataset.tex); }", text
    )
    assert shown == formulas


def test_emphasis_is_not_looked_for_in_formulas(drawing_page: Page) -> None:
    text = "**A:** $a*b$ and *c* \\(d*e\\)*f* `$`*g*`$`"
    shown = drawing_page.evaluate(
        VIEW + "return [...target.querySelectorAll('strong, em')].map(node => node.textContent); }", text
    )
    assert shown == ["A:", "c", "f", "g"]


@pytest.mark.parametrize(("opened", "closed"), [("\\[", "\\]"), ("$$", "$$"), ("\\begin{align*}", "\\end{align*}")])
@pytest.mark.parametrize("around", ["Hence\n\n{}\nSo.", "Hence\n{}", "1. Hence\n   {}\n", "> {}\n"])
def test_a_formula_that_is_still_written_is_no_markdown(
    drawing_page: Page, around: str, opened: str, closed: str
) -> None:
    indent = {"1": "   ", ">": "> "}.get(around[0], "")
    lines = [opened, "x", "=", "a_1 * b * c", "- d", "+ \\frac{e}{f}", closed]
    text = around.format(f"\n{indent}".join(lines))
    shown = drawing_page.evaluate(
        VIEW
        + """
        const view = new MarkdownView(target), seen = new Set();
        for (let end = 1; end <= text.length; end++) {
            view.show(text.slice(0, end));
            for (const node of target.querySelectorAll("h3, h4, ul, em")) seen.add(node.tagName);
        }
        return [[...seen], target.querySelectorAll(".formula.own").length]; }""",
        text,
    )
    assert shown == [[], 1]


def test_a_formula_wider_than_a_phone_does_not_widen_the_page(drawing_page: Page) -> None:
    page = drawing_page
    page.set_viewport_size({"width": 320, "height": 600})
    wide = " + ".join(f"x_{{{i}}}" for i in range(60))
    for tex in (wide, r"\rule{900em}{1em}", r"\kern{-900em}x"):
        page.evaluate(VIEW + "target.className = 'answer'; }", f"\\[ {tex} \\] So \\( {tex} \\) is.")
        expect(page.locator("#thread .formula:has(math)")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        if tex == wide:
            for formula in page.locator("#thread .formula").all():
                assert formula.evaluate("node => node.clientWidth < node.scrollWidth && node.clientWidth <= 288")
                assert formula.get_attribute("tabindex") == "0"  # the arrow keys scroll it, in every browser


def test_a_drawn_formula_has_its_columns_and_lines(drawing_page: Page) -> None:
    page = drawing_page
    page.evaluate(
        VIEW + "}",
        r"""\begin{align} a + b + c &= 0 \\ x &= y + z + w \end{align}
So $\overline{AB}$, $\underline{u}$, $\fbox{f}$ and $\cancel{x}$.""",
    )
    expect(page.locator("#thread .formula:has(math)")).to_have_count(5)
    first, second = page.locator("#thread mtable mo", has_text="=").evaluate_all(
        "all => all.map(sign => sign.getBoundingClientRect().x)"
    )
    assert first == pytest.approx(second, abs=1)  # pixels
    for name, drawn in {
        "overline": "borderTopStyle === 'solid'",
        "underline": "borderBottomStyle === 'solid'",
        "fbox": "borderStyle === 'solid'",
        "cancel": "clipPath.startsWith('polygon')",
    }.items():
        assert page.locator(f"#thread .tml-{name}").evaluate(f"node => getComputedStyle(node).{drawn}"), name


@pytest.mark.parametrize(
    "tex",
    [
        r"\nosuchcommand{x}",
        r"\frac{1",
        r"\def\a{\a\a}\a",
        r"\href{javascript:alert(1)}{x}",
        r"\includegraphics{http://a/b.png}",
    ],
)
def test_what_is_no_formula_stays_as_it_is_written(drawing_page: Page, tex: str) -> None:
    drawing_page.evaluate(VIEW + "}", "\\(x\\)")  # loads the library
    expect(drawing_page.locator("#thread math")).to_have_count(1)
    shown = drawing_page.evaluate(
        VIEW + "return [target.textContent, target.querySelectorAll('a, img').length]; }", f"See \\({tex}\\)."
    )
    assert shown == [f"See \\({tex}\\).", 0]


VIEW = """async (text) => {
    const { MarkdownView } = await import("/page/markdown.js");
    const target = document.createElement("div");
    document.querySelector("#thread").replaceChildren(target);
    new MarkdownView(target).show(text);
"""
