"""What the page makes of the Markdown that a model writes."""

from __future__ import annotations

from chat_page import Page


def test_markdown_of_any_depth_is_shown(page: Page) -> None:
    shown = page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const target = document.createElement("div");
        document.body.append(target);
        const view = new MarkdownView(target);
        return [">".repeat(50), ">".repeat(20000), "> as before"].map((text) => {
            view.show(text);
            return [target.children.length, target.firstChild.tagName, target.textContent.length];
        });
    }""")
    assert shown == [[1, "BLOCKQUOTE", 0], [1, "P", 20000], [1, "BLOCKQUOTE", 9]]
    shown_in_firefox = """async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const error = Object.assign(new Error("too much recursion"), { name: "InternalError" });
        const target = document.createElement("div");
        new MarkdownView(target).show({ replace() { throw error; }, toString: () => ">>>" });
        return target.innerHTML;
    }"""
    assert page.evaluate(shown_in_firefox) == "<p>&gt;&gt;&gt;</p>"
    # Lists begin where the answer says, and columns stand as it says.
    page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const answer = document.createElement("div");
        answer.className = "answer";
        document.getElementById("thread").replaceChildren(answer);
        new MarkdownView(answer).show("0. zero\\n\\n| a | b |\\n|---|--:|\\n| 1 | 2 |");
    }""")
    assert page.locator("#thread ol").get_attribute("start") == "0"
    cells = page.locator("#thread :is(td, th)").all()
    aligned = [cell.evaluate("cell => getComputedStyle(cell).textAlign").removeprefix("-webkit-") for cell in cells]
    assert aligned == ["start", "right", "start", "right"]


def test_a_paragraph_that_is_no_prose_is_shown_as_it_is_written(page: Page) -> None:
    """Pairing the marks of one takes seconds for each of the page's frames."""
    shown = page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const answer = document.createElement("div");
        document.querySelector("#thread").append(answer);
        const texts = ["*a* _".repeat(2000), "*b* " + "c ".repeat(1500), "*a_".repeat(200)];
        new MarkdownView(answer).show(texts.join("\\n\\n"));
        const [first, , last] = answer.children;
        return [first.textContent, last.textContent, answer.querySelectorAll("em").length];
    }""")
    assert shown == ["*a* _" * 2000, "*a_" * 200, 1]


def test_emphasis_needs_no_spaces_around_it_where_words_have_none(page: Page) -> None:
    shown = {
        "**注意：**请勿关闭。": "<strong>注意：</strong>请勿关闭。",
        "これは**「重要」**です。": "これは<strong>「重要」</strong>です。",
        "**한국어(Korean)**는 *「말」*이다.": "<strong>한국어(Korean)</strong>는 <em>「말」</em>이다.",
        "说：**“好，*（世*界）”**，~~（删）~~走": "说：<strong>“好，<em>（世</em>界）”</strong>，<del>（删）</del>走",
        "_a_**甲** __b__*乙*": "<em>a</em><strong>甲</strong> <strong>b</strong><em>乙</em>",
        "**a:**b 变量_甲_乙 中 * 3 * 中": "**a:**b 变量_甲_乙 中 * 3 * 中",
    }
    assert html(page, list(shown)) == list(shown.values())


def test_emphasis_may_begin_behind_a_character_of_two_code_units(page: Page) -> None:
    shown = {  # as markdown-it-py has it, besides the third
        "🌊**“waves”** 🌊*(a)*🌊": "🌊<strong>“waves”</strong> 🌊<em>(a)</em>🌊",
        "🌊_“waves”_ 🌊~~“b”~~ 𝐱**“c”**": "🌊<em>“waves”</em> 🌊<del>“b”</del> 𝐱**“c”**",
        "𠮷**“好”**": "𠮷<strong>“好”</strong>",
        "𠮷_x_": "𠮷_x_",
    }
    assert html(page, list(shown)) == list(shown.values())


def html(page: Page, texts: list[str]) -> list[str]:
    """Return what the page makes of paragraphs."""
    shown: list[str] = page.evaluate(
        """async (texts) => {
            const { MarkdownView } = await import("/page/markdown.js");
            return texts.map((text) => {
                const answer = document.createElement("div");
                new MarkdownView(answer).show(text);
                return answer.firstChild.innerHTML;
            });
        }""",
        texts,
    )
    return shown


def test_a_table_is_scrolled_before_its_words_are_broken(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const answer = document.createElement("div");
        answer.className = "answer";
        document.getElementById("thread").replaceChildren(answer);
        const cells = "| Temperature | Precipitation | Observation | Measurement |";
        new MarkdownView(answer).show(`${cells}\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |`);
    }""")
    heights = [cell.evaluate("cell => cell.offsetHeight") for cell in page.locator("th, td").all()]
    assert len(heights) == 8
    assert max(heights) - min(heights) <= 2  # each is one line
    is_wider = "node => node.scrollWidth > node.clientWidth"
    assert page.locator(".table").evaluate(is_wider)
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    page.emulate_media(media="print")  # where nothing can be scrolled
    assert not page.locator(".table").evaluate(is_wider)


def test_an_answer_that_comes_bit_by_bit_is_shown_as_one_that_comes_whole(page: Page) -> None:
    text = (
        "# A *title*\n\nThe **deep** sea, `x` and $x^2$, see [it](https://sea.example).\n\n- [ ] one\n- [x] two\n"
        "  1. a\n\n"
        "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nprint()\n\nx\n```\n> quoted\n\n\\[ x \\]\n\n\u0645\u0631\u062d"
    )
    differing, copied, checked = page.evaluate(
        """async (text) => {
            const { MarkdownView } = await import("/page/markdown.js");
            const shown = (view, text) => (view.show(text), view.target.innerHTML);
            const fresh = () => new MarkdownView(document.createElement("div"));
            const view = fresh();
            const prefixes = [...text].map((_, index) => text.slice(0, index + 1));
            const differing = prefixes.filter((prefix) => shown(view, prefix) !== shown(fresh(), prefix));
            let copied;
            Object.defineProperty(navigator, "clipboard", { value: { writeText: async (code) => (copied = code) } });
            view.target.querySelector("button").click();
            const boxes = [...view.target.querySelectorAll("input")];
            return [differing, copied, boxes.map(({ checked }) => checked)];
        }""",
        text,
    )
    assert (differing, copied, checked) == ([], "print()\n\nx", [False, True])


def test_a_long_block_of_which_more_comes_is_read_once(page: Page) -> None:
    reads = page.evaluate("""async () => {
        const { MarkdownView } = await import("/page/markdown.js");
        const view = new MarkdownView(document.createElement("div"));
        const text = "word ".repeat(1000);
        view.show(text + "a");
        let reads = 0;
        const { get } = Object.getOwnPropertyDescriptor(CharacterData.prototype, "data");
        Object.defineProperty(CharacterData.prototype, "data", { get() { reads += 1; return get.call(this); } });
        view.show(text + "ab");
        return reads;
    }""")
    assert reads == 2  # what is shown, and what it becomes: each read may copy all of it
