"""The slash commands of the chat: one function each, and one row in COMMANDS."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.arguments import did_you_mean
from edgelm.chat_session import ChatSession
from edgelm.cli.attachment import Attachment
from edgelm.cli.columns import columns, cut_to, padded
from edgelm.cli.output import printable, timing_line
from edgelm.cli.thinking import think_variables
from edgelm.counted import counted
from edgelm.errors import ConfigError, EdgeLMError
from edgelm.files import atomic
from edgelm.files.regular_file import read_text
from edgelm.generation_config import RANGES, GenerationConfig
from edgelm.library.library import Library
from edgelm.saved_session import SavedSessions
from edgelm.text.thinking import switches_thinking

if TYPE_CHECKING:
    from edgelm.cli.conversation import Conversation

# The numbers of GenerationConfig, but for logprobs, which the chat does not show; two of its texts; and `think`.
SETTINGS = (*(name for name in RANGES if name != "logprobs"), "stop", "adapter", "think")
_PREVIEW_LENGTH = 60
_BEFORE_PREVIEW = 24  # characters of a line of /tokens
_LARGEST_CHAT = 1 << 26  # bytes: some fifty of the largest files that a message takes


@dataclass(frozen=True, kw_only=True)
class SlashCommand:
    """What a command does with the text behind its name, how /help describes it, and what can stand behind it."""

    run: Callable[[Conversation, str], None]
    argument: str = ""
    help: str
    arguments: Callable[[str], Iterable[str]] | None = None


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """How what is typed may go on: the text that takes the place of its last `replaces` characters."""

    text: str
    replaces: int
    meaning: str = ""


def run_command(chat: Conversation, text: str) -> None:
    """Run what was typed, such as `/set temperature 0.7`.

    Raises:
        ConfigError: there is no such command, it needs an argument, or takes none.
    """
    name, *rest = text.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None and name in _ELSEWHERE:
        raise ConfigError(f"There is no command {name}. {_ELSEWHERE[name]}")
    if command is None:
        meant = did_you_mean(name, [*COMMANDS, *ALIASES], most=1)
        raise ConfigError(
            f"There is no command {name}.{meant} /help lists them; a space before / says it to the model."
        )
    if not argument and command.argument and not command.argument.startswith("["):
        raise ConfigError(f"{name} needs {command.argument}.")
    if argument and not command.argument:
        raise ConfigError(f"{name} stands alone. Nothing was done; say the rest as a message of its own.")
    command.run(chat, argument)


def suggestions(typed: str) -> Iterator[Suggestion]:
    """Complete the name of a command, or the argument of one."""
    name, space, argument = typed.partition(" ")
    if not name.startswith("/"):
        return
    if not space:
        for known in COMMANDS:
            if known.startswith(name):
                yield Suggestion(text=known, replaces=len(name), meaning=COMMANDS[known].help)
        return
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None or command.arguments is None:
        return
    try:
        known_arguments = command.arguments(argument)
    except (EdgeLMError, OSError):  # who is still typing has no use for an error
        return
    for text in known_arguments:
        if text.startswith(argument):
            yield Suggestion(text=text, replaces=len(argument))


def _paths_typed(argument: str) -> Iterable[str]:
    """List the folder that is typed, in the words it is typed in."""
    begun = os.path.basename(argument)  # Windows has two separators
    folder = argument.removesuffix(begun)
    try:
        entries = sorted(Path(folder).expanduser().iterdir())
        names = [path.name + ("/" if path.is_dir() else "") for path in entries]
    except (OSError, RuntimeError, ValueError):
        return []
    return [folder + name for name in names if begun or not name.startswith(".")]


def _help(chat: Conversation, _argument: str) -> None:
    rows = []
    for name, command in COMMANDS.items():
        aliases = [alias for alias, meant in ALIASES.items() if meant == name]
        rows.append((f"{name} {command.argument}".rstrip(), "; also ".join([command.help, *aliases])))
    rows += [
        ("Ctrl-C", "stop the answer"),
        ("Ctrl-D", "leave"),
        ("Alt-Enter", "begin a new line"),
        ('"""', "begin a text of several lines, which ends with the same"),
    ]
    width = max(len(usage) for usage, _ in rows)
    chat.screen.note("\n".join(f"{usage:<{width}}  {text}" for usage, text in rows))


def _clear(chat: Conversation, _argument: str) -> None:
    chat.leave()
    chat.session.clear()
    chat.kept.begin_anew()
    chat.attachments.clear()
    chat.screen.note("A new conversation begins.")


def _system(chat: Conversation, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == "null" else argument
    chat.screen.note(f"system: {chat.session.system or '(none)'}")


def _set(chat: Conversation, argument: str) -> None:
    name, _, text = argument.removeprefix("parameter ").partition(" ")  # a word of Ollama's
    if name in _NO_SETTINGS:
        raise ConfigError(f"There is no setting {name!r}. {_NO_SETTINGS[name]}")
    if name and name not in SETTINGS:
        meant = did_you_mean(name.replace("-", "_"), SETTINGS, most=1)
        raise ConfigError(f"There is no setting {name!r}.{meant or ' There are ' + ', '.join(SETTINGS) + '.'}")
    if name and not text.strip():
        raise ConfigError(f"/set {name} needs a value; it is {_shown(chat, name)} now.")
    if name:
        try:
            _change(chat, name, _parse_value(text.strip()))
        except RecursionError as error:
            raise ConfigError(f"/set {name} takes no value that is nested so deeply.") from error
    shown = (name,) if name else SETTINGS
    chat.screen.note("\n".join(f"{setting} = {_shown(chat, setting)}" for setting in shown))


def _shown(chat: Conversation, name: str) -> str:
    """Write a setting as `/set` reads it."""
    value = chat.think if name == "think" else getattr(chat.config(), name)
    return json.dumps(value, ensure_ascii=False)


def _change(chat: Conversation, name: str, value: Any) -> None:
    """Keep a setting, once nothing speaks against it."""
    if name != "think":
        value = () if name == "stop" and value is None else value  # null takes it back, as it does a seed
        chat.model.generation_config.replace(**{**chat.settings, name: value})
        if name == "adapter" and value is not None:
            chat.model.adapted(value)  # refuses a name of which none is loaded
        chat.settings[name] = value
        return
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"think is {value!r}; it must be true, false or null.")
    think_variables(chat.model, value)
    chat.think = value


def _parse_value(text: str) -> object:
    """Read JSON (0.7, null, "\\n", ["a", "b"]); anything else is a text as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _model(chat: Conversation, argument: str) -> None:
    if not argument:
        names = ", ".join(Library().packages()) or "none"
        chat.screen.note(f"model: {chat.model.name}. In the library: {names}")
        return
    model = chat.load(argument)
    session = ChatSession(model, chat.session.system)
    session.restore(chat.session.messages)
    chat.session, chat.opened, chat.speed = session, argument, 0.0
    if chat.think is not None and not switches_thinking(model.chat_template):
        chat.think = None
        chat.screen.note("think = null: this model cannot be told.")
    if chat.settings.get("adapter") not in (None, *model.adapters):
        chat.settings["adapter"] = None
        chat.screen.note("adapter = null: this model has none of that name.")
    if (speculation := chat.settings.get("speculation")) is not None:
        try:
            model.answer([0], GenerationConfig(speculation=speculation))
        except ConfigError as error:  # no answer would come, and nothing that is typed could take it back
            chat.settings["speculation"] = None
            chat.screen.note(f"Nothing is guessed ahead any more: {error}")
    chat.screen.note(
        f"{model.name} · {model.manifest.precision} · {model.context_length} tokens of context"
        + (" · it reads the conversation with its next answer" if session.messages else "")
    )


def _sessions(chat: Conversation, _argument: str) -> None:
    sessions = SavedSessions().sessions()
    if not sessions:
        chat.screen.note("No sessions are saved yet.")
        return
    width = max(columns(session.name) for session in sessions)
    lines = [
        f"{'*' if session.name == chat.kept.name else ' '} {padded(session.name, width)}  "
        f"{session.saved:%Y-%m-%d %H:%M}  "
        + (f"{counted(session.messages, 'message')} with {session.model}" if session.problem is None else "(broken)")
        for session in sessions
    ]
    chat.screen.note("\n".join(lines))


def _resume(chat: Conversation, argument: str) -> None:
    others = [name for name in SavedSessions().names() if name != chat.kept.name]
    if not argument and not others:
        raise ConfigError("There is no other session to go on with.")
    chat.leave()
    chat.session = chat.kept.resume(argument or others[0], chat.model)
    chat.attachments.clear()
    chat.show_last_turn()


def _save(chat: Conversation, argument: str) -> None:
    saved = {"model": chat.model.name, "system": chat.session.system, "messages": chat.session.messages}
    try:
        path = Path(argument).expanduser()
        if path.is_file() and path.stat().st_size and not _is_chat(path):
            raise ConfigError(f"{path} exists and is no chat that /save wrote; it is left alone. Choose another file.")
        atomic.write_text(path, json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
    except (OSError, ValueError, RuntimeError) as error:  # no such home, no name for a file, a disk that is full
        raise ConfigError(f"Cannot write {argument}: {str(error).rstrip('.')}.") from error
    chat.screen.note(f"Saved {counted(len(chat.session.messages), 'message')} to {path}.")


def _load(chat: Conversation, argument: str) -> None:
    try:
        path = Path(argument).expanduser()
        messages, system = _read_chat(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Cannot read {argument}: {str(error).rstrip('.')}.") from error
    session = ChatSession(chat.model, system)
    try:
        session.restore(messages)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a chat that /save wrote: {error}") from error
    chat.leave()
    chat.session = session
    chat.kept.begin_anew()
    chat.attachments.clear()
    chat.keep()
    chat.screen.note(f"Loaded {counted(len(messages), 'message')} from {path}.")


def _read_chat(path: Path) -> tuple[list[Any], str | None]:
    """Return the messages and the system message of a file that /save wrote; ConfigError: it is another."""
    try:
        text = read_text(path, _LARGEST_CHAT)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a chat that /save wrote.") from error
    try:
        saved = json.loads(text)
        messages, system = list(saved["messages"]), saved.get("system")
        json.dumps([messages, system], ensure_ascii=False).encode("utf-8")  # halves of characters are no text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a chat that /save wrote.") from error
    if not all(isinstance(message, dict) for message in messages) or not isinstance(system, (str, type(None))):
        raise ConfigError(f"{path} is not a chat that /save wrote.")
    return messages, system


def _is_chat(path: Path) -> bool:
    try:
        _read_chat(path)
    except ConfigError:
        return False
    return True


def _retry(chat: Conversation, _argument: str) -> None:
    chat.answer(chat.session.regenerate)


def _edit(chat: Conversation, argument: str) -> None:
    messages = chat.session.messages
    own = [number for number, turn in enumerate(messages, 1) if turn["role"] == "user"]
    if not own:
        raise ConfigError("There is no message to edit yet.")
    if argument and argument not in map(str, own):
        raise ConfigError(f"There is no message {argument} of yours; yours are {', '.join(map(str, own))} (/tokens).")
    number = int(argument) if argument else own[-1]
    text = chat.screen.edit(messages[number - 1]["content"] or "")
    if text is None or not text.strip():
        chat.screen.note("Nothing was changed.")
        return
    chat.answer(partial(chat.session.edit, number - 1, text.strip()))


def _file(chat: Conversation, argument: str) -> None:
    if not argument:
        chat.attachments.clear()
        chat.screen.note("No file goes with the next message.")
        return
    attachment = Attachment.read(argument)
    chat.attachments.append(attachment)
    tokens = counted(len(chat.model.tokenizer.encode(attachment.text)))
    chat.screen.note(f"{attachment.name} ({tokens}) goes with your next message. /file alone leaves it out again.")


def _tokens(chat: Conversation, _argument: str) -> None:
    encode = chat.model.tokenizer.encode
    rows = []
    if chat.session.system:
        rows.append(("", "system", len(encode(chat.session.system)), chat.session.system))
    for number, turn in enumerate(chat.session.messages, 1):
        text = turn["content"] or ""
        rows.append((str(number), turn["role"], len(encode(text)), text))
    for file in chat.attachments:
        rows.append(("", "file", len(encode(file.text)), f"{file.name}, goes with your next message"))
    lines = [f"{number:>3}  {role:<9}  {tokens:>6}  {_preview(text)}" for number, role, tokens, text in rows]
    used, limit = chat.context_used(), chat.model.context_length
    lines.append(f"{'':>3}  {'context':<9}  {used:>6}  of {limit}, with the chat template's marks")
    chat.screen.note("\n".join(lines))


def _preview(text: str) -> str:
    length = max(1, min(_PREVIEW_LENGTH, shutil.get_terminal_size().columns - _BEFORE_PREVIEW))
    line = " ".join(printable(text[: 2 * length]).split())
    return line if columns(line) <= length else f"{cut_to(line, length - 1)}…"


def _stats(chat: Conversation, _argument: str) -> None:
    lines = [
        f"model    {chat.model.name}, {chat.model.manifest.precision}",
        f"context  {chat.context_used()} of {chat.model.context_length} tokens",
        f"turns    {counted(len(chat.session.messages), 'message')}",
        f"kept as  {chat.kept.name or '(nothing yet)'}",
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
    "/retry": SlashCommand(run=_retry, help="answer the last question once more"),
    "/edit": SlashCommand(run=_edit, argument="[NUMBER]", help="change your last message, or one by its number"),
    "/file": SlashCommand(
        run=_file, argument="[PATH]", help="add a text file to the next message", arguments=_paths_typed,
    ),
    "/model": SlashCommand(
        run=_model, argument="[NAME]", help="go on with another model, or list them",
        arguments=lambda _: Library().packages(),
    ),
    "/system": SlashCommand(
        run=_system, argument="[TEXT]", help="set or show how the model is to behave; null: nothing"
    ),
    "/set": SlashCommand(
        run=_set, argument="[NAME VALUE]", help="change a setting, or show all of them", arguments=lambda _: SETTINGS
    ),
    "/sessions": SlashCommand(run=_sessions, help="list the conversations that are kept"),
    "/resume": SlashCommand(
        run=_resume, argument="[NAME]", help="go on with the last of them, or one by name",
        arguments=lambda _: SavedSessions().names(),
    ),
    "/save": SlashCommand(run=_save, argument="FILE", help="write the conversation to a file", arguments=_paths_typed),
    "/load": SlashCommand(
        run=_load, argument="FILE", help="go on with a conversation from a file", arguments=_paths_typed
    ),
    "/tokens": SlashCommand(run=_tokens, help="count the tokens of each message"),
    "/stats": SlashCommand(run=_stats, help="show the context used and the speed"),
    "/bye": SlashCommand(run=_bye, help="leave"),
}  # fmt: skip
ALIASES = {
    "/regenerate": "/retry",
    "/regen": "/retry",
    "/read": "/file",
    "/exit": "/bye",
    "/quit": "/bye",
    "/?": "/help",
}
# What Ollama's chat has by other names.
_ELSEWHERE = {"/show": "/set, /system and /stats show what is in force, and `edgelm show NAME` the model."}
_NO_SETTINGS = {
    "system": "/system TEXT sets how the model is to behave.",
    "verbose": "The line below each answer has the speed.",
    "num_ctx": "The context is the model's own.",
    "num_predict": "It is max_new_tokens here.",
    "repeat_penalty": "It is repetition_penalty here.",
}
