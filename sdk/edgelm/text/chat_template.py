"""ChatTemplate: a model's own way to write a conversation as one text, in jinja2."""

from __future__ import annotations

import functools
import reprlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from edgelm.completion import Completion, Message
from edgelm.errors import ChatTemplateError, ConfigError
from edgelm.files.regular_file import read_json_object, read_text
from edgelm.text.template_budget import BudgetExceededError, budget_for, size_of
from edgelm.text.template_environment import GENERATION_MARKS, RefusedError, template_environment

# What a template may write beside the messages' own texts: four million characters are more than a context of a million
# tokens; a template that writes more is broken or hostile.
MAX_CHARACTERS = 4_000_000
MAX_SOURCE = 1 << 17  # of the template itself: three times the longest that is in use

_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt")
# transformers gives these to every template: some ask whether they are none, and not whether they are defined.
_NOT_GIVEN = dict.fromkeys(("tools", "documents"))
_PROBE = "a text that a template writes"
THOUGHT = ("reasoning_content", "thinking", "reasoning")  # the names that what was thought has in messages
# Behind a model's name, in an error.
WITHOUT_TEMPLATE = (
    "has no chat template. Give it a plain prompt (stream, generate, `edgelm run`), or its author's template: put that "
    "into its checkpoint folder as chat_template.jinja, and export it again."
)


# A model that is loaded again, or beside another of its family, has the same: to compile one of three lines takes 4 ms.
@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[jinja2.Template, frozenset[str]]:
    """Compile a template, and name the variables that it reads from outside."""
    environment = template_environment()
    return environment.from_string(source), frozenset(environment.names_read).difference(GENERATION_MARKS)


class ChatTemplate:
    """A chat template, compiled. It is a program from outside, so it runs in jinja2's immutable sandbox.

    It has what transformers gives to templates: `raise_exception`, `strftime_now`, a `tojson` that leaves HTML as it
    is, loop controls, and `generation` blocks.

    special_tokens: `bos_token`, `eos_token` and the like, which templates write by name. `variables` are the names of
    what the template reads from outside, such as `messages`, `tools` and `enable_thinking`.

    Raises:
        ChatTemplateError: the template has a syntax error.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_SOURCE:
            raise ChatTemplateError(f"The chat template has {len(source)} characters; at most {MAX_SOURCE} are read.")
        self.source = source
        self._special_tokens = {"bos_token": "", "eos_token": "", **(special_tokens or {})}
        try:
            self._template, self.variables = _compiled(source)
        except ChatTemplateError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"The chat template has a syntax error in line {error.lineno}: {error}") from error
        except Exception as error:  # constant expressions are computed while it is compiled
            raise ChatTemplateError(f"The chat template does not compile: {type(error).__name__}: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """Read chat_template.jinja of a checkpoint folder or model package (none: None).

        The special tokens come from tokenizer_config.json beside it; so does the template where it has no file.

        Raises:
            ChatTemplateError: a file cannot be read, or the template has a syntax error.
        """
        path, config_path = Path(folder) / "chat_template.jinja", Path(folder) / "tokenizer_config.json"
        config = _tokenizer_config(config_path)
        if path.exists():
            try:
                source = read_text(path)
            except (OSError, ValueError) as error:
                raise ChatTemplateError(f"Cannot read {path}: {error}.") from error
        elif (inside := template_of(named_templates(config))) is not None:
            source = inside
        else:
            return None
        return cls(source, special_tokens=_special_tokens(config))

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether a conversation may begin with a system message, and it is written; Gemma 2's may not."""
        word = secrets.token_hex(8)
        turns = [Message(role="system", content=word), Message(role="user", content="a")]
        return self._says(word, turns, where_refused=False)

    @functools.cached_property
    def takes_parts(self) -> bool:
        """Whether a message's content is to be a list of parts, as SmolVLM and others that read images have it."""
        if "text" not in self.source:
            return False
        return not self._writes(_PROBE) and self._writes([{"type": "text", "text": _PROBE}])

    def _writes(self, content: object) -> bool:
        try:
            return _PROBE in self._rendered([{"role": "user", "content": content}], True, {})
        except ChatTemplateError:
            return False

    @functools.cached_property
    def takes_results(self) -> bool:
        """Whether the result of a tool is written, as a message of the role `tool`; Granite 3.0's template has none."""
        word = secrets.token_hex(8)
        tool = {"type": "function", "function": {"name": "f", "description": "f", "parameters": {"type": "object"}}}
        call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {}}}
        turns: Any = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": word, "name": "f", "tool_call_id": "123456789"},
        ]
        # A template that refuses this one will say why when it is given a conversation.
        return self._says(word, turns, where_refused=True, tools=[tool])

    def _says(self, word: str, turns: Sequence[Message], *, where_refused: bool, **variables: object) -> bool:
        """Tell whether a word of a conversation is written, and `where_refused` where the template refuses that."""
        try:
            return word in self.render(turns, variables=variables)
        except ChatTemplateError:
            return where_refused

    def check_variables(self, variables: Mapping[str, object] | None) -> Mapping[str, object]:
        """Return the variables that somebody gives to a rendering, once they are known to be that; None: none.

        Raises:
            ConfigError: they are no mapping of names, or have a name that edgelm gives a value.
        """
        if variables is None:
            return {}
        if not isinstance(variables, Mapping) or not all(isinstance(name, str) for name in variables):
            raise ConfigError(
                f"template_variables is {reprlib.repr(variables)}; it must be a mapping of names to values, such as "
                "{'enable_thinking': False}."
            )
        own = sorted(variables.keys() & {*_OWN_VARIABLES, *GENERATION_MARKS, *self._special_tokens})
        if own:
            raise ConfigError(f"The chat template's variable {own[0]!r} is set by edgelm itself; leave it out.")
        return variables

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Write a conversation as one text.

        add_generation_prompt: whether the text ends where the answer begins. variables: what else the template reads
        by name (`tools`, `enable_thinking`).

        Raises:
            ChatTemplateError: there are no messages, one of them is no mapping with a role, the template refuses the
                conversation or fails, or it writes more than MAX_CHARACTERS and the messages' texts.
        """
        check_conversation(messages)
        turns: Sequence[Mapping[str, Any]] = [_given(message) for message in messages]
        if self.takes_parts:
            turns = [_in_parts(turn) for turn in turns]
        return self._rendered(turns, add_generation_prompt, variables or {})

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, object]
    ) -> str:
        values = self._special_tokens | {
            **_NOT_GIVEN,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        try:
            room = MAX_CHARACTERS + size_of(messages)[1]
            with budget_for(values):
                for piece in self._template.generate(values):
                    pieces.append(piece)
                    room -= len(piece)
                    if room < 0:
                        raise ChatTemplateError(
                            f"The chat template writes more than {MAX_CHARACTERS} characters beside the messages' own."
                        )
        except ChatTemplateError:
            raise
        except BudgetExceededError as error:
            raise ChatTemplateError(f"The chat template is broken or hostile: {error}.") from error
        except RefusedError as error:
            raise ChatTemplateError(f"The chat template refuses this conversation: {error}") from error
        except Exception as error:  # a template can raise whatever an expression can
            other = next((i for i, turn in enumerate(messages) if not isinstance(turn.get("content", ""), str)), None)
            hint = "" if other is None else f" (messages[{other}]['content'] is no text)"
            raise ChatTemplateError(
                f"The chat template fails on this conversation{hint}: {type(error).__name__}: {error}"
            ) from error
        return "".join(pieces)


def check_conversation(messages: object) -> None:
    """Check that a conversation is a list of messages.

    Raises:
        ChatTemplateError: it is no list, has no messages, or one of them is none: it is no mapping with a role, or is
            the user's or the system's and has no content.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise ChatTemplateError(
            f"messages is {reprlib.repr(messages)}; a conversation is a list of messages, each with role and content."
        )
    if not messages:
        raise ChatTemplateError("The conversation is empty; give at least one message.")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or (role in ("system", "user") and message.get("content") is None):
            raise no_message(message, f"messages[{i}]")


def no_message(value: object, place: str) -> ChatTemplateError:
    """Return the error about what stands in a message's place."""
    way = " Of an answer, that is its `message`." if isinstance(value, Completion) else ""
    return ChatTemplateError(f"{place} is {reprlib.repr(value)}; a message is a mapping with role and content.{way}")


def _given(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what is None, which templates would write as a word, as transformers does; and give what was thought
    the name that most templates read, and that of GPT-OSS's.
    """
    given = {name: value for name, value in message.items() if value is not None}
    thought = next((given[name] for name in THOUGHT if name in given), None)
    return given if thought is None else {"thinking": thought, **given, "reasoning_content": thought}


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _tokenizer_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ChatTemplateError(f"Cannot read {path}: {error}.") from error


def named_templates(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates in a tokenizer_config.json by their names; one without a name is the "default"."""
    found = config.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in found if isinstance(entry, dict)]
    else:
        pairs = list(found.items()) if isinstance(found, dict) else []
    return {name: template for name, template in pairs if isinstance(name, str) and isinstance(template, str)}


def template_of(templates: Mapping[str, str]) -> str | None:
    """Return the template that transformers takes of several: "default", and "tool_use" in a request with tools.

    Where both are there, they become one that chooses between them, so that every other program chooses as well.
    """
    default, for_tools = templates.get("default"), templates.get("tool_use")
    if default is None or for_tools in (None, default):
        return default
    # jinja2 drops the newline behind a block's tag, and at a template's end.
    for_tools, default = for_tools.removesuffix("\n"), default.removesuffix("\n")
    return f"{{% if tools is defined and tools is not none %}}\n{for_tools}{{% else %}}\n{default}{{% endif %}}"


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens that a tokenizer_config.json names; each is a text, or an object with one as its content."""
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}
