"""ToolFormat: how one family of models writes its calls of tools."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgelm.structure.constraint import lark_string

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """Describe the text of a call: a marker, one JSON object or a list of them (or what Python writes), a marker.

    signs: what stands in the chat template of such a model; all of them. unlike: what stands in none of theirs.
    start, end: the markers around calls; an empty `end` is the end of the answer. An answer may also begin with
    `bare_start`, without a marker.
    separator: stands between two calls, each with markers of its own, or inside one pair of them where `is_list`; a
    list stands in `brackets`, if there are any.
    is_python: a call is `name(parameter=value, …)`.
    argument_key: the name of the arguments in a call's object.
    name_end: the name stands before the object, up to this marker, and the object is the arguments alone.
    name_stops: what begins anything else before `name_end`. asides: what of that a model may write, in this order.
    lead: stands before the start marker, and is taken off, with all that makes tokens of the markers visible, by what
    takes the thinking apart.
    takes_tools: whether the chat template writes the definitions, calls and results itself.
    takes_calls: whether that of the model, which writes definitions, writes calls too; all that name a tool before its
    object, or call without a marker, do.
    takes_results: whether it writes results, as messages of the role `tool`.
    takes_system: whether that of the model takes a system message, for the definitions that it does not write itself.
    takes_thinking: whether it reads what was thought before a call as `thinking`, and nothing that was said besides.
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
    is_parallel: bool = True
    bare_start: str = ""
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
    def markers(self) -> str:
        """All that the format writes beside names and objects."""
        return "\n".join((self.lead, self.start, *self.asides, self.name_end, self.end))

    def lark(self, marker: str) -> str:
        """Write a marker for a grammar: a token where there is one in it."""
        ids = self.control_ids
        parts = re.split(f"({'|'.join(map(re.escape, ids))})", marker) if ids else [marker]
        return " ".join(f"<[{ids[part]}]>" if part in ids else lark_string(part) for part in parts if part)


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
    # Hermes 2 Pro, Qwen2.5, Qwen3, SmolLM3 and others; not Qwen3-Coder and GLM, which write XML between these markers.
    ToolFormat(
        name="hermes", signs=("<tool_call>", "tools"), unlike=("<function=", "<arg_key>"), start="<tool_call>",
        end="</tool_call>", before="\n", behind="\n",
    ),
    ToolFormat(
        name="phi4", signs=("<|tool_call|>", "<|/tool_call|>"), start="<|tool_call|>", end="<|/tool_call|>",
        separator="",
    ),
    ToolFormat(name="granite", signs=("<|tool_call|>",), start="<|tool_call|>", is_list=True, separator=", "),
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
    # The chat template knows no tools: the definitions stand in the system message, or before the user's first words
    # where it takes none, and the text is that of Hermes.
    ToolFormat(
        name="generic", signs=(), start="<tool_call>", end="</tool_call>", before="\n", behind="\n", takes_tools=False,
        is_parallel=False,  # who was not trained on it repeats the first call
    ),
)  # fmt: skip


def tool_format(model: LanguageModel) -> ToolFormat:
    """Return the format of a model, by what its chat template contains."""
    template = model.chat_template
    source = template.source if template is not None else ""
    row = next(
        row
        for row in FORMATS
        if all(sign in source for sign in row.signs) and not any(sign in source for sign in row.unlike)
    )
    control_tokens = model.tokenizer.control_tokens
    return replace(
        row,
        control_ids={text: control_tokens[text] for text in control_tokens if text in row.markers},
        takes_calls="tool_calls" in source or bool(row.name_end or row.bare_start),
        takes_results=row.takes_tools and (template is None or template.takes_results),
        takes_system=row.takes_tools or template is None or template.takes_system,
    )
