"""ToolFormat: how one family of models writes its calls of tools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgelm.structure.constraint import lark_string

if TYPE_CHECKING:
    from edgelm.text.chat_template import ChatTemplate
    from edgelm.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Name what stands around the parts of a call that is written in tags: its name, and each argument's key and value.

    end: stands before the format's own, if anything does. is_loose: a line break in all that may be left out.
    """

    before_name: str
    behind_name: str
    before_key: str
    behind_key: str
    value_end: str
    behind_value: str
    end: str = ""
    is_loose: bool = False

    @property
    def has_lines(self) -> bool:
        """Whether a value stands in lines of its own."""
        return self.value_end.startswith("\n")


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """Describe the text of a call: a marker, one JSON object or a list of them (or what Python or XML write), a marker.

    signs: what stands in the chat template of such a model; all of them. unlike: what stands in none of theirs.
    start, end: the markers around calls; an empty `end` is the end of the answer. An answer may also begin with
    `bare_start`, without a marker, or with `fence`, a block of Markdown in which a call stands without one.
    separator: stands between two calls, each with markers of its own, or inside one pair of them where `is_list`; a
    list stands in `brackets`, if there are any.
    is_python: a call is `name(parameter=value, …)`. tags: what a call is written in that is neither.
    quote: a call is `call:name{key:value,…}`, and this stands before and behind each string.
    argument_key: the name of the arguments in a call's object.
    name_end: the name stands before the object, up to this marker, and the object is the arguments alone.
    name_stops: what begins anything else before `name_end`. asides: what of that a model may write, in this order.
    lead: stands before the start marker. The splitter of the model's thinking takes it off, and makes the markers'
    control tokens visible.
    takes_tools: whether the chat templates of the family write the definitions of tools.
    takes_calls, takes_results, takes_system: of the model's own template, which `tool_format` reads: whether it writes
    calls, writes results (messages of the role `tool`), and takes a system message.
    takes_thinking: whether the templates read what was thought before a call as `thinking`, and no text besides.
    """

    name: str
    signs: tuple[str, ...]
    unlike: tuple[str, ...] = ()
    start: str
    end: str = ""
    before: str = ""  # white space that the family writes after the start marker and ...
    behind: str = ""  # ... before the end marker
    separator: str = "\n"
    is_list: bool = False
    brackets: tuple[str, str] = ("[", "]")
    is_python: bool = False
    tags: Tags | None = None
    quote: str = ""
    is_parallel: bool = True
    bare_start: str = ""
    fence: str = ""
    argument_key: str = "arguments"
    name_end: str = ""
    name_stops: tuple[str, ...] = ()
    asides: tuple[str, ...] = ()
    lead: str = ""
    takes_tools: bool = True
    takes_calls: bool = True
    takes_results: bool = True
    takes_system: bool = True
    takes_thinking: bool = False
    control_ids: Mapping[str, int] = field(default_factory=dict)  # of the control tokens of the model in the markers

    @property
    def forgotten_start(self) -> str:
        """What a call begins with where its start marker is missing, as with Qwen3-Coder at times; "": none is read."""
        return self.tags.before_name if self.tags else ""

    @property
    def is_json(self) -> bool:
        """Whether the arguments of a call are JSON."""
        return not (self.is_python or self.tags or self.quote)

    @property
    def markers(self) -> str:
        """All that the format writes beside names and objects."""
        tags = "" if self.tags is None else "\n".join(map(str, vars(self.tags).values()))
        return "\n".join((self.lead, self.start, *self.asides, self.name_end, self.quote, self.end, tags))

    def lark(self, marker: str) -> str:
        """Write a marker for a grammar: a token where there is one in it."""
        special = {text: f"<[{id_}]>" for text, id_ in self.control_ids.items()}
        if self.tags is not None and self.tags.is_loose:
            special["\n"] = r'"\n"?'
        parts = re.split(f"({'|'.join(map(re.escape, special))})", marker) if special else [marker]
        return " ".join(special.get(part) or lark_string(part) for part in parts if part)

    @property
    def ends_with_call(self) -> bool:
        """Whether there is no marker between a call and what is said behind it."""
        return bool(self.name_end) or (self.tags is not None and not self.tags.end)


# The first row that fits the chat template counts; the last one fits all, and serves every other model.
FORMATS = (
    # Mistral's tokenizers from version 11 on (Mistral Small 3.2, Devstral, Ministral 3).
    ToolFormat(
        name="mistral-args", signs=("[TOOL_CALLS]", "[ARGS]"), start="[TOOL_CALLS]", name_end="[ARGS]", separator="",
        name_stops=("[CALL_ID]",),
    ),
    # Those of the Tekken kind before it (Nemo, Ministral 8B): no space before the list, unlike SentencePiece's.
    ToolFormat(
        name="mistral-tekken", signs=("[TOOL_CALLS][",), start="[TOOL_CALLS]", is_list=True, separator=", "
    ),
    ToolFormat(
        name="mistral", signs=("[TOOL_CALLS]",), start="[TOOL_CALLS]", before=" ", is_list=True, separator=", "
    ),
    # Llama 3.1 and 3.2: the answer is the call. Their template refuses two in one turn.
    ToolFormat(
        name="llama3", signs=("ipython", '"parameters": '), start="<|python_tag|>", bare_start='{"name"',
        argument_key="parameters", is_parallel=False,
    ),
    # Qwen3-Coder, Qwen3.5, Nemotron 3 and others.
    ToolFormat(
        name="qwen3-coder", signs=("<tool_call>", "<function=", "<parameter="), start="<tool_call>",
        end="</tool_call>", before="\n", behind="\n",
        tags=Tags(
            before_name="<function=", behind_name=">\n", before_key="<parameter=", behind_key=">\n",
            value_end="\n</parameter>", behind_value="\n", end="</function>",
        ),
    ),
    # Seed-OSS of ByteDance.
    ToolFormat(
        name="seed-oss", signs=("<seed:tool_call>", "<parameter="), start="<seed:tool_call>",
        end="</seed:tool_call>", before="\n", behind="\n",
        tags=Tags(
            before_name="<function=", behind_name=">\n", before_key="<parameter=", behind_key=">",
            value_end="</parameter>", behind_value="\n", end="</function>",
        ),
    ),
    # GLM 4.5 to 4.6; those from 4.7 on write no line breaks. Hunyuan's call has another mark behind the name.
    ToolFormat(
        name="glm", signs=("<tool_call>", "<arg_key>"), unlike=("<tool_sep>",), start="<tool_call>", end="</tool_call>",
        tags=Tags(
            before_name="", behind_name="\n", before_key="<arg_key>", behind_key="</arg_key>\n<arg_value>",
            value_end="</arg_value>", behind_value="\n", is_loose=True,
        ),
    ),
    # Hermes 2 Pro, Qwen2.5, Qwen3, SmolLM3 and others; what else stands between these markers is XML of some form, or
    # is not there: Apriel 1.5's template names them and writes <tool_calls>.
    ToolFormat(
        name="hermes", signs=("<tool_call>", "tools"), unlike=("<function=", "<arg_key>", "<invoke ", "<tool_calls>"),
        start="<tool_call>", end="</tool_call>", before="\n", behind="\n", fence="```json",  # Qwen2.5-Coder
    ),
    ToolFormat(
        name="phi4", signs=("<|tool_call|>", "<|/tool_call|>"), start="<|tool_call|>", end="<|/tool_call|>",
        separator="",
    ),
    ToolFormat(name="granite", signs=("<|tool_call|>",), start="<|tool_call|>", is_list=True, separator=", "),
    # Nemotron Nano 2 and the Llamas of NVIDIA; Nemotron 3 calls as Qwen3-Coder.
    ToolFormat(
        name="nemotron", signs=("<TOOLCALL>",), start="<TOOLCALL>", end="</TOOLCALL>", is_list=True, separator=", "
    ),
    # GPT-OSS (https://github.com/openai/harmony): a message to the function, who may stand before the channel too.
    ToolFormat(
        name="harmony", signs=("<|channel|>commentary", "<|call|>"), lead="<|channel|>commentary",
        start=" to=functions.", name_end="<|message|>", name_stops=("<|", " "),
        asides=("<|channel|>commentary", " json", " <|constrain|>json", "<|constrain|>json"), is_parallel=False,
        takes_thinking=True,
    ),
    # LFM2 and LFM2.5 of Liquid AI; most of their templates have no marker in them.
    ToolFormat(
        name="lfm2", signs=("List of tools: ", "<|im_start|>"), start="<|tool_call_start|>", end="<|tool_call_end|>",
        is_python=True, is_list=True, separator=", ",
    ),
    # OLMo 3, one call a line; some that think have the marker in their template, but do not show it tools or calls.
    ToolFormat(
        name="olmo3", signs=("<function_calls>", "tool_calls"), start="<function_calls>", end="</function_calls>",
        is_python=True, is_list=True, brackets=("", ""),
    ),
    # Gemma 4, and FunctionGemma.
    ToolFormat(
        name="gemma4", signs=("<|tool_call>call:",), start="<|tool_call>", end="<tool_call|>", separator="",
        quote='<|"|>',
    ),
    ToolFormat(
        name="functiongemma", signs=("<start_function_call>call:",), start="<start_function_call>",
        end="<end_function_call>", separator="", quote="<escape>",
    ),
    # The chat template knows no tools: the definitions stand in the system message, or before the user's first words
    # where it takes none, and the text is that of Hermes.
    ToolFormat(
        name="generic", signs=(), start="<tool_call>", end="</tool_call>", before="\n", behind="\n", takes_tools=False,
        is_parallel=False,  # a model that was not trained on it repeats its first call
    ),
)  # fmt: skip


def tool_format(template: ChatTemplate | None, tokenizer: Tokenizer) -> ToolFormat:
    """Return the format of a chat template, whose markers may be control tokens of the tokenizer."""
    source = template.source if template is not None else ""
    row = next(
        row
        for row in FORMATS
        if all(sign in source for sign in row.signs) and not any(sign in source for sign in row.unlike)
    )
    control_tokens = tokenizer.control_tokens
    return replace(
        row,
        control_ids={text: control_tokens[text] for text in control_tokens if text in row.markers},
        takes_calls="tool_calls" in source or bool(row.name_end or row.bare_start or row.tags or row.quote),
        takes_results=row.takes_tools and (template is None or template.takes_results),
        takes_system=row.takes_tools or template is None or template.takes_system,
    )
