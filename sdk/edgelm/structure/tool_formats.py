"""ToolFormat: how one family of models writes its calls of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edgelm.structure.constraint import lark_string

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ToolFormat:
    """Describe the text of a call: a marker, one JSON object or a list of them, a marker.

    signs: what stands in the chat template of such a model; all of them.
    start, end: the markers around calls; an empty `end` is the end of the answer. An answer may also begin with
    `bare_start`, without a marker.
    separator: stands between two calls, each with markers of its own, or inside one pair of them where `is_list`.
    argument_key: the name of the arguments in a call's object.
    name_end: the name stands before the object, up to this marker, and the object is the arguments alone.
    takes_tools: whether the chat template writes the definitions, calls and results itself.
    """

    name: str
    signs: tuple[str, ...]
    start: str
    end: str = ""
    before: str = ""  # white space that the family writes after the start marker and ...
    behind: str = ""  # ... before the end marker
    separator: str = "\n"
    is_list: bool = False
    is_parallel: bool = True
    bare_start: str = ""
    argument_key: str = "arguments"
    name_end: str = ""
    takes_tools: bool = True
    control_ids: Mapping[str, int] = field(default_factory=dict)  # of the markers that are control tokens of the model

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers that the format has."""
        return tuple(marker for marker in (self.start, self.end, self.name_end) if marker)

    def lark(self, marker: str) -> str:
        """Write a marker for a grammar: its token where it is one."""
        return f"<[{self.control_ids[marker]}]>" if marker in self.control_ids else lark_string(marker)


# The first row whose signs all stand in the chat template counts; the last one has none, and serves every other model.
FORMATS = (
    # Mistral's tokenizers from version 11 on (Mistral Small 3.2, Devstral, Ministral 3).
    ToolFormat(
        name="mistral-args", signs=("[TOOL_CALLS]", "[ARGS]"), start="[TOOL_CALLS]", name_end="[ARGS]", separator=""
    ),
    ToolFormat(
        name="mistral", signs=("[TOOL_CALLS]",), start="[TOOL_CALLS]", before=" ", is_list=True, separator=", "
    ),
    # Llama 3.1 and 3.2: the answer is the call. Their template refuses two in one turn.
    ToolFormat(
        name="llama3", signs=("ipython", '"parameters": '), start="<|python_tag|>", bare_start='{"name"',
        argument_key="parameters", is_parallel=False,
    ),
    # Hermes 2 Pro, Qwen2.5, Qwen3, SmolLM3 and others.
    ToolFormat(
        name="hermes", signs=("<tool_call>", "tools"), start="<tool_call>", end="</tool_call>", before="\n", behind="\n"
    ),
    ToolFormat(
        name="phi4", signs=("<|tool_call|>", "<|/tool_call|>"), start="<|tool_call|>", end="<|/tool_call|>",
        separator="",
    ),
    ToolFormat(name="granite", signs=("<|tool_call|>",), start="<|tool_call|>", is_list=True, separator=", "),
    # The chat template knows no tools: the definitions stand in the system message, and the text is that of Hermes.
    ToolFormat(
        name="generic", signs=(), start="<tool_call>", end="</tool_call>", before="\n", behind="\n", takes_tools=False,
        is_parallel=False,  # who was not trained on it repeats the first call
    ),
)  # fmt: skip


def tool_format(model: LanguageModel) -> ToolFormat:
    """Return the format of a model, by what its chat template contains."""
    source = model.chat_template.source if model.chat_template is not None else ""
    row = next(row for row in FORMATS if all(sign in source for sign in row.signs))
    control_tokens = model.tokenizer.control_tokens
    return replace(row, control_ids={text: control_tokens[text] for text in row.markers if text in control_tokens})
