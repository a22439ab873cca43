"""The tokens of a conversation, and which of them are the assistant's: those that training learns."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ChatTemplateError
from edgelm.structure.tool_formats import tool_format
from edgelm.structure.tool_messages import show_tools
from edgelm.text.chat_template import THOUGHT, ChatTemplate
from edgelm.text.control_guard import ControlGuard
from edgelm.text.template_environment import GENERATION_MARKS
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.conversations import ASSISTANT, Conversation


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """token_ids of the whole conversation; learned: whether each is one that the assistant says."""

    token_ids: list[int]
    learned: list[bool]


def encode_conversation(
    template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation
) -> EncodedConversation:
    """Render a conversation with the model's chat template, and find what the assistant says in it.

    That is what stands in the template's `{% generation %}` blocks. Where it has none, it is what a rendering with an
    answer has more than one that asks for it (`add_generation_prompt`), up to the token that ends the turn, which is
    part of it. A first message of the assistant, before which nothing can be rendered, then is not learned.

    The tokens are those of inference: tools, calls and results are given to the template as there (`show_tools`), and
    what stands before an answer is encoded as a prompt is, by itself, so that no token reaches across. No text of a
    message becomes a control token.

    Raises:
        ChatTemplateError: the template refuses the conversation, or hides where the assistant speaks.
        ConfigError: it gives the template what edgelm gives.
        TokenizerError: a text has half of a surrogate pair.
    """
    guard = ControlGuard(tokenizer)
    shown = _shown(template, tokenizer, conversation)
    segments = list(_Rendering(template, tokenizer, guard, shown).segments())
    token_ids: list[int] = []
    learned: list[bool] = []
    tail, tail_ids = list[str | int](), list[int]()  # from the last control token on, behind which all is as it is
    for text, is_learned in segments:
        for mark, marker in shown.marks.items():
            text = text.replace(mark, marker)
        piece = guard.reveal(text)
        added = None
        if tokenizer.strips_leading_space:
            # SentencePiece's tokenizers put a space before the text they encode, which a segment in the middle does not
            # have. So they encode what stands before it too, and the tokens added by that are the segment's.
            tail += piece
            whole = tokenizer.encode_parts(tail)
            added = whole[len(tail_ids) :] if whole[: len(tail_ids)] == tail_ids else None
        added = tokenizer.encode_parts(piece) if added is None else added
        token_ids += added
        learned += [is_learned] * len(added)
        tail_ids += added
        last = max((i for i, part in enumerate(tail) if isinstance(part, int)), default=0)
        if last:
            tail_ids = tail_ids[len(tail_ids) - 1 - tail_ids[::-1].index(int(tail[last])) :]
            tail = tail[last:]
    return EncodedConversation(token_ids=token_ids, learned=learned)


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A conversation as the template gets it.

    learned: the numbers of the messages that are. own_numbers: of the assistant's, those that they have in the data.
    marks: as `show_tools`.
    """

    messages: Sequence[Mapping[str, Any]]
    learned: frozenset[int]
    own_numbers: Mapping[int, int]
    variables: Mapping[str, Any]
    marks: Mapping[str, str]


def _shown(template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation) -> _Shown:
    """Show tools, calls and results as inference does, but to a template that has a form of its own for them."""
    messages, tools = conversation.messages, conversation.tools
    given = template.check_variables(conversation.variables)
    form = tool_format(template, tokenizer)
    if not form.takes_tools and any(word in template.source for word in ("tools", "tool_calls")):
        variables = {**given} if tools is None else {**given, "tools": tools}
        numbers = {i: i for i, message in enumerate(messages) if message["role"] == ASSISTANT}
        return _Shown(
            messages=messages, learned=conversation.learned, own_numbers=numbers, variables=variables, marks={}
        )
    turns, variables, marks = show_tools(messages, tools or (), form)  # type: ignore[arg-type]
    # A call may have got a turn of its own, and definitions a message before all others.
    answers = (i for i, turn in enumerate(turns) if turn["role"] == ASSISTANT)
    numbers = {}
    for i, message in enumerate(messages):
        if message["role"] == ASSISTANT:
            calls = len(message.get("tool_calls") or ())
            for _ in range(calls if calls and form.takes_tools and not form.is_parallel else 1):
                numbers[next(answers)] = i
    learned = frozenset(number for number, own in numbers.items() if own in conversation.learned)
    return _Shown(messages=turns, learned=learned, own_numbers=numbers, variables={**given, **variables}, marks=marks)  # type: ignore[arg-type]


class _Rendering:
    """One conversation, rendered with its control tokens' literals hidden."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer, guard: ControlGuard, shown: _Shown) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._learned, self._own_numbers = shown.learned, shown.own_numbers
        self._messages: list[Any] = [guard.hide(message, f"messages[{i}]") for i, message in enumerate(shown.messages)]
        self._variables = {name: guard.hide(value, name) for name, value in shown.variables.items()}

    def segments(self) -> Iterator[tuple[str, bool]]:
        """Yield the rendered text in pieces, and whether each is learned."""
        start_mark, end_mark = _mark(), _mark()
        marks = dict(zip(GENERATION_MARKS, (start_mark, end_mark), strict=True))
        rendered = self._render(len(self._messages), variables=marks)
        self._check_thoughts(rendered)
        if start_mark in rendered:
            yield from self._marked(rendered.split(start_mark), end_mark)
        else:
            yield from self._compared(rendered)

    def _marked(self, pieces: Sequence[str], end_mark: str) -> Iterator[tuple[str, bool]]:
        assistants = [i for i, message in enumerate(self._messages) if message["role"] == ASSISTANT]
        learned = self._learned
        if len(assistants) != len(pieces) - 1 and learned != set(assistants):
            raise ChatTemplateError(
                f"The chat template has {len(pieces) - 1} generation blocks for {len(assistants)} messages of the "
                "assistant, so it cannot be told which of them are not to be learned."
            )
        yield pieces[0], False
        for number, piece in enumerate(pieces[1:]):
            said, _, rest = piece.partition(end_mark)
            is_learned = learned == set(assistants) or assistants[number] in learned
            if is_learned and len(assistants) == len(pieces) - 1:
                self._check_calls(said, assistants[number])
            yield said, is_learned
            yield rest, False

    def _compared(self, rendered: str) -> Iterator[tuple[str, bool]]:
        place = 0
        for i in sorted(self._learned - {0}):
            asked = self._render(i, add_generation_prompt=True)
            before = self._render(i)
            answered = self._render(i + 1)
            closing = self._closing(before, asked)
            before = before.removesuffix(closing)
            if self._has_end(answered.removesuffix(closing)):
                answered = answered.removesuffix(closing)
            # Some templates end the request for an answer with the beginning of a thought. An answer need not have
            # one, and templates drop it from earlier answers.
            start = min(_common_length(asked, answered), _common_length(asked, rendered))
            if start < len(asked):
                start = min(self._boundary(asked, start), self._boundary(rendered, start))
            least = min(len(before) + 1, len(asked))  # Llama 2's and Mistral's templates ask with nothing
            if start < least:
                start = self._start_of_text(rendered, asked[len(before) :], i)
            end = start + len(self._said(answered[start:]))
            if rendered[:end] != answered[:end] or self._asks_always(before, asked, answered):
                end = self._end_of_turn(rendered, answered[start:end], start, i)
            self._check_calls(rendered[start:end], i)
            yield rendered[place:start], False
            yield rendered[start:end], True
            place = end
        yield rendered[place:], False

    def _asks_always(self, before: str, asked: str, answered: str) -> bool:
        """Tell whether the template asks for another answer behind the last one too, as the first one of Llama 3 does.

        What it asks with stands behind questions and answers alike, and is more than the end of a turn.
        """
        *_, behind = map(str, self._tokenizer.split(answered))
        if before != asked or behind == answered:
            return False
        shared = _common_length(before[::-1], answered[::-1])
        if behind.strip():
            return shared >= len(behind)
        return len(self._tokenizer.split(answered[len(answered) - shared :])) > 1

    def _boundary(self, text: str, place: int) -> int:
        """Move a place that is inside of a control token or of a word to the beginning of that."""
        end = 0
        for part in self._tokenizer.split(text):
            begin, end = end, end + len(part if isinstance(part, str) else self._tokenizer.token_text(part))
            if isinstance(part, int) and begin < place < end:
                return begin
        while 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum():
            place -= 1
        return place

    def _start_of_text(self, rendered: str, prompt: str, number: int) -> int:
        """Find where an answer begins before which later turns write something otherwise: behind its prompt."""
        if self._is_text(number):
            before = self._up_to_mark(number, lambda text, mark: mark + text.lstrip())
            if rendered.startswith(before) and before.endswith(prompt):
                return len(before)
        raise self._rewritten(number)

    def _check_calls(self, said: str, number: int) -> None:
        """Refuse a template that leaves out calls, or what is said beside them: the model would learn to do so."""
        content, calls = self._messages[number].get("content"), self._messages[number].get("tool_calls") or ()
        names = [(call.get("function") or call).get("name", "") for call in calls]
        if not all(name in said for name in names):
            raise ChatTemplateError(
                f"The chat template does not write the tool_calls of messages[{self._own_numbers[number]}]. Take a "
                "chat_template.jinja that does, or leave such conversations out."
            )
        if calls and isinstance(content, str) and content.strip() not in said:  # Llama 3's
            raise ChatTemplateError(
                f"The chat template does not write the content of messages[{self._own_numbers[number]}] beside its "
                "tool_calls. Take a chat_template.jinja that does, or leave that content out (null)."
            )

    def _check_thoughts(self, rendered: str) -> None:
        """Refuse a template that leaves out what the last answer thought; what came before, many drop on purpose."""
        own = max(self._own_numbers.values())
        last = min(number for number in self._own_numbers if self._own_numbers[number] == own)  # before all its calls
        thoughts = {name: self._messages[last].get(name) for name in THOUGHT}
        name, thought = next(((n, t) for n, t in thoughts.items() if isinstance(t, str)), ("", ""))
        is_answered = any(message["role"] == "user" for message in self._messages[last:])
        if last in self._learned and not is_answered and thought.strip() not in rendered:
            raise ChatTemplateError(
                f"The chat template does not write the {name} of messages[{own}]. Take a chat_template.jinja that "
                "does, or write it into the content, or leave it out."
            )

    def _closing(self, before: str, asked: str) -> str:
        """Return what the template puts only behind a conversation that is over: an end token, in Phi's; or ""."""
        before = before.rstrip()
        if not self._has_end(before) or asked.startswith(before):
            return ""
        return self._tokenizer.token_text(int(self._tokenizer.split(before)[-2]))

    def _said(self, answer: str) -> str:
        """Cut off what follows the last control token, if it is white space: the answer ended there."""
        return answer.rstrip() if self._has_end(answer) else answer

    def _has_end(self, text: str) -> bool:
        """Tell whether the last thing in a text, but for white space, is a control token."""
        parts = self._tokenizer.split(text.rstrip())
        return len(parts) > 1 and parts[-1] == ""

    def _end_of_turn(self, rendered: str, answer: str, start: int, number: int) -> int:
        """Find the end of an answer that later turns rewrote: a thought is left out, or its last token is another."""
        if self._is_text(number):
            before = self._up_to_mark(number, lambda text, mark: text.rstrip() + mark)
            between, *rest = self._tokenizer.split(rendered[len(before) :])
            if not rendered.startswith(before) or not rest or str(between).strip():
                raise self._rewritten(number)
            return len(before) + len(str(between)) + len(self._tokenizer.token_text(int(rest[0])))
        last = [part for part in self._tokenizer.split(answer) if isinstance(part, int)][-1:]
        literal = self._tokenizer.token_text(last[0]) if last else ""
        found = rendered.find(literal, start) if literal else -1
        if found < 0:
            raise self._rewritten(number)
        return found + len(literal)

    def _is_text(self, number: int) -> bool:
        message = self._messages[number]
        return isinstance(message.get("content"), str) and not message.get("tool_calls")

    def _up_to_mark(self, number: int, put: Callable[[str, str], str]) -> str:
        """Render all up to a mark that is put to what a message says."""
        message, mark = self._messages[number], _mark()
        marked = {**message, "content": put(message["content"], mark)}
        messages = [*self._messages[:number], marked, *self._messages[number + 1 :]]
        before, found, _ = self._template.render(messages, variables=self._variables).partition(mark)
        if not found:  # the template leaves it out
            raise self._rewritten(number)
        return before

    def _rewritten(self, number: int) -> ChatTemplateError:
        return ChatTemplateError(
            f"The chat template writes messages[{self._own_numbers[number]}] otherwise once there are more messages, "
            "so what the assistant says cannot be found. Put {% generation %} and {% endgeneration %} around it in "
            "chat_template.jinja."
        )

    def _render(
        self, count: int, *, add_generation_prompt: bool = False, variables: Mapping[str, object] | None = None
    ) -> str:
        return self._template.render(
            self._messages[:count],
            add_generation_prompt=add_generation_prompt,
            variables={**self._variables, **(variables or {})},
        )


def _mark() -> str:
    """Make a text that is random, and of private-use characters: no text has it, and no template changes it."""
    return f"\ue002{secrets.randbits(64)}\ue003"


def _common_length(a: str, b: str) -> int:
    """Count the characters at the beginning of two texts that are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
