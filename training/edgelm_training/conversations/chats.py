"""Chats: conversations as tokens, in memory, with the marks of what is to be learned."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import ChatTemplateError, ConfigError, DataError, TokenizerError
from edgelm.package.manifest import sha256_of
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.assistant_tokens import EncodedConversation, encode_conversation
from edgelm_training.conversations.conversations import Conversation, read_conversations
from edgelm_training.texts.corpus import Progress


@dataclass(frozen=True, kw_only=True)
class Chats:
    """Conversations of one split, encoded with one model's tokenizer and chat template.

    token_ids: of all conversations, one after another (int32). learned: whether a token is one that the assistant says.
    ends: where each conversation ends. places: its file and line. vocab_size, tokenizer_hash: the tokenizer's.
    """

    token_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    ends: NDArray[np.int64]
    places: tuple[tuple[str, int], ...]
    vocab_size: int
    tokenizer_hash: str

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens and marks, in their order."""
        digest = hashlib.sha256(self.tokenizer_hash.encode())
        for array in (self.token_ids, self.learned, self.ends):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return one conversation's tokens and marks."""
        start = int(self.ends[number - 1]) if number else 0
        stop = int(self.ends[number])
        return self.token_ids[start:stop], self.learned[start:stop]


def load_chats(
    paths: Sequence[str | Path],
    model: str | Path,
    *,
    validation_fraction: float = 0.0,
    progress: Progress = lambda *_: None,
) -> tuple[Chats, Chats]:
    """Read conversations (`read_conversations`) and encode them for a model; return the train and validation splits.

    model: a folder with tokenizer.json and chat_template.jinja. validation_fraction: the share that is kept out of
    training, chosen by a hash of what is said; above 0 it is one conversation at least, if there are two that differ.

    Raises:
        DataError: there is no conversation, or one is broken; the message begins with its file and line.
        ChatTemplateError: the folder has no chat template, or a broken one.
        TokenizerError: the tokenizer cannot be read.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.
    """
    conversations = list(read_conversations(paths, progress=progress))
    if not conversations:
        raise DataError(f"There is no conversation in {', '.join(map(str, paths))}.")
    groups = [(conversation,) for conversation in conversations]
    return encode_chats(groups, model, validation_fraction=validation_fraction, progress=progress)


def encode_chats(
    groups: Sequence[tuple[Conversation, ...]],
    model: str | Path,
    *,
    validation_fraction: float,
    progress: Progress = lambda *_: None,
) -> tuple[Chats, Chats]:
    """Encode conversations for a model, and split them by what the first of each group says; groups stay whole.

    Raises:
        DataError, ChatTemplateError, TokenizerError: as `load_chats`.
    """
    tokenizer = Tokenizer.load(model)
    template = ChatTemplate.load(model)
    if template is None:
        raise ChatTemplateError(
            f"{model} has no chat_template.jinja, so nothing says how to write a conversation. Put one there: "
            "docs/guides/finetune.md has one for models that know no control tokens."
        )
    encoded: list[list[EncodedConversation]] = []
    for number, group in enumerate(groups, start=1):
        progress("Encoding", number, len(groups))
        encoded.append([_encode(template, tokenizer, conversation) for conversation in group])
    return split_chats(groups, encoded, tokenizer, model, validation_fraction)


def split_chats(
    groups: Sequence[tuple[Conversation, ...]],
    encoded: Sequence[Sequence[EncodedConversation]],
    tokenizer: Tokenizer,
    model: str | Path,
    validation_fraction: float,
) -> tuple[Chats, Chats]:
    """Split encoded conversations by what the first of each group says; groups stay whole.

    Raises:
        DataError: all of them went to the validation split.
    """
    tokenizer_hash = sha256_of(Path(model) / "tokenizer.json")
    hashes = [group[0].hash for group in groups]
    held_out = {number for number, hash_ in enumerate(hashes) if hash_ < validation_fraction * (1 << 64)}
    copies = Counter(hashes)
    if validation_fraction and not held_out and len(copies) > 1:
        rarest = min(copies, key=lambda hash_: (copies[hash_], hash_))  # one that stands often is most of a small file
        held_out = {number for number, hash_ in enumerate(hashes) if hash_ == rarest}
    if len(held_out) == len(hashes):
        raise DataError(
            f"All conversations ({len(hashes)}) went to the validation split; choose a validation_fraction below "
            f"{validation_fraction}."
        )

    def select(numbers: Sequence[int]) -> Chats:
        chosen = [one for i in numbers for one in encoded[i]]
        return Chats(
            token_ids=np.concatenate([np.zeros(0, np.int32), *(np.array(one.token_ids, np.int32) for one in chosen)]),
            learned=np.concatenate([np.zeros(0, bool), *(np.array(one.learned, bool) for one in chosen)]),
            ends=np.cumsum([len(one.token_ids) for one in chosen], dtype=np.int64),
            places=tuple((one.file, one.line) for i in numbers for one in groups[i]),
            vocab_size=tokenizer.vocab_size,
            tokenizer_hash=tokenizer_hash,
        )

    everything = range(len(hashes))
    return select([i for i in everything if i not in held_out]), select(sorted(held_out))


def _encode(template: ChatTemplate, tokenizer: Tokenizer, conversation: Conversation) -> EncodedConversation:
    try:
        encoded = encode_conversation(template, tokenizer, conversation)
    except (ChatTemplateError, ConfigError, TokenizerError) as error:
        raise DataError(f"{conversation.place}: {error}") from error
    if not any(encoded.learned):
        raise DataError(f"{conversation.place}: the chat template leaves nothing of the assistant to learn.")
    return encoded
