"""A scripted model whose chat template is that of a model that thinks before it answers."""

from __future__ import annotations

import dataclasses
import json

from edgelm.config import ModelConfig
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.package.manifest import Manifest
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

# As Qwen3's: earlier thoughts are left out. It takes tools in the form of Hermes, `<tool_call>`.
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As those of DeepSeek-R1: the prompt ends inside of the thinking.
OPENING_TEMPLATE = TEMPLATE.replace("assistant\n' }}", "assistant\n<think>\n' }}")
# As that of GPT-OSS: one text, what was thought, before a call.
CHANNELS_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|start|>' + m.role }}"
    "{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}"
    "{% if m.thinking and m.content %}{{ raise_exception('one text, please') }}{% endif %}"
    "{{ '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant to=functions.' + c.name }}"
    "{{ '<|channel|>commentary json<|message|>' }}{{ c.arguments | tojson }}{{ '<|call|>' }}"
    "{% else %}{{ '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
ANSWER = "<think>\nWhat is the sea?\n\nWater.\n</think>\n\nThe sea is blue."
THOUGHT, SAID = "What is the sea?\n\nWater.", "The sea is blue."


def thinking_model(answer: str = ANSWER, template: str = TEMPLATE) -> LanguageModel:
    """Return a model that answers everything with `answer`; the marks in it are ordinary text of several tokens."""
    model = scripted_model(answer)
    model.chat_template = ChatTemplate(template)
    return model


MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def model_with_marks(answer: str = ANSWER, template: str = TEMPLATE, marks: tuple[str, ...] = MARKS) -> LanguageModel:
    """Return such a model in whose vocabulary each mark is one control token."""
    folder = tiny_model_path()
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = ModelConfig.load(folder)
    for id_, mark in enumerate(marks, config.vocab_size):
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": id_, "content": mark, "special": False})
    tokenizer = Tokenizer.parse(json.dumps(spec).encode(), folder / "tokenizer.json")
    config = dataclasses.replace(config, vocab_size=config.vocab_size + len(marks))
    return LanguageModel(
        session=ScriptedDecoder(config, tokenizer.encode(answer, control_tokens=True)),
        tokenizer=tokenizer,
        chat_template=ChatTemplate(template, special_tokens={}),
        generation_config=GenerationConfig(),
        manifest=Manifest.load(folder),
    )


def thinking_server(answer: str = ANSWER, template: str = TEMPLATE, *, seconds_per_token: float = 0.0) -> str:
    """Return a prelude that makes a server's model such a one."""
    return f"""
import time
from edgelm import loading
from edgelm.decoding.sampling import Sampler
from edgelm.testing import scripted_model
from edgelm.text.chat_template import ChatTemplate
sample = Sampler.sample
Sampler.sample = lambda *arguments: (time.sleep({seconds_per_token}), sample(*arguments))[1]
def load(*_):
    model = scripted_model({answer!r})
    model.chat_template = ChatTemplate({template!r})
    return model
loading.load = load
"""
