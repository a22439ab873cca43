"""The token that a chat template ends an answer with: a model that learned to say it is to stop behind it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgelm.errors import ChatTemplateError, TokenizerError
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.assistant_tokens import encode_conversation
from edgelm_training.conversations.conversations import ASSISTANT, Conversation

_PROBE = Conversation(
    messages=({"role": "user", "content": "Hi"}, {"role": ASSISTANT, "content": "Hello!"}),
    learned=frozenset({1}),
    file="",
    line=0,
)


def with_end_of_answers(end_ids: Iterable[int], folder: str | Path) -> tuple[int, ...]:
    """Return the tokens that end a text, and behind them the one that the folder's chat template ends an answer with.

    Tokenizers often have one for each (`<|endoftext|>`, `<|im_end|>`), and a base model knows the first alone. Without
    a template, or where answers end in no control token, there is none to add. A template that fails is for whoever
    encodes conversations with it, and can name their place.
    """
    end_ids = tuple(end_ids)
    try:
        template = ChatTemplate.load(folder)
        if template is None:
            return end_ids
        tokenizer = Tokenizer.load(folder)
        encoded = encode_conversation(template, tokenizer, _PROBE)
    except (ChatTemplateError, TokenizerError):
        return end_ids
    learned = [id_ for id_, is_learned in zip(encoded.token_ids, encoded.learned, strict=True) if is_learned]
    said = [id_ for id_ in learned if tokenizer.token_text(id_).strip()]  # a line's end may follow the answer's
    return tuple(dict.fromkeys((*end_ids, *(id_ for id_ in said[-1:] if id_ in tokenizer.control_token_ids))))
