"""Package: a model in a folder, ready to be loaded: edgelm's own with its manifest, or another program's."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.arguments import is_whole
from edgelm.config import ModelConfig
from edgelm.errors import PackageError
from edgelm.files.modified import modified
from edgelm.files.regular_file import open_regular
from edgelm.generation_config import GenerationConfig
from edgelm.package.foreign_graph import GENAI_CONFIG, HF_CONFIG, ForeignGraph, find_foreign_graph, read_config
from edgelm.package.graph_file import read_graph
from edgelm.package.manifest import FILE_NAME, FileEntry, Manifest, has_manifest, sha256_of
from edgelm.text.end_token import end_token_ids

_TOKENIZER, _TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
_TEXT_FILES = (
    HF_CONFIG, "generation_config.json", GENAI_CONFIG, _TOKENIZER, _TOKENIZER_CONFIG, "chat_template.jinja",
)  # fmt: skip
_PRECISION = re.compile(r"(?:model|merged)_(quantized|u?int8|q4f16|q4|bnb4|fp16|bf16)")
# What a decoder's sizes are called: our name -> Hugging Face's names, of all families -> onnxruntime-genai's.
_SIZES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "vocab_size": (("vocab_size",), "vocab_size"),
    "hidden_size": (("hidden_size", "n_embd", "d_model", "dim"), "hidden_size"),
    "num_hidden_layers": (("num_hidden_layers", "n_layer", "num_layers", "n_layers"), "num_hidden_layers"),
    "num_attention_heads": (("num_attention_heads", "n_head", "num_heads", "n_heads"), "num_attention_heads"),
    "num_key_value_heads": (("num_key_value_heads", "num_kv_heads", "n_head_kv"), "num_key_value_heads"),
    "head_dim": (("head_dim",), "head_size"),
    "max_position_embeddings": (
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), "context_length",
    ),
}  # fmt: skip


class Package:
    """A model package of edgelm's own. Made by `open_package`.

    modified: when it was written, in seconds since 1970.
    """

    foreign_graph: Path | None = None  # below `folder`, where another program wrote the graph

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.modified = modified(_status(self.last_file))  # now: it may be removed at any time

    @property
    def last_file(self) -> Path:
        """The file that is written last: another package in its place has another one."""
        return self.folder / FILE_NAME

    def check_files(self, *, largest: int) -> list[FileEntry]:
        """Check the files as Manifest.check_files does, and return those that are larger and not hashed."""
        return self.manifest.check_files(self.folder, largest=largest)

    def config(self) -> ModelConfig:
        """Read the features of the Transformer.

        Raises:
            ConfigError, PackageError: the config is missing, broken, or leaves a size out.
        """
        return ModelConfig.load(self.folder)

    def generation_config(self) -> GenerationConfig:
        """Read the defaults of the model's author."""
        return GenerationConfig.load(self.folder, decoder_prompt=len(self.config().decoder_prompt_ids))


class ForeignPackage(Package):
    """A folder of onnxruntime-genai's builder or of Optimum: its manifest is made here, and checks nothing."""

    def __init__(self, found: ForeignGraph) -> None:
        self.foreign_graph: Path = found.graph
        self._graph_path = found.folder / found.graph
        if self._graph_path.is_symlink():
            raise PackageError(
                f"{self._graph_path} is a link, as in the hub's cache; only regular files are run. Download the model "
                "as files: hf download ORG/REPO --local-dir FOLDER"
            )
        if not (found.folder / _TOKENIZER).is_file():
            raise PackageError(
                f"{found.folder} has no tokenizer.json. Write it beside the configs with transformers: "
                "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(FOLDER)"
            )
        self.folder = found.folder
        self.manifest = self._described()
        self.modified = modified(_status(self.last_file))

    @property
    def last_file(self) -> Path:
        """The graph."""
        return self._graph_path

    def check_files(self, *, largest: int) -> list[FileEntry]:
        """There is nothing to check against."""
        return []

    def _described(self) -> Manifest:
        """Describe the folder as a manifest would, with the hashes that its files have now."""
        _, facts = read_graph(self._graph_path)
        names = [self.foreign_graph, *(self.foreign_graph.parent / name for name in sorted(facts.external_files))]
        names += [Path(name) for name in _TEXT_FILES if (self.folder / name).is_file()]
        for name in names:  # what opens them later follows links
            open_regular(self.folder / name).close()
        precision = _PRECISION.search(self.foreign_graph.stem)
        genai = read_config(self.folder / GENAI_CONFIG)
        config = self.config()
        return Manifest(
            name=self.folder.resolve().name,
            architecture=config.model_type,
            context_length=config.max_position_embeddings,
            precision=precision[1] if precision else "not stated",
            recipe=(),
            opsets=facts.opsets,
            files=tuple(_entry(self.folder, name) for name in names),
            source={"format": "onnxruntime-genai" if genai else "onnx"},
            created_by={},
            notes=("A foreign package: without a manifest, nothing of it could be checked.",),
        )

    def config(self) -> ModelConfig:
        """Read the sizes of the Transformer, as far as its graph does not have them.

        What only edgelm's exporter reads of a config keeps its neutral value.

        Raises:
            PackageError: a config is broken, leaves a size out, or is of an encoder-decoder model.
        """
        hf = read_config(self.folder / HF_CONFIG)
        if hf.get("is_encoder_decoder") is True:
            raise PackageError(
                f"{self.folder / HF_CONFIG} says is_encoder_decoder: the graphs here are the halves of an "
                "encoder-decoder model; edgelm runs those that it exported itself: edgelm export CHECKPOINT"
            )
        hf = hf | _section(hf, "text_config")
        model = _section(read_config(self.folder / GENAI_CONFIG), "model")
        genai = model | _section(model, "decoder")
        sizes = _sizes(hf, genai)
        for name, (theirs, genais) in _SIZES.items():
            if name not in sizes:
                raise PackageError(
                    f"{self.folder} does not say {name}: neither {HF_CONFIG} ({', '.join(theirs)}) nor {GENAI_CONFIG} "
                    f"({genais}) has a whole number for it. Add it to {HF_CONFIG}."
                )
        generation = read_config(self.folder / "generation_config.json")
        token_ids = genai | hf | {name: value for name, value in generation.items() if value is not None}
        kv_heads = sizes["num_key_value_heads"]
        sizes["num_attention_heads"] = max(kv_heads, sizes["num_attention_heads"] // kv_heads * kv_heads)
        return ModelConfig(
            model_type=str(hf.get("model_type") or genai.get("type") or "unknown"),
            intermediate_size=sizes["hidden_size"],
            position="none",
            bos_token_id=next(iter(_token_ids(token_ids.get("bos_token_id"))), None),
            eos_token_ids=tuple(dict.fromkeys(_token_ids(token_ids.get("eos_token_id")) + self._own_ends(sizes))),
            **sizes,
        )

    def _own_ends(self, sizes: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the end token of the tokenizer, which a chat model may have as the end of a turn there alone."""
        try:
            ends = end_token_ids(read_config(self.folder / _TOKENIZER_CONFIG), self.folder / _TOKENIZER)
        except OSError as error:
            raise PackageError(f"{self.folder / _TOKENIZER} cannot be read: {error}.") from error
        return tuple(id_ for id_ in ends if id_ < sizes["vocab_size"])

    def generation_config(self) -> GenerationConfig:
        """Read the defaults of the model's author, or of onnxruntime-genai's builder."""
        search = _section(read_config(self.folder / GENAI_CONFIG), "search")
        if (self.folder / "generation_config.json").is_file() or not search.get("do_sample"):
            return GenerationConfig.load(self.folder)
        names = ("temperature", "top_k", "top_p", "repetition_penalty")
        return GenerationConfig(**{"temperature": 1.0} | {name: search[name] for name in names if name in search})


def open_package(path: Path) -> Package:
    """Open what `Library.find` returned: a model package, or the folder or file of a graph that another program wrote.

    Raises:
        PackageError: it is broken, or lacks what a model needs.
    """
    found = _foreign_graph(path)
    return Package(path, Manifest.load(path)) if found is None else ForeignPackage(found)


def folder_of_package(path: Path) -> Path:
    """Return the folder that everything `open_package` opens lies in; of a graph it may be the one above its own."""
    found = _foreign_graph(path)
    return path if found is None else found.folder


def _foreign_graph(path: Path) -> ForeignGraph | None:
    return None if has_manifest(path) else find_foreign_graph(path)


def _sizes(hf: Mapping[str, Any], genai: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes that the configs have, by our names; what is no whole number above 0 is none."""
    sizes: dict[str, Any] = {}
    for name, (theirs, genais) in _SIZES.items():
        for value in (*(hf.get(key) for key in theirs), genai.get(genais)):
            if is_whole(value) and value > 0:
                sizes.setdefault(name, value)
    heads = sizes.get("num_attention_heads")
    if heads is not None:
        sizes.setdefault("num_key_value_heads", 1 if hf.get("multi_query") is True else heads)
        if sizes.get("hidden_size", 0) >= heads:
            sizes.setdefault("head_dim", sizes["hidden_size"] // heads)
    return sizes


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _token_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(id_ for id_ in values if is_whole(id_) and id_ >= 0)


def _entry(folder: Path, name: Path) -> FileEntry:
    path = folder / name
    status = _status(path)
    return FileEntry(path=name.as_posix(), size=status.st_size, sha256=_hash(path, status.st_size, status.st_mtime_ns))


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error}.") from error


@functools.lru_cache(maxsize=1024)
def _hash(path: Path, _size: int, _modified: int) -> str:
    """Hash a file once for each of its states: the server asks with every list of models."""
    return sha256_of(path)
