"""`edgelm inspect`: the numbers are the model's, and the page is one safe file."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click import ClickException
from click.testing import Result
from command_line import invoke
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.cli.main import main
from edgelm.errors import ContextLengthError
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.evaluation.inspection import HAS_ENCODER, Inspection, inspect_text
from edgelm_training.evaluation.inspection_page import inspection_page
from edgelm_training.model import Transformer

TEXT = "The sea is wide and the night is long."
HOSTILE = "</script><img src=x onerror=alert(1)> {data} {title} &amp; <!-- <script>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("inspect") / "ckpt")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint)


def inspected(checkpoint: Path, tokenizer: Tokenizer, text: str = TEXT) -> Inspection:
    return inspect_text(load_checkpoint(checkpoint), tokenizer, tokenizer.encode(text))


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_attention_is_that_of_transformers(checkpoint: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("transformers")
    from transformers_llama import load_llama

    model = load_llama(checkpoint)
    with torch.no_grad():
        wanted = model(torch.tensor([tokenizer.encode(TEXT)]), output_attentions=True, output_hidden_states=True)

    found = inspected(checkpoint, tokenizer)

    # Another implementation in float32; the largest difference seen is 1e-7.
    np.testing.assert_allclose(found.attention, torch.cat(wanted.attentions).numpy(), atol=1e-5)
    probabilities_TV = wanted.logits[0].softmax(-1)
    for place, position in enumerate(found.positions):
        best = probabilities_TV[place].topk(10)
        np.testing.assert_allclose([guess.probability for guess in position.guesses], best.values, rtol=1e-4)
    # The last hidden state of transformers is normed.
    for layer in range(CONFIG.num_hidden_layers):
        norms = wanted.hidden_states[layer][0].norm(dim=-1).numpy()
        np.testing.assert_allclose(found.stream_norms[layer], norms, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4, "layer_types": ("sliding_attention", "full_attention")},
        {"attn_logit_softcapping": 5.0},
        {"num_key_value_heads": 2},
        {"head_dim": 8, "num_attention_heads": 4},
        {"layer_types": ("conv", "full_attention"), "conv_L_cache": 3},
        {"num_kv_shared_layers": 1, "v_norm": True, "attention_k_eq_v": True, "qk_norm": True},
    ],
    ids=str,
)
def test_the_weights_mix_the_values_into_what_attention_gives(changes: dict[str, Any], tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(CONFIG, **changes))
    ids = tokenizer.encode(TEXT)
    values, mixed = [], []
    attention = model.model.layers[model.config.attention_layers[0]].self_attn
    attention.values.register_forward_hook(lambda _, __, output: values.append(output[0]))
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0][0]))

    found = inspect_text(model, tokenizer, ids)

    config, T = model.config, len(ids)
    assert found.attention_layers == config.attention_layers
    assert found.stream_norms.shape == (config.num_hidden_layers + 1, T)
    values_NTH = values[0].repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0)
    wanted_TNH = (torch.from_numpy(found.attention[0]) @ values_NTH).transpose(0, 1)
    torch.testing.assert_close(wanted_TNH.flatten(1), mixed[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.attention.sum(-1), 1, atol=1e-5)
    assert not np.triu(found.attention, 1).any()


def test_each_token_knows_what_comes_next(checkpoint: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    logits_TV = load_checkpoint(checkpoint)(torch.tensor([ids]))[0].detach()

    positions = inspected(checkpoint, tokenizer).positions

    assert "".join(position.token for position in positions) == TEXT
    assert positions[-1].next_rank is None
    for place, position in enumerate(positions[:-1]):
        order = logits_TV[place].argsort(descending=True).tolist()
        assert position.next_rank == order.index(ids[place + 1]) + 1
        probabilities = logits_TV[place].double().softmax(-1)
        assert position.next_probability == pytest.approx(float(probabilities[ids[place + 1]]), rel=1e-4)
        assert position.entropy == pytest.approx(float(-(probabilities * probabilities.log2()).sum()), rel=1e-4)


def test_looking_leaves_no_trace_in_the_model(checkpoint: Path, tokenizer: Tokenizer) -> None:
    model = load_checkpoint(checkpoint)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    before = model(ids)

    inspect_text(model, tokenizer, ids[0].tolist())

    assert torch.equal(model(ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_page_has_the_numbers(checkpoint: Path, tokenizer: Tokenizer) -> None:
    found = inspected(checkpoint, tokenizer)

    data = page_data(inspection_page(found, model="tiny"))

    L, N, T, _ = found.attention.shape
    assert (data["layers"], data["heads"], len(data["tokens"])) == (L, N, T)
    stored = np.frombuffer(base64.b64decode(data["attention"]), "<u2").reshape(L, N, -1) / 65535
    np.testing.assert_allclose(stored, found.attention[:, :, *np.tril_indices(T)], atol=0.51 / 65535)
    np.testing.assert_allclose(data["stream_norms"], found.stream_norms, rtol=1e-5)
    assert data["positions"][3]["guesses"][0] == [
        found.positions[3].guesses[0].token, found.positions[3].guesses[0].probability
    ]  # fmt: skip


class References(HTMLParser):
    """Note the elements of a page, and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_a_hostile_text_stays_text(checkpoint: Path, tokenizer: Tokenizer) -> None:
    plain, hostile = References(), References()
    plain.feed(inspection_page(inspected(checkpoint, tokenizer), model="tiny"))
    page = inspection_page(inspected(checkpoint, tokenizer, HOSTILE), model=HOSTILE)
    hostile.feed(page)

    assert hostile.tags == plain.tags
    assert "".join(page_data(page)["tokens"]) == HOSTILE
    assert page.count("onerror") == page.count("&lt;img src=x onerror=alert(1)&gt;")


def test_the_page_refers_to_nothing_outside(checkpoint: Path, tokenizer: Tokenizer) -> None:
    page = inspection_page(inspected(checkpoint, tokenizer), model="tiny")
    parsed = References()
    parsed.feed(page)

    assert not {"link", "img", "iframe", "base", "object"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name in ("src", "href", "srcset", "data", "style")]
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    # The one address is the name of SVG's namespace.
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def run(*arguments: object, text: str | None = None) -> Result:
    return invoke("inspect", *arguments, stdin=text)


def test_the_command_writes_the_page(checkpoint: Path, tmp_path: Path) -> None:
    result = run(checkpoint, f"{TEXT}\udcff", "-o", tmp_path / "page.html", "--threads", 1)

    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "page.html")
    assert "".join(page_data((tmp_path / "page.html").read_text())["tokens"]) == rf"{TEXT}\xef\xbf\xbd"  # U+FFFD


def test_a_long_text_is_cut_and_says_so(checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = len(tokenizer.encode_prompt(TEXT))
    whole = run(checkpoint, TEXT, "-o", tmp_path / "page.html", "--max-tokens", tokens, "--guesses", 2)
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert {len(place["guesses"]) for place in page_data((tmp_path / "page.html").read_text())["positions"]} == {2}

    result = run(checkpoint, "-", "-o", tmp_path / "page.html", "--max-tokens", 5, text=TEXT)
    assert f"Of {tokens} tokens the first 5 are shown. For more: --max-tokens." in result.stderr
    page = (tmp_path / "page.html").read_text()
    assert len(page_data(page)["tokens"]) == 5
    assert "5 tokens, the first of" in page


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, TEXT)

    assert result.exit_code == 1
    assert "is no checkpoint folder" in result.stderr


def test_a_package_with_an_encoder_is_not_sent_on_to_be_imported(tmp_path: Path) -> None:
    package = shutil.copytree(tiny_model_path(), tmp_path / "translator")
    (package / "encoder.onnx").touch()
    result = run(package, "The sea", "-o", tmp_path / "page.html")
    assert (result.exit_code, result.stderr) == (1, f"error: {HAS_ENCODER}\n")


def test_a_page_that_cannot_be_written_is_named(checkpoint: Path, tmp_path: Path) -> None:
    result = run(checkpoint, TEXT, "-o", tmp_path / "none/page.html", "--threads", 1)

    assert result.exit_code == 1
    assert "page.html cannot be written: No such file or directory." in result.stderr


def test_a_text_without_tokens_is_refused(
    checkpoint: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ContextLengthError, match="The text has no tokens; there is nothing to look at"):
        inspect_text(load_checkpoint(checkpoint), tokenizer, [])
    monkeypatch.setattr("sys.stdin", None)  # as Python has it where standard input is closed
    with pytest.raises(ClickException, match="The text has no tokens"):
        main.main(["inspect", str(checkpoint), "-"], standalone_mode=False)


def test_the_page_works_with_the_keyboard_in_both_themes(
    checkpoint: Path, tokenizer: Tokenizer, browser: Any, tmp_path: Path
) -> None:
    found = inspected(checkpoint, tokenizer, HOSTILE)
    (tmp_path / "page.html").write_text(inspection_page(found, model="tiny"), encoding="utf-8")
    page = browser.new_context(color_scheme="dark").new_page()
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())

    page.locator(".token[aria-selected=true]").focus()
    page.keyboard.press("Home")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    position = found.positions[3]
    shown = page.locator("#guesses tr").first.locator("td")
    assert float(shown.nth(2).get_attribute("title")) == pytest.approx(position.guesses[0].probability)
    assert f"rank {position.next_rank}" in page.locator("#real-next").text_content()

    page.locator(".head[aria-selected=true]").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    page.locator("#map").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#head-title").text_content() == "Layer 1, head 2"
    assert f"{100 * found.attention[0, 1, 3, 0]:.2f} %" in page.locator("#cell").text_content()

    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Switch between light and dark").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert errors == []
    assert requests == [(tmp_path / "page.html").as_uri()]
    page.context.close()
