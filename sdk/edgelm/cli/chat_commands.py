"""The slash commands of the chat: one function each, and one row in COMMANDS."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm import atomic
from edgelm.cli.output import timing_line
from edgelm.errors import ConfigError

if TYPE_CHECKING:
    from edgelm.cli.conversation import Conversation

# Of GenerationConfig, what can be typed as one number or one text.
SETTINGS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


@dataclass(frozen=True, kw_only=True)
class SlashCommand:
    """What a command does with the text behind its name, and how /help describes it."""

    run: Callable[[Conversation, str], None]
    argument: str = ""
    help: str


def run_command(chat: Conversation, text: str) -> None:
    """Run what was typed, such as `/set temperature 0.7`.

    Raises:
        ConfigError: there is no such command, or it needs an argument.
    """
    name, _, argument = text.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ConfigError(f"There is no command {name}. /help lists them; a space before / says it to the model.")
    if not argument.strip() and command.argument and not command.argument.startswith("["):
        raise ConfigError(f"{name} needs {command.argument}.")
    command.run(chat, argument.strip())


def _help(chat: Conversation, _argument: str) -> None:
    rows = [(f"{name} {command.argument}".rstrip(), command.help) for name, command in COMMANDS.items()]
    rows += [("Ctrl-C", "stop the answer"), ("Ctrl-D", "leave"), ("Alt-Enter", "begin a new line")]
    width = max(len(usage) for usage, _ in rows)
    chat.screen.note("\n".join(f"{usage:<{width}}  {text}" for usage, text in rows))


def _clear(chat: Conversation, _argument: str) -> None:
    chat.session.clear()
    chat.screen.note("A new conversation begins.")


def _system(chat: Conversation, argument: str) -> None:
    if argument:
        chat.session.system = argument
    chat.screen.note(f"system: {chat.session.system or '(none)'}")


def _set(chat: Conversation, argument: str) -> None:
    name, _, text = argument.partition(" ")
    if name and name not in SETTINGS:
        raise ConfigError(f"There is no setting {name!r}; there are {', '.join(SETTINGS)}.")
    if name and not text.strip():
        raise ConfigError(f"/set {name} needs a value; it is {getattr(chat.config, name)!r} now.")
    if name:
        try:
            chat.config = chat.config.replace(**{name: _parse_value(text.strip())})
        except RecursionError as error:
            raise ConfigError(f"/set {name} takes no value that is nested so deeply.") from error
    shown = (name,) if name else SETTINGS
    chat.screen.note("\n".join(f"{setting} = {json.dumps(getattr(chat.config, setting))}" for setting in shown))


def _parse_value(text: str) -> object:
    """Read JSON (0.7, null, "\\n", ["a", "b"]); anything else is a text as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _save(chat: Conversation, argument: str) -> None:
    saved = {"model": chat.model.name, "system": chat.session.system, "messages": chat.session.messages}
    try:
        path = Path(argument).expanduser()
        atomic.write_text(path, json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError, RuntimeError) as error:  # no such home, no name for a file, a disk that is full
        raise ConfigError(f"Cannot write {argument}: {str(error).rstrip('.')}.") from error
    chat.screen.note(f"Saved {len(chat.session.messages)} messages to {path}.")


def _load(chat: Conversation, argument: str) -> None:
    try:
        path = Path(argument).expanduser()
        text = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Cannot read {argument}: {str(error).rstrip('.')}.") from error
    try:
        saved = json.loads(text.decode("utf-8"))
        messages, system = list(saved["messages"]), saved.get("system")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a chat that /save wrote.") from error
    if not all(isinstance(message, dict) for message in messages) or not isinstance(system, (str, type(None))):
        raise ConfigError(f"{path} is not a chat that /save wrote.")
    chat.session.restore(messages)
    chat.session.system = system
    chat.screen.note(f"Loaded {len(messages)} messages from {path}.")


def _regenerate(chat: Conversation, _argument: str) -> None:
    chat.answer(lambda cancel: chat.session.regenerate(chat.config, cancel=cancel))


def _stats(chat: Conversation, _argument: str) -> None:
    lines = [
        f"model    {chat.model.name}, {chat.model.manifest.precision}",
        f"context  {chat.session.context_used} of {chat.model.context_length} tokens",
        f"turns    {len(chat.session.messages)} messages",
    ]
    last = chat.last
    if last is not None and last.usage is not None and last.timings is not None and last.finish_reason is not None:
        lines.append(f"last     {timing_line(last.usage, last.timings, last.finish_reason)}")
    chat.screen.note("\n".join(lines))


def _bye(chat: Conversation, _argument: str) -> None:
    chat.is_over = True


COMMANDS = {
    "/help": SlashCommand(run=_help, help="show this list"),
    "/clear": SlashCommand(run=_clear, help="begin a new conversation"),
    "/system": SlashCommand(run=_system, argument="[TEXT]", help="set or show how the model is to behave"),
    "/set": SlashCommand(run=_set, argument="[NAME VALUE]", help="change a setting, or show all of them"),
    "/save": SlashCommand(run=_save, argument="FILE", help="write the conversation to a file"),
    "/load": SlashCommand(run=_load, argument="FILE", help="go on with a conversation from a file"),
    "/regenerate": SlashCommand(run=_regenerate, help="answer the last question once more"),
    "/stats": SlashCommand(run=_stats, help="show the context used and the speed"),
    "/bye": SlashCommand(run=_bye, help="leave"),
}
