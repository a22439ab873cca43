"""Files of a checkpoint folder: found inside it alone, and read with errors that name them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError, TokenizerError
from edgelm.files import lfs_pointer, regular_file
from edgelm.text.chat_template import named_templates, template_of
from edgelm.text.end_token import end_token_ids
from edgelm.text.tokenizer_trial import MAX_BYTES, try_tokenizer
from edgelm_export.tokenizers.blenderbot_small_tokenizer import blenderbot_small_files, is_blenderbot_small
from edgelm_export.tokenizers.byt5_tokenizer import BYT5, byt5_files
from edgelm_export.tokenizers.byte_level_folder import (
    BYTE_LEVEL_FILES,
    MERGES,
    MODEL_CONFIG,
    SETTINGS_FILES,
    SPECIAL_TOKENS,
    VOCABULARY,
    byte_level_files,
    tokenizer_class,
)
from edgelm_export.tokenizers.marian_tokenizer import MARIAN_FILES, marian_files
from edgelm_export.tokenizers.renumbered_tokenizer import RENUMBERED_FILES, renumbered_class, renumbered_files
from edgelm_export.tokenizers.sentencepiece_folder import SENTENCEPIECE_FILES, sentencepiece_files
from edgelm_export.tokenizers.tekken_folder import NO_TEMPLATE, TEKKEN, tekken_files
from edgelm_export.tokenizers.tiktoken_folder import TIKTOKEN_CLASSES, TIKTOKEN_FILES, tiktoken_file, tiktoken_files
from edgelm_export.tokenizers.tokenizer_json import (
    ADDED_TOKENS,
    TOKENIZER,
    TOKENIZER_CONFIG,
    class_name,
    json_text,
    token_named,
)
from edgelm_export.tokenizers.translator_class import with_source_language

CHAT_TEMPLATE, GENERATION_CONFIG = "chat_template.jinja", "generation_config.json"
# Where transformers keeps a processor's template, and those that have names.
PROCESSOR_TEMPLATE, NAMED_TEMPLATES = "chat_template.json", "additional_chat_templates"
_FOR_TOOLS = "tool_use.jinja"
_MOST_NAMES = 5
# What may be larger than a file of settings: in bytes, and in values. The largest vocabulary of both files in use has
# 151,643 tokens in 2.8 MB; Mistral's of 150,000 tokens has 19 MB, and four values for each.
_LARGER = {TOKENIZER: MAX_BYTES, TEKKEN: 32 << 20, **dict.fromkeys(BYTE_LEVEL_FILES, 4 << 20)}
_MORE_VALUES = {VOCABULARY: 1 << 18, TEKKEN: 1 << 20}


def file_inside(folder: Path, name: str) -> Path:
    """Return the path of a file that lies in the folder.

    A link out of the folder is followed only in Hugging Face's cache, from `snapshots/<revision>/` to `blobs/`.

    Raises:
        CheckpointError: `name` is not a plain file name, the file is missing or cannot be read, or it is a link to
            elsewhere or a pointer of git-lfs.
    """
    check_file_name(folder, name)
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Download the model again.")
    home, real = folder.resolve(), path.resolve()
    allowed = [home]
    snapshot = home.parent if home.name == NAMED_TEMPLATES else home
    if snapshot.parent.name == "snapshots":
        allowed.append(snapshot.parent.parent / "blobs")
    if real.parent not in allowed:
        raise CheckpointError(f"{path} is a link to {real}, outside the folder. Replace it by the file itself.")
    try:
        with path.open("rb") as file:
            is_pointer = lfs_pointer.is_pointer(file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if is_pointer:
        raise CheckpointError(f"{path} {lfs_pointer.EXPLANATION}")
    return path


def check_file_name(folder: Path, name: str) -> None:
    """Check that a file that the folder speaks of can only lie in it.

    Raises:
        CheckpointError: `name` is not a plain file name.
    """
    if Path(name).name != name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} lists the file {name!r}; only plain file names inside the folder are allowed.")


def read_text(folder: Path, name: str) -> str:
    """Read a UTF-8 text file of the folder.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not UTF-8.
    """
    path = file_inside(folder, name)
    try:
        return regular_file.read_text(path, _LARGER.get(name, regular_file.MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file of the folder.

    Raises:
        CheckpointError: it is missing, is not JSON, or holds something else than an object.
    """
    return parse_json_object(read_text(folder, name), folder / name)


def parse_json_object(text: str, path: Path) -> dict[str, Any]:
    """Parse the JSON object that `path` holds.

    Raises:
        CheckpointError: it is not JSON, something else than an object, or has more values than are read.
    """
    try:
        values = regular_file.bounded_json(text, _MORE_VALUES.get(path.name, regular_file.MAX_JSON_VALUES))
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; it must be a JSON object.")
    return values


def read_text_files(folder: Path) -> dict[str, str]:
    """Read the tokenizer and its companions, the chat template as a file of its own.

    Raises:
        CheckpointError: there is neither tokenizer.json nor what it is built of, or one of them cannot be read.
    """
    is_there = (folder / TOKENIZER).exists()
    files = {} if is_there else _rebuilt_tokenizer(folder)
    for name in (TOKENIZER, CHAT_TEMPLATE, GENERATION_CONFIG):
        if name not in files and (folder / name).exists():
            files[name] = read_text(folder, name)
    if GENERATION_CONFIG in files:
        parse_json_object(files[GENERATION_CONFIG], folder / GENERATION_CONFIG)
    config = _settings(folder) if is_there else parse_json_object(files[TOKENIZER_CONFIG], folder / TOKENIZER_CONFIG)
    template = template_of(_chat_templates(folder, config, files))
    if template is not None:
        files[CHAT_TEMPLATE] = template
    if config:
        if not isinstance(config.get("chat_template"), (list, dict)):  # several, by name, stay listed
            config.pop("chat_template", None)
        files[TOKENIZER_CONFIG] = json_text(config)
    for name, content in files.items():
        try:
            content.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell what no file can hold
            raise CheckpointError(f"{folder}: {name} would hold half of a surrogate pair ({error}).") from error
    text = files[TOKENIZER]
    if len(text) <= regular_file.MAX_JSON_BYTES and regular_file.json_values(text) <= regular_file.MAX_JSON_VALUES:
        parse_json_object(text, folder / TOKENIZER)
    else:  # parsing it here could take gigabytes
        try:
            try_tokenizer(text.encode("utf-8"), folder / TOKENIZER)
        except TokenizerError as error:
            raise CheckpointError(str(error)) from error
    return files | {TOKENIZER: with_source_language(text, config, folder)}


def _settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, with the tokens that older folders name in special_tokens_map.json alone."""
    config = read_json_object(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    if "added_tokens_decoder" in config or not (folder / SPECIAL_TOKENS).exists():
        return config
    older = read_json_object(folder, SPECIAL_TOKENS)
    tokens = {key: token_named(older, key) for key in older if key.endswith("_token")}
    return config | {key: token for key, token in tokens.items() if token is not None}


def tokenizer_ends(folder: Path) -> tuple[int, ...]:
    """Return the id of the end token that the tokenizer's settings name, if the folder lists it among the added tokens.

    Older folders without tokenizer.json list them in a file of their own.

    Raises:
        CheckpointError: a file cannot be read.
    """
    settings = _settings(folder)
    if (folder / TOKENIZER).exists():
        return end_token_ids(settings, file_inside(folder, TOKENIZER))
    if (folder / ADDED_TOKENS).exists() and not settings.get("added_tokens_decoder"):
        added = read_json_object(folder, ADDED_TOKENS)
        settings["added_tokens_decoder"] = {id_: {"content": token} for token, id_ in added.items()}
    return end_token_ids(settings, folder / TOKENIZER)


def _rebuilt_tokenizer(folder: Path) -> dict[str, str]:
    """Make tokenizer.json and its settings of what the folder has in its place."""
    if all((folder / name).exists() for name in MARIAN_FILES):
        source, vocabulary = MARIAN_FILES
        return marian_files(file_inside(folder, source), read_json_object(folder, vocabulary))
    settings = {name: read_json_object(folder, name) for name in SETTINGS_FILES if (folder / name).exists()}
    if (folder / TEKKEN).exists():
        return tekken_files(folder / TEKKEN, read_json_object(folder, TEKKEN), settings)
    config, added, model_config = (settings.get(name, {}) for name in (TOKENIZER_CONFIG, ADDED_TOKENS, MODEL_CONFIG))
    if class_name(config, model_config) == BYT5:
        return byt5_files(folder, config, added)
    renumbered = renumbered_class(config, model_config)
    read_vocabulary = functools.partial(read_json_object, folder, VOCABULARY)
    model = next((name for name in RENUMBERED_FILES if (folder / name).exists()), None)
    if renumbered is not None and model is not None:
        return renumbered_files(renumbered, file_inside(folder, model), config, added, read_vocabulary)
    model = next((name for name in SENTENCEPIECE_FILES if (folder / name).exists()), None)
    if model is not None and str(config.get("tokenizer_class")) not in TIKTOKEN_CLASSES:
        return sentencepiece_files(file_inside(folder, model), config, added)
    model = model or tiktoken_file(folder)
    if model is not None:
        return tiktoken_files(file_inside(folder, model), settings)
    if not any((folder / name).exists() for name in BYTE_LEVEL_FILES):
        raise CheckpointError(
            f"{folder} has no {TOKENIZER}, no {SENTENCEPIECE_FILES[0]}, no {TEKKEN}, no {TIKTOKEN_FILES[0]}, and no "
            f"{VOCABULARY} with {MERGES}; edgelm needs one of them. Save the tokenizer there with transformers: "
            'AutoTokenizer.from_pretrained(...).save_pretrained("folder")'
        )
    if is_blenderbot_small(settings):
        return blenderbot_small_files(folder, read_vocabulary(), read_text(folder, MERGES), settings)
    class_ = tokenizer_class(folder, settings)
    return byte_level_files(class_, folder, read_vocabulary(), read_text(folder, MERGES), settings)


def _chat_templates(folder: Path, config: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, str]:
    """Return the chat templates of a folder by name: one that is a file counts, and not those in its settings."""
    templates = {"default": files[CHAT_TEMPLATE]} if CHAT_TEMPLATE in files else named_templates(config)
    if (folder / NAMED_TEMPLATES / _FOR_TOOLS).exists():
        templates["tool_use"] = read_text(folder / NAMED_TEMPLATES, _FOR_TOOLS)
    return templates


def processor_template(folder: Path) -> str | None:
    """Read the chat template that a model which also reads images may have beside its processor's settings.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if not (folder / PROCESSOR_TEMPLATE).exists():
        return None
    template = read_json_object(folder, PROCESSOR_TEMPLATE).get("chat_template")
    return template if isinstance(template, str) else None


def notes_on_template(folder: Path, files: Mapping[str, str]) -> tuple[str, ...]:
    """Say which chat templates of the folder are not used where none is: transformers' AutoTokenizer uses none either.

    files: what `read_text_files` gave for the folder.
    """
    way_out = f"Put the one you mean into {CHAT_TEMPLATE} of the source's folder."
    in_files = [path.stem for path in (folder / NAMED_TEMPLATES).glob("*.jinja")]
    notes = notes_on_names(files, way_out, in_files)
    if notes or CHAT_TEMPLATE in files:
        return notes
    if (folder / PROCESSOR_TEMPLATE).exists():
        what = f"{PROCESSOR_TEMPLATE} is a processor's, which the tokenizer does not read"
        return (f"It has no chat template: {what}. {way_out}",)
    return (f"It has no chat template: {NO_TEMPLATE}",) if (folder / TEKKEN).exists() else ()


def notes_on_names(files: Mapping[str, str], way_out: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Say which chat templates of these files, and more, are not used where none is: each has a name of its own."""
    names = sorted({*named_templates(json.loads(files.get(TOKENIZER_CONFIG, "{}"))), *more})
    if CHAT_TEMPLATE in files or not names:
        return ()
    listed = ", ".join(f"{name!r:.40}" for name in names[:_MOST_NAMES])
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (f"It has no chat template: of {listed}{rest} none is called 'default'. {way_out}",)
