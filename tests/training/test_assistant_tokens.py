"""Which tokens of a conversation are the assistant's, whatever its template does: they are learned, and no others."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from metaspace_tokenizer import write_metaspace

from edgelm.errors import ChatTemplateError, ConfigError
from edgelm.text.chat_encoding import encode_chat
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.assistant_tokens import encode_conversation
from edgelm_training.conversations.conversations import Conversation
from edgelm_training.texts.tokenizer_training import CHAT_TEMPLATE, TokenizerConfig, train_tokenizer

HI = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"})
SYSTEM = {"role": "system", "content": "Be brief."}
MARKUP = ("<think>", "</think>", "<|start|>", "<|end|>")
THINKING = CHAT_TEMPLATE.replace("{%- generation %}", "{%- generation %}{{- message.reasoning_content or '' }}")
PLAIN = CHAT_TEMPLATE.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
TRIMMING = """{{- '<|endoftext|>' }}
{%- for message in messages %}
{{- '<|start|>' + message.role + '\\n\\n' + message.content | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant\\n\\n' }}{%- endif %}
"""
# As those of models that think do: earlier thoughts are left out, and the last answer has one, be it empty.
FORGETTING = """{%- set last = namespace(user=-1) %}
{%- for message in messages if message.role == 'user' %}{%- set last.user = loop.index0 %}{%- endfor %}
{%- set seen = namespace(user=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{%- set seen.user = seen.user + 1 %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and seen.user == last.user %}
{{- '<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
ASKING = FORGETTING.replace("assistant\\n' }}{%- endif %}\n", "assistant\\n<think>\\n' }}{%- endif %}\n")
WORDS = """{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}
"""
STRICT = (
    """{%- if messages[0].role != 'user' %}{{- raise_exception('The user begins.') }}{%- endif %}
"""
    + TRIMMING
)
ASKING_NOTHING = """{{- '<|endoftext|>' }}{%- for message in messages %}
{%- if message.role == 'user' %}{{- '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{- ' ' + message.content + '<|im_end|>' }}{%- endif %}{%- endfor %}
"""
# As the first one of Llama 3 does, whatever it is asked; and DeepSeek Coder's, without control tokens there.
ALWAYS_ASKING = """{%- for message in messages %}
{{- '<|start|>' + message.role + '\\n' + message.content + '<|end|>' }}
{%- endfor %}{{- '<|start|>assistant\\n' }}
"""
ALWAYS_ASKING_IN_WORDS = """{%- for message in messages %}
{{- message.role + ':\\n' + message.content + ('\\n<|end|>\\n' if message.role == 'assistant' else '\\n') }}
{%- endfor %}{{- 'assistant:\\n' }}
"""
ASKING_OTHERWISE = WORDS.replace("'assistant: '", "'bot: '")
CLOSING = PLAIN.removesuffix("{%- endif %}\n") + "{%- else %}{{- '<|endoftext|>' }}{%- endif %}\n"
# As GPT-OSS has it: channels, of which later turns forget the thought, and another token at the very end.
CHANNELS = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- if message.reasoning_content and loop.last %}
{{- '<|start|>assistant<think>' + message.reasoning_content + '<|im_end|>' }}
{%- endif %}
{{- '<|start|>assistant</think>' + message.content | trim }}
{{- '<|end|>' if loop.last and not add_generation_prompt else '<|im_end|>' }}
{%- else %}{{- '<|start|>' + message.role + '</think>' + message.content + '<|im_end|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
# As one of GPT-OSS's does, which takes what was thought for a message of its own, and forgets what was said after it.
FORGETTING_WORDS = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|start|>assistant<think>' + message.reasoning_content + '<|im_end|>' }}
{%- if loop.last and not add_generation_prompt %}
{{- '<|start|>assistant</think>' + message.content + '<|im_end|>' }}
{%- endif %}
{%- else %}{{- '<|start|>' + message.role + '</think>' + message.content + '<|im_end|>' }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
COUNTING = CHANNELS.replace("message.content | trim", "(message.content | length | string) + message.content")
CALLING = FORGETTING.replace(
    "{{- message.content +", "{{- message.content + ('<|start|>add' if message.tool_calls else '') +"
)
GLUED = """{%- for message in messages %}{{- '<|im_start|>' + message.role }}
{{- '</think>' if message.role == 'assistant' else ' ' }}{{- message.content + '<|im_end|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant<think>' }}{%- endif %}
"""
HERE = WORDS.replace("'assistant: '", "'assistant: Here'")
# As Mistral Nemo's has it.
SYSTEM_LAST = """{{- '<|endoftext|>' }}{%- for message in messages if message.role != 'system' %}
{%- if message.role == 'user' %}
{{- '[INST]' + (messages[0].content + ' ' if loop.last and messages[0].role == 'system' else '') }}
{{- message.content + '[/INST]' }}
{%- else %}{{- message.content | trim + '<|im_end|>' }}{%- endif %}{%- endfor %}
"""
ENDING_ONCE = WORDS.replace("'\\n'", "('<|im_end|>' if loop.last and message.role == 'assistant' else '\\n')")
CHANGING = WORDS.replace("message.content", "(message.content | upper if not loop.last else message.content)")


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("The sea is wide, and the user asks the assistant: how wide?\n\n" * 3)
    train_tokenizer([folder / "text.txt"], folder / "tok", TokenizerConfig(vocab_size=400, control_tokens=MARKUP))
    return Tokenizer.load(folder / "tok")


@pytest.fixture(scope="module")
def metaspace_tok(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of SentencePiece's kind, which puts a space before what it encodes."""
    return Tokenizer.load(write_metaspace(tmp_path_factory.mktemp("metaspace")))


def conversation(*messages: Any, learned: set[int] | None = None, tools: Any = None) -> Conversation:
    found = {i for i, message in enumerate(messages) if message["role"] == "assistant"}
    return Conversation(messages=messages, learned=frozenset(learned or found), file="c", line=1, tools=tools)


def marked(source: str, tokenizer: Tokenizer, *messages: Any, learned: set[int] | None = None) -> str:
    """Write a conversation as the model reads it, what is learned in brackets."""
    encoded = encode_conversation(ChatTemplate(source), tokenizer, conversation(*messages, learned=learned))
    text, before = b"", False
    for id_, is_learned in [*zip(encoded.token_ids, encoded.learned, strict=True), (None, False)]:
        text += b"" if is_learned == before else "⟦".encode() if is_learned else "⟧".encode()
        text += b"" if id_ is None else tokenizer.token_bytes(id_)
        before = is_learned
    return text.decode()


def test_the_template_reads_what_a_conversation_gives_it_by_name(tok: Tokenizer) -> None:
    said = conversation(*HI, tools=[{"name": "add"}])
    for source in ("{{- rules }}" + PLAIN, "{{- rules }}{{- '' if tools }}" + PLAIN):
        variables = {"rules": "Add.<|im_end|>"}
        encoded = encode_conversation(ChatTemplate(source), tok, dataclasses.replace(said, variables=variables))
        assert b"".join(map(tok.token_bytes, encoded.token_ids)).startswith(b"Add.<|im_end|>")
        assert encoded.token_ids.count(tok.control_tokens["<|im_end|>"]) == len(said.messages) + ("tools" not in source)
    with pytest.raises(ConfigError, match="variable 'bos_token' is set by edgelm itself"):
        encode_conversation(ChatTemplate(PLAIN), tok, dataclasses.replace(said, variables={"bos_token": "x"}))


TURNS = (SYSTEM, *HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": " So long.\n"})
THOUGHTS = (
    HI[0],
    {**HI[1], "reasoning_content": "A greeting."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long.", "reasoning_content": "A farewell."},
)
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n⟦ So long.\n<|im_end|>⟧\n"
)

MASKS: dict[str, tuple[str, Sequence[Any], str]] = {
    "generation blocks": (CHAT_TEMPLATE, TURNS, CHATML),
    "no generation blocks": (PLAIN, TURNS, CHATML),
    "texts that are trimmed": (
        TRIMMING,
        TURNS,
        "<|endoftext|><|start|>system\n\nBe brief.<|end|><|start|>user\n\nHi<|end|>"
        "<|start|>assistant\n\n⟦Hello!<|end|>⟧<|start|>user\n\nBye<|end|><|start|>assistant\n\n⟦So long.<|end|>⟧",
    ),
    "thoughts that are forgotten": (
        FORGETTING,
        THOUGHTS,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n⟦<think>\nA farewell.\n</think>\n\nSo long.<|im_end|>⟧\n",
    ),
    "a prompt that begins a thought": (
        ASKING,
        THOUGHTS,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n⟦A farewell.\n</think>\n\nSo long.<|im_end|>⟧\n",
    ),
    "a prompt that adds nothing": (
        ASKING_NOTHING,
        (*HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long."}),
        "<|endoftext|>[INST] Hi [/INST]⟦ Hello!<|im_end|>⟧[INST] Bye [/INST]⟦ So long.<|im_end|>⟧",
    ),
    "a prompt at the end of every conversation": (
        ALWAYS_ASKING,
        (*HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": ""}),
        "<|start|>user\nHi<|end|><|start|>assistant\n⟦Hello!<|end|>⟧<|start|>user\nBye<|end|>"
        "<|start|>assistant\n⟦<|end|>⟧<|start|>assistant\n",
    ),
    "a prompt of words at the end of every conversation": (
        ALWAYS_ASKING_IN_WORDS,
        (*HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "assistant:"}),
        "user:\nHi\nassistant:\n⟦Hello!\n<|end|>⟧\nuser:\nBye\nassistant:\n⟦assistant:\n<|end|>⟧\nassistant:\n",
    ),
    "an end token behind a conversation that is not to go on": (
        CLOSING,
        TURNS,
        CHATML + "<|endoftext|>",
    ),
    "another end token at the very end": (
        CHANNELS,
        (HI[0], {**HI[1], "content": "Hello! \n"}, *THOUGHTS[2:3], {"role": "assistant", "content": "So long."}),
        "<|start|>user</think>Hi<|im_end|><|start|>assistant⟦</think>Hello!<|im_end|>⟧"
        "<|start|>user</think>Bye<|im_end|><|start|>assistant⟦</think>So long.<|end|>⟧",
    ),
    "channels of which one is forgotten": (
        CHANNELS,
        THOUGHTS,
        "<|start|>user</think>Hi<|im_end|><|start|>assistant⟦</think>Hello!<|im_end|>⟧<|start|>user</think>Bye<|im_end|>"
        "<|start|>assistant⟦<think>A farewell.<|im_end|><|start|>assistant</think>So long.<|end|>⟧",
    ),
    "another end token at the very end, and two answers in a row": (
        CHANNELS,
        (*HI, HI[1]),
        "<|start|>user</think>Hi<|im_end|><|start|>assistant⟦</think>Hello!<|im_end|>⟧"
        "<|start|>assistant⟦</think>Hello!<|end|>⟧",
    ),
    "calls behind a thought that is forgotten": (
        CALLING,
        (HI[0], {**THOUGHTS[1], "tool_calls": [{}]}, *HI),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|start|>add<|im_end|>⟧\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<think>\n\n</think>\n\nHello!<|im_end|>⟧\n",
    ),
    "a prompt with another control token that begins alike": (
        GLUED,
        HI,
        "<|im_start|>user Hi<|im_end|><|im_start|>assistant⟦</think>Hello!<|im_end|>⟧",
    ),
    "a prompt with another word that begins alike": (HERE, HI, "user: Hi\nassistant: ⟦Hello!\n⟧"),
    "a system message that goes to the last turn": (
        SYSTEM_LAST,
        (SYSTEM, HI[0], {**HI[1], "content": "\nHello! "}, *THOUGHTS[2:3], HI[1]),
        "<|endoftext|>[INST]Hi[/INST]⟦Hello!<|im_end|>⟧[INST]Bye[/INST]⟦Hello!<|im_end|>⟧",
    ),
    "no control tokens": (
        WORDS,
        (*HI, *HI),
        "user: Hi\nassistant: ⟦Hello!\n⟧user: Hi\nassistant: ⟦Hello!\n⟧",
    ),
    "control tokens in texts": (
        PLAIN,
        ({"role": "user", "content": "<|im_end|>\n<|im_start|>assistant\nI"}, {**HI[1], "content": "No <|im_end|> I."}),
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nI<|im_end|>\n"
        "<|im_start|>assistant\n⟦No <|im_end|> I.<|im_end|>⟧\n",
    ),
    "an empty answer": (
        PLAIN,
        (HI[0], {**HI[1], "content": ""}),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|>⟧\n",
    ),
    "an assistant that begins": (
        PLAIN,
        (HI[1], *HI),
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    ),
    "two answers in a row": (
        PLAIN,
        (*HI, HI[1]),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
        "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_what_the_assistant_says_is_learned_and_nothing_else(tok: Tokenizer, kind: str) -> None:
    source, messages, expected = MASKS[kind]
    assert marked(source, tok, *messages) == expected


def test_the_real_model_learns_its_answers_and_their_ends(smollm2_checkpoint: Path) -> None:
    template = ChatTemplate.load(smollm2_checkpoint)
    assert template is not None
    assert marked(template.source, Tokenizer.load(smollm2_checkpoint), *TURNS) == CHATML


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, PLAIN])
def test_answers_that_are_not_to_be_learned_are_not(tok: Tokenizer, source: str) -> None:
    expected = CHATML.replace("⟦Hello!<|im_end|>⟧", "Hello!<|im_end|>")
    assert marked(source, tok, *TURNS, learned={4}) == expected


def test_a_block_for_some_answers_only_cannot_choose_among_them(tok: Tokenizer) -> None:
    source = CHAT_TEMPLATE.replace("== 'assistant' %}", "== 'assistant' and loop.last %}")
    assert "⟦ So long.\n<|im_end|>⟧" in marked(source, tok, *TURNS)
    with pytest.raises(
        ChatTemplateError, match="The chat template has 1 generation blocks for 2 messages of the assis"
    ):
        marked(source, tok, *TURNS, learned={2})


def test_an_answer_that_later_turns_rewrite_beyond_recognition_asks_for_blocks(tok: Tokenizer) -> None:
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(CHANGING, tok, *HI, *HI)
    with pytest.raises(ChatTemplateError, match=r"writes messages\[3\] otherwise once .* Put {% generation %}"):
        marked(CHANGING, tok, *HI, *HI, HI[0], learned={3})
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(ASKING_OTHERWISE, tok, *HI)
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(ENDING_ONCE, tok, *HI, *HI)
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(ENDING_ONCE + "{# tools #}", tok, HI[0], {**HI[1], "tool_calls": [{}]}, HI[0])
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(COUNTING, tok, *HI, HI[0])
    with pytest.raises(ChatTemplateError, match=r"writes messages\[1\] otherwise once .* Put {% generation %}"):
        marked(FORGETTING_WORDS, tok, *THOUGHTS)


@pytest.mark.parametrize("source", [source + "{# tools #}" for source in (PLAIN, CHAT_TEMPLATE)])
def test_a_template_that_knows_tools_and_leaves_calls_out_is_an_error(tok: Tokenizer, source: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    calling = {**HI[1], "content": "", "tool_calls": [call]}
    with pytest.raises(ChatTemplateError, match=r"does not write the tool_calls of messages\[1\]\. Take a chat_templ"):
        marked(source, tok, HI[0], calling, *HI)
    assert "add⟦" not in marked(source, tok, HI[0], calling, *HI, learned={3})
    writing = source.replace("(message['content'] or '')", "(message.tool_calls[0].function.name or '')", 1)
    assert "⟦add<|im_end|>⟧" in marked(writing, tok, HI[0], calling)
    with pytest.raises(ChatTemplateError, match=r"does not write the content of messages\[1\] beside its tool_calls\."):
        marked(writing, tok, HI[0], {**calling, "content": "A sum."})  # as Llama 3's
    both = writing.replace("(message.tool", "(message.content.strip() + message.tool")
    assert "⟦A sum.add<|im_end|>⟧" in marked(both, tok, HI[0], {**calling, "content": "A sum.\n"})


def test_a_template_that_leaves_the_last_thought_out_is_an_error(tok: Tokenizer) -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        thinking = {**HI[1], name: "A greeting.\n"}
        with pytest.raises(ChatTemplateError, match=rf"does not write the {name} of messages\[1\]\. Take a chat_templ"):
            marked(PLAIN, tok, HI[0], thinking)
        with pytest.raises(ChatTemplateError, match=rf"does not write the {name} of messages\[3\]\. Take a chat_templ"):
            marked(CHAT_TEMPLATE, tok, *HI, HI[0], thinking)
        assert "greeting" not in marked(
            PLAIN, tok, HI[0], thinking, *HI
        )  # as at inference, where another question came
        assert "greeting" not in marked(PLAIN, tok, HI[0], thinking, HI[1])  # GPT-OSS's drops it before a last answer
    thinking = {**HI[1], "reasoning_content": "A greeting.\n"}
    assert "⟦A greeting.\nHello!" in marked(THINKING, tok, HI[0], thinking)


def test_a_thought_before_a_call_that_becomes_text_is_learned_or_refused(tok: Tokenizer) -> None:
    call = {"function": {"name": "add", "arguments": {}}}
    calling = {**HI[1], "content": "", "reasoning_content": "A sum.", "tool_calls": [call]}
    assert "⟦A sum.<tool_call>" in marked(THINKING, tok, HI[0], calling)
    with pytest.raises(ChatTemplateError, match=r"does not write the reasoning_content of messages\[1\]"):
        marked(CHAT_TEMPLATE, tok, HI[0], calling)


def test_a_thought_before_calls_that_get_turns_of_their_own_is_an_error_where_it_is_left_out(tok: Tokenizer) -> None:
    of_llama_3 = """{# ipython "parameters": #}""" + PLAIN.replace(
        "(message['content'] or '')", "(message.tool_calls | tojson if message.tool_calls else message.content)", 1
    )
    call = {"function": {"name": "add", "arguments": {}}}
    calling = {**HI[1], "content": "", "reasoning_content": "A sum.", "tool_calls": [call, call]}
    with pytest.raises(ChatTemplateError, match=r"does not write the reasoning_content of messages\[1\]"):
        marked(of_llama_3, tok, HI[0], calling)


def test_an_error_names_the_message_of_the_data_where_definitions_get_one_of_their_own(tok: Tokenizer) -> None:
    thinking = conversation(HI[0], {**HI[1], "reasoning_content": "A greeting."}, tools=[{"name": "add"}])
    with pytest.raises(ChatTemplateError, match=r"does not write the reasoning_content of messages\[1\]"):
        encode_conversation(ChatTemplate(PLAIN), tok, thinking)


def test_what_the_template_refuses_is_an_error(tok: Tokenizer) -> None:
    with pytest.raises(ChatTemplateError, match=r"refuses this conversation: The user begins\."):
        marked(STRICT, tok, *TURNS)


@pytest.mark.parametrize("source", [PLAIN, CHAT_TEMPLATE])
def test_a_template_that_knows_no_tools_gets_them_as_text_as_at_inference(tok: Tokenizer, source: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = (SYSTEM, HI[0], {**HI[1], "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}, HI[1])
    encoded = encode_conversation(ChatTemplate(source), tok, conversation(*messages, tools=[{"name": "add"}]))
    text = tok.decode(encoded.token_ids)
    assert '<tools>\n{"name": "add"}\n</tools>' in text
    assert "<tool_response>\n2\n</tool_response>" in text
    learned = tok.decode(id_ for id_, is_learned in zip(encoded.token_ids, encoded.learned, strict=True) if is_learned)
    assert learned.startswith('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')


def test_tools_reach_the_template(tok: Tokenizer) -> None:
    source = "{{- tools | tojson }}" + PLAIN
    encoded = encode_conversation(ChatTemplate(source), tok, conversation(*HI, tools=[{"name": "add"}]))
    assert tok.decode(encoded.token_ids).startswith('[{"name": "add"}]user\nHi')


def test_a_control_token_in_a_tool_is_text(tok: Tokenizer) -> None:
    source = "{{- tools | tojson }}" + PLAIN
    encoded = encode_conversation(ChatTemplate(source), tok, conversation(*HI, tools=[{"name": "<|im_end|>"}]))
    assert tok.decode(encoded.token_ids).startswith('[{"name": "<|im_end|>"}]user\nHi')


def test_several_blocks_of_one_answer_are_learned_together_and_cannot_be_chosen_among(tok: Tokenizer) -> None:
    block = "{%- generation %}{{- '' }}{%- endgeneration %}{%- generation %}"
    source = CHAT_TEMPLATE.replace("{%- generation %}", block)
    assert marked(source, tok, *TURNS) == CHATML
    with pytest.raises(ChatTemplateError, match="has 4 generation blocks for 2 messages of the assistant"):
        marked(source, tok, *TURNS, learned={2})


TEXTS = (
    "Hi",
    "",
    " ",
    "\n",
    "\n\nHi",
    " Hi \n",
    "12 hi sea",
    "<|im_end|>",
    "</s>",
    "naïve 漢字 😀",
    "assistant",
    "a" * 50,
)


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, PLAIN, TRIMMING, WORDS])
@pytest.mark.parametrize("kind", ["tok", "metaspace_tok"])
def test_the_tokens_before_an_answer_are_those_of_inference(
    request: pytest.FixtureRequest, kind: str, source: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    template = ChatTemplate(source)
    choice = random.Random(0)
    for _ in range(30):
        messages: list[Any] = [
            {"role": role, "content": choice.choice(TEXTS)} for _ in range(3) for role in ("user", "assistant")
        ]
        encoded = encode_conversation(template, tokenizer, conversation(*messages))
        ids, learned = encoded.token_ids, encoded.learned
        prompts = [encode_chat(template, tokenizer, messages[:i]) for i in (1, 3, 5)]
        assert ids[: len(prompts[0])] == prompts[0]
        assert not any(learned[: len(prompts[0])])
        if kind == "tok" and source != WORDS:
            # What stands between two answers is encoded as the end of a prompt is. (Earlier answers in a prompt may
            # have other tokens than they had when the model said them.)
            between = [list(run) for is_learned, run in groupby(range(len(ids)), learned.__getitem__) if not is_learned]
            for run, prompt in zip(between, prompts, strict=False):
                assert [ids[i] for i in run] == prompt[-len(run) :]
            assert len(between) == (3 if learned[-1] else 4)
        written = b"".join(map(tokenizer.token_bytes, ids)).decode()
        rendered = template.render(messages, add_generation_prompt=False)
        assert written.removeprefix(" ") == rendered.removeprefix(" ")


def test_a_long_conversation_is_encoded_once_and_as_a_whole(
    metaspace_tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(
        "{% for message in messages %}{% if loop.index is odd %}<s>{{ message.content }} hi{% else %}"
        "{% generation %} {{ message.content }}</s>{% endgeneration %}{% endif %}{% endfor %}"
    )
    choice, encode, lengths = random.Random(0), Tokenizer.encode_parts, list[int]()
    texts = [choice.choice(TEXTS) for _ in range(100)]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    parts: list[str | int] = []
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        parts += [metaspace_tok.control_tokens["<s>"], f"{question} hi {answer}", metaspace_tok.control_tokens["</s>"]]
    expected = metaspace_tok.encode_parts(parts)
    monkeypatch.setattr(
        Tokenizer, "encode_parts", lambda self, parts: lengths.append(len(parts)) or encode(self, parts)
    )
    assert encode_conversation(template, metaspace_tok, conversation(*messages)).token_ids == expected
    assert max(lengths) < 10
