from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from json_files import change_json
from transformers import AutoTokenizer, LlamaForCausalLM

from edgelm.errors import CheckpointError
from edgelm.text.chat_template import ChatTemplate
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveLlama = Callable[..., LlamaForCausalLM]

NAMED = [{"name": name, "template": name} for name in ("rag", "chat", "tool_use", "c", "d", "e", "f")]


@pytest.mark.parametrize(
    ("listed", "processor", "chosen", "words"),
    [
        (NAMED[:2], False, None, "of 'chat', 'rag' none is called 'default'"),
        (NAMED, True, None, "of 'c', 'chat', 'd', 'e', 'f' and 2 more none is called 'default'"),
        ({"chat": "A"}, False, None, "of 'chat' none is called 'default'"),
        ({"chat": "A", "default": "B"}, False, "B", None),
        ("C", True, "C", None),
        (None, True, None, "chat_template.json is a processor's, which the tokenizer does not read"),
        (None, False, None, None),
    ],
)
def test_the_chat_template_is_the_one_that_transformers_chooses_and_where_it_chooses_none_a_note_says_so(
    tmp_path: Path, save_llama: SaveLlama, listed: object, processor: bool, chosen: str | None, words: str | None
) -> None:
    save_llama(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    change_json(tmp_path / "tokenizer_config.json", chat_template=listed)
    if processor:
        (tmp_path / "chat_template.json").write_text('{"chat_template": "P"}')
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert checkpoint.text_files.get("chat_template.jinja") == chosen
    try:
        assert tokenizer.get_chat_template() == chosen
    except ValueError:
        assert chosen is None
    note = f"It has no chat template: {words}. Put the one you mean into chat_template.jinja of the source's folder."
    assert checkpoint.notes == (() if words is None else (note,))


def test_templates_with_names_in_files_are_named_too(tmp_path: Path, save_llama: SaveLlama) -> None:
    save_llama(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = {"rag": "A", "chat": "B"}
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path)
    (note,) = HuggingFaceCheckpoint(tmp_path).notes
    assert "of 'chat', 'rag' none is called 'default'" in note


# As Hermes has them: with macros, variables and line breaks at both ends.
FOR_TOOLS = """
{%- macro shown(tool) -%}{{ prefix ~ (tool | tojson) }}{%- endmacro %}
{% set prefix = "- " %}
{{ bos_token }}
{% for tool in tools %}
{{ shown(tool) }}
{% endfor %}
{% for message in messages %}
<tool_call>{{ message.role }}: {{ message.content }}
{% endfor %}

"""
PLAIN = """{% set prefix = "* " %}
{% for message in messages %}
  {% if true %}
{{ prefix }}{{ message.content }}{% endif %}

{% endfor %}
"""
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("where", ["settings", "files", "settings beside a file", "file alone"])
def test_a_request_with_tools_has_the_template_that_transformers_takes_for_it(
    tmp_path: Path, save_llama: SaveLlama, where: str
) -> None:
    save_llama(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokenizer.chat_template = {"default": PLAIN, "tool_use": FOR_TOOLS, "rag": "R"}
    (tmp_path / "hf" / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "hf", save_jinja_files=where == "files")
    if where == "settings beside a file":
        (tmp_path / "hf" / "chat_template.jinja").write_text("F", encoding="utf-8")
    if where == "file alone":
        tokenizer.chat_template = PLAIN
        tokenizer.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "ckpt")
    import_checkpoint(tmp_path / "ckpt", tmp_path / "again")
    messages = [{"role": "user", "content": "Hi"}]
    original = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for folder in ("ckpt", "again"):
        template, read_there = ChatTemplate.load(tmp_path / folder), AutoTokenizer.from_pretrained(tmp_path / folder)
        assert template is not None
        for tools in (None, TOOLS):
            expected = original.apply_chat_template(messages, tools=tools, tokenize=False)
            assert template.render(messages, variables={"tools": tools} if tools else {}) == expected
            assert read_there.apply_chat_template(messages, tools=tools, tokenize=False) == expected


def test_a_template_for_tools_in_the_hubs_cache_may_be_a_link(tmp_path: Path, save_llama: SaveLlama) -> None:
    snapshot = tmp_path / "models--org--tiny" / "snapshots" / "abc"
    save_llama(snapshot)
    blob = tmp_path / "models--org--tiny" / "blobs" / "123"
    blob.parent.mkdir()
    blob.write_text(FOR_TOOLS, encoding="utf-8")
    link = snapshot / "additional_chat_templates" / "tool_use.jinja"
    link.parent.mkdir()
    link.symlink_to("../../../blobs/123")
    assert "<tool_call>" in HuggingFaceCheckpoint(snapshot).text_files["chat_template.jinja"]
    blob.rename(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is a link to .*elsewhere, outside the folder"):
        assert HuggingFaceCheckpoint(snapshot).text_files
