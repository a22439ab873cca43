"""ChannelSplitter: the messages of one answer by GPT-OSS, each on a channel, as thinking, text and a call."""

from __future__ import annotations

from edgelm.structure.reasoning_splitter import ReasoningSplitter, first_mark

# What a header may begin with: the prompt ends with <|start|>assistant, and who is called may stand before the channel.
_HEADERS = ("<|start|>", "<|channel|>", "to=functions.")
_CALL = " to=functions."
_BODY = "<|message|>"
_LONGEST_HEADER = 400


class ChannelSplitter(ReasoningSplitter):
    """Take the messages of an answer apart (https://github.com/openai/harmony).

    What is on the channel `analysis` is thought, the rest is text. A call of a function, whose header names it on any
    channel, is text from there on, as ToolCallParser reads it.
    """

    _has_said = False

    def flush(self) -> tuple[str, str]:
        """Return what was held back, as the answer ended; of a message, whose header is not whole, that is nothing."""
        if self._step == self._comment:
            return self._say()
        return super().flush()

    def _begin(self) -> tuple[str, str]:
        core = self._held.lstrip()
        if core.startswith(_HEADERS):
            self._step = self._turn
        elif not any(mark.startswith(core) for mark in _HEADERS):
            self._step = self._think if self._is_open else self._say
        return "", ""

    def _turn(self) -> tuple[str, str]:
        core = self._held.lstrip()
        header, mark, body = core.partition(_BODY)
        if not core.startswith(_HEADERS):
            if not any(mark.startswith(core) for mark in _HEADERS):
                self._held, self._step = core, self._say
        elif mark:
            return self._open(" " + header, body)
        elif len(header) > _LONGEST_HEADER:
            self._step = self._say
        return "", ""

    def _open(self, header: str, body: str) -> tuple[str, str]:
        """Begin with a message's body; return what parts it from one before it."""
        before, call, name = header.partition(_CALL)
        if call:
            self._held, self._step = call + name + _BODY + body, self._say
            return "", ""
        self._held = body
        if "<|channel|>analysis" in before:
            parted, self._has_thought, self._step = self._has_thought, False, self._think
            return "\n\n" if parted else "", ""
        parted, self._has_said = self._has_said, True
        self._step = self._comment if "<|channel|>commentary" in before else self._say
        return "", "\n\n" if parted else ""

    def _comment(self) -> tuple[str, str]:
        place, is_whole = first_mark(self._held, (self._end,))
        said, self._held = self._held[:place], self._held[place:]
        if is_whole:
            self._held, self._step = self._held.removeprefix(self._end), self._turn
        return "", said
