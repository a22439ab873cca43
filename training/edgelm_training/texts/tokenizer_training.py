"""Train a byte-level BPE tokenizer, and write the folder that edgelm and transformers read it from."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelm.errors import ConfigError, DataError
from edgelm.files import atomic
from edgelm.package.replaceable import foreign_entry, refuse_to_replace
from edgelm_training.texts.corpus import Progress, SourceFile, find_files, size_of, whole_span, why_empty
from edgelm_training.texts.documents import DocumentConfig, DocumentReader
from edgelm_training.texts.shards import TOKENIZER_FILES

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
PADDING = "<|pad|>"
# Their ids are 0 to 3.
CONTROL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN, PADDING)
# Four times the largest in use. The trainer sets memory aside for all of them, and without it ends the process.
_LARGEST_VOCABULARY = 1 << 20
# GPT-2's pattern, but a combining mark stays with its letter: else texts in Thai or Hindi, or with accents that are
# characters of their own, would break at each mark, and no token could hold a word. One behind a symbol stays with
# that: many emojis end so.
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}[\p{L}\p{M}]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Bytes. Without spaces between words, a token could become as long as the longest text that comes twice.
_LONGEST_TOKEN = 32
_LOOKS_SECONDS = 0.1
_LONGEST_WAIT = 1.0

# ChatML. The block tells training which tokens are the assistant's own: its answer, and the end of its turn.
CHAT_TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- (message['content'] or '') + '<|im_end|>' }}{%- endgeneration %}
{%- else %}
{{- (message['content'] or '') + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """What tokenizer to train.

    vocab_size: tokens at most, the control tokens and the 256 bytes among them; a short text may have fewer that are
    worth a token. control_tokens: more than CONTROL_TOKENS, which no text can spell.

    Raises:
        ConfigError: a value is out of range.
    """

    vocab_size: int = 8192
    control_tokens: tuple[str, ...] = ()
    documents: DocumentConfig = field(default_factory=DocumentConfig)

    def __post_init__(self) -> None:
        names = (*CONTROL_TOKENS, *self.control_tokens)
        # A single character may be what stands for a byte, which then could be in no text.
        if len(set(names)) < len(names) or not all(len(name) > 1 and name.isprintable() for name in names):
            raise ConfigError(
                f"control_tokens are {self.control_tokens}; each must be new, and two or more printable characters."
            )
        smallest = 256 + len(names)
        if not smallest <= self.vocab_size <= _LARGEST_VOCABULARY:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}; it must be from {smallest}, for {len(names)} control tokens and the "
                f"256 bytes, to {_LARGEST_VOCABULARY}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainedTokenizer:
    """What `train_tokenizer` made of how much text; broken: how many documents it left out."""

    folder: Path
    vocab_size: int
    files: int
    documents: int
    characters: int
    broken: int


def train_tokenizer(
    paths: Sequence[str | Path],
    output: str | Path,
    config: TokenizerConfig | None = None,
    *,
    progress: Progress = lambda *_: None,
    merging: Callable[[], None] = lambda: None,
) -> TrainedTokenizer:
    """Train a byte-level BPE on a corpus that is read once, document by document; write a folder, whole or not at all.

    The folder has tokenizer.json, tokenizer_config.json and chat_template.jinja. It splits as GPT-2 does, with each
    digit by itself. The same corpus gives the same bytes.

    progress: is told of the bytes. merging: called when all is read.

    Raises:
        ConfigError: the config's field has nothing to be read from.
        DataError: the corpus is missing, broken or empty, `output` holds something else, or the disk is full.
    """
    config = config or TokenizerConfig()
    output = Path(output)
    files = find_files(paths)
    config.documents.check_fits(files)
    refuse_to_replace(output, _why_not_a_tokenizer, DataError)
    texts = _Texts(files, config.documents, progress, merging)
    try:
        with atomic.replace_folder(output) as staging:  # first: what cannot be written shows before the work
            tokenizer = _trained(texts, config)
            if not texts.documents:
                raise DataError(why_empty(files, texts.broken))
            _write(staging, tokenizer)
    except OSError as error:
        raise DataError(f"Cannot write {output}: {error}. What stood there is as it was.") from error
    return TrainedTokenizer(
        folder=output,
        vocab_size=tokenizer.get_vocab_size(),
        files=len(files),
        documents=texts.documents,
        characters=texts.characters,
        broken=texts.broken,
    )


def _trained(texts: _Texts, config: TokenizerConfig) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*CONTROL_TOKENS, *config.control_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=_LONGEST_TOKEN,
    )
    _beside_this_thread(lambda: tokenizer.train_from_iterator(iter(texts), trainer), texts)
    return tokenizer


def _beside_this_thread(train: Callable[[], None], texts: _Texts) -> None:
    """Run `train` in a thread, so that Ctrl-C ends the wait at once: the library would notice it when all is done.

    What the library still does then is lost, and needs no Python, so the program may end meanwhile.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            train()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_LOOKS_SECONDS)  # not for ever: on Windows no Ctrl-C would end it
    except BaseException:
        texts.stop()
        raise
    if errors:
        raise errors[0]


class _Texts:
    """The texts of a corpus, counted as they pass."""

    def __init__(
        self,
        files: list[SourceFile],
        config: DocumentConfig,
        progress: Progress,
        merging: Callable[[], None],
    ) -> None:
        self._files = files
        self._reader = DocumentReader(config)
        self._progress = progress
        self._merging = merging
        self.documents = 0
        self.characters = 0
        self._is_stopped = False
        self._is_read = threading.Event()

    def stop(self) -> None:
        """Give no more texts, and wait for the thread that reads them: it must not run Python when the program ends."""
        self._is_stopped = True
        self._is_read.wait(_LONGEST_WAIT)  # the library takes 256 texts at once, and long ones keep it busy

    @property
    def broken(self) -> int:
        return self._reader.broken

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._read()
        finally:
            self._is_read.set()

    def _read(self) -> Iterator[str]:
        sizes = [size_of(file) for file in self._files]
        done, total = 0, sum(sizes)
        for file, size in zip(self._files, sizes, strict=True):
            before = self.characters
            for document in self._reader.read(file, whole_span(file)):
                self.documents += 1
                self.characters += len(document.text)
                # Within a file, characters stand for bytes.
                self._progress("Reading", done + min(size, self.characters - before), total)
                yield document.text
                if self._is_stopped:
                    return
            done += size
            self._progress("Reading", done, total)
        self._merging()


def _write(folder: Path, tokenizer: Tokenizer) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    contents = (
        tokenizer.to_str(pretty=True),
        json.dumps(settings, indent=2) + "\n",
        CHAT_TEMPLATE,
    )
    for name, content in zip(TOKENIZER_FILES, contents, strict=True):
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def _why_not_a_tokenizer(folder: Path) -> str | None:
    """Say why `folder` may not be replaced by a tokenizer's; None: it is absent, empty, or one of those."""
    return foreign_entry(folder, TOKENIZER_FILES, "a tokenizer") if folder.is_dir() else None
