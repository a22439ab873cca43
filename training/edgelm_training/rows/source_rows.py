"""Source rows: pairs of a source text and its answer, which teach a model with an encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import DataError, TokenizerError
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.assistant_tokens import EncodedConversation
from edgelm_training.conversations.chats import Chats, split_chats
from edgelm_training.conversations.conversations import ASSISTANT, Conversation, read_conversations
from edgelm_training.rows.batches import NO_TARGET, PADDING, Batch, describe_places
from edgelm_training.rows.row_order import row_at


def load_pairs(
    paths: Sequence[str | Path],
    model: str | Path,
    config: ModelConfig,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    validation_fraction: float = 0.0,
) -> tuple[Chats, Chats]:
    """Read what people ask and assistants answer (`read_conversations`), and encode it for a model with an encoder.

    Each pair becomes one text: the source, what the decoder begins with, the answer; the answer alone is learned. The
    answer is encoded as transformers does it, between the tokens that the tokenizer puts around a text. config: the
    model's, which begins with the target language where it has languages (`Languages.config_for`).

    Raises:
        ConfigError: there is no such language.
        DataError: there is no pair, or one is broken; the message begins with its file and line.
        TokenizerError: the tokenizer cannot be read.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.
    """
    conversations = list(read_conversations(paths))
    if not conversations:
        raise DataError(f"There is no pair of source and answer in {', '.join(map(str, paths))}.")
    tokenizer = Tokenizer.load(model)
    languages = Languages(tokenizer, config)
    encode_source = partial(languages.source_ids, source=source_language, target=target_language)
    encoded = [[_encode(encode_source, languages, config, conversation)] for conversation in conversations]
    return split_chats([(one,) for one in conversations], encoded, tokenizer, model, validation_fraction)


def _encode(
    encode_source: Callable[[str], Sequence[int]], languages: Languages, config: ModelConfig, conversation: Conversation
) -> EncodedConversation:
    messages = conversation.messages
    if [message["role"] for message in messages] != ["user", ASSISTANT]:
        raise DataError(
            f"{conversation.place}: a model with an encoder learns from one text and its answer, such as "
            '{"prompt": …, "completion": …}; this has '
            f"{', '.join(str(message['role']) for message in messages)}."
        )
    try:
        source = encode_source(messages[0]["content"])
        answer = languages.answer_ids(messages[1]["content"])
    except TokenizerError as error:
        raise DataError(f"{conversation.place}: {error}") from error
    if answer[:1] == [config.forced_bos_token_id]:
        answer = answer[1:]  # the decoder begins with it
    if not answer or answer[-1] not in config.eos_token_ids:
        answer = [*answer, *config.eos_token_ids[:1]]
    before = [*source, *config.decoder_prompt_ids]
    return EncodedConversation(token_ids=[*before, *answer], learned=[False] * len(before) + [True] * len(answer))


class SourceRows:
    """Give each pair as a row of its own, shuffled anew in each epoch; both texts are padded to the batch's longest.

    chats: as `load_pairs` gives them. begin: how many tokens the decoder begins with. A pair with a text of more than
    `sequence_length` tokens is left out; `left_out` has the numbers of those. kinds, chats_each: as of `ChatRows`.

    Raises:
        DataError: there are no pairs, or none of them fits.
    """

    kinds = ("pair of source and answer", "pairs of source and answer")
    chats_each = 1

    def __init__(self, chats: Chats, *, sequence_length: int, seed: int, begin: int) -> None:
        self.chats, self.sequence_length, self.seed, self._begin = chats, sequence_length, seed, begin
        longest = np.array([max(map(len, self._texts(number))) for number in range(len(chats))])
        self.left_out = tuple(np.flatnonzero(longest > sequence_length).tolist())
        self._pairs = np.flatnonzero(longest <= sequence_length).tolist()
        if not self._pairs:
            raise DataError(
                f"No pair of source and answer fits into sequence_length {sequence_length}; the shortest needs "
                f"{longest.min(initial=0)} tokens."
            )
        self.rows_per_epoch = len(self._pairs)

    def batch(self, first: int, count: int) -> Batch:
        """Return pairs first to first + count - 1 of the endless sequence."""
        pairs = [self._texts(self._pair(first + place)) for place in range(count)]
        sources, answers = (list(texts) for texts in zip(*pairs, strict=True))
        targets_BT = _padded([answer[1:] for answer in answers], NO_TARGET)
        targets_BT[:, : self._begin - 1] = NO_TARGET
        return Batch(
            ids_BT=torch.from_numpy(_padded([answer[:-1] for answer in answers], 0)),
            targets_BT=torch.from_numpy(targets_BT),
            documents_BT=None,
            sources_BS=torch.from_numpy(_padded(sources, PADDING)),
        )

    def describe(self, row: int) -> str:
        """Name the file and the line of a pair."""
        return ", ".join(describe_places([self.chats.places[self._pair(row)]]))

    def _texts(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return a pair's source, and what the decoder begins with and its answer."""
        ids, learned = self.chats[number]
        start = int(learned.argmax()) - self._begin
        return ids[:start], ids[start:]

    def _pair(self, row: int) -> int:
        return self._pairs[row_at(row, self.rows_per_epoch, seed=self.seed)]


def _padded(texts: Sequence[NDArray[np.int32]], filling: int) -> NDArray[np.int64]:
    rows = np.full((len(texts), max(map(len, texts))), filling, np.int64)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = text
    return rows
