"""A trained model with an encoder, fairseq's Transformer from Latin letters to N'Ko, as a folder of an M2M100.

detransliterator 0.0.2 on the Python package index (Moussa Doumbouya, MIT) has its weights, and texts in both scripts.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import save_file

from edgelm.library.catalogue import WheelFile, WheelPart
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.wheel_source import WheelSource

_FOLDER = "detransliterator/assets/latin2nqo_001.35"
_WEIGHTS = WheelFile(
    file_name="checkpoint_best.pt",
    parts=(
        WheelPart(
            package="detransliterator",
            version="0.0.2",
            member=f"{_FOLDER}/checkpoints/checkpoint_best.pt",
            wheel_size=74_297_647,
            wheel_sha256="a5bb046002502481a9c4b2dd39a61527adc14def7592aa365b0a9d2ac2d96d23",
        ),
    ),
    size=30_899_775,
    sha256="0b3f4d9cf64d08a6f2504d81012e0d01eb208e9dfe2d8fe00190b841cbeba1b6",
)
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3 of each of fairseq's two vocabularies
_MARK = "\u2063"  # in front of the answers' pieces, some of which the source has too
_PICKLED = [  # what stands in the file beside tensors
    argparse.Namespace, codecs.encode, np.ndarray, np.dtype, np.dtypes.Int64DType,
    (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
]  # fmt: skip


def fetch_wheel(staging: Path) -> Path:
    """Return the wheel, which is downloaded once and checked by its SHA-256."""
    staging.mkdir(parents=True, exist_ok=True)
    wheel = staging / "detransliterator-0.0.2.whl"
    if not wheel.exists():
        WheelSource(name="detransliterator", file=_WEIGHTS).fetch(staging, FetchOptions())
    return wheel


def parallel_lines(wheel: Path, count: int) -> list[tuple[str, str]]:
    """Return lines of a book's first pages in Latin letters, each with the same line in N'Ko."""
    latin, nko = (
        zipfile.ZipFile(wheel).read(f"detransliterator/assets/test_data/diane_parallel_002.{script}").decode()
        for script in ("emk", "nqo")
    )
    pairs = zip(latin.split("\n"), nko.split("\n"), strict=True)
    return [(a.strip(), b.strip()) for a, b in pairs if 20 < len(a) < 90][:count]


def write_m2m100(wheel: Path, folder: Path) -> list[int]:
    """Write the folder, and return the ids that no answer has: those of the source, which stand in the same embedding.

    M2M100 is fairseq's Transformer with norms in front and sinusoidal positions. It has one vocabulary for both sides:
    the source's pieces come first, then the answers', then what the merges lead to and neither has, which is unknown.
    """
    archive = zipfile.ZipFile(wheel)
    with torch.serialization.safe_globals(_PICKLED):
        stored = torch.load(io.BytesIO(archive.read(_WEIGHTS.parts[0].member)), map_location="cpu", weights_only=True)
    source, answers = (_pieces(archive.read(f"{_FOLDER}/data/dict.{side}.txt").decode()) for side in ("roman", "nqo"))
    vocabulary = {piece: id_ for id_, piece in enumerate([*source, *(_MARK + piece for piece in answers)])}
    size = len(vocabulary)
    lines = archive.read(f"{_FOLDER}/data/bpe.code").decode().split("\n")[1:]
    merges = [tuple(line.split()) for line in lines if line.strip()]
    for first, second in merges:
        for piece in (first, second, first + second):
            vocabulary.setdefault(piece, len(vocabulary))
    _write_weights(stored["model"], len(vocabulary) - size, folder)
    _write_json(folder / "config.json", _config(stored["cfg"]["model"], len(source), len(vocabulary)))
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary, merges))
    first_answer = len(source) + len(_SPECIAL)
    end = len(source) + _SPECIAL.index("</s>")
    return [id_ for id_ in range(len(vocabulary)) if not first_answer <= id_ < size and id_ != end]


def _pieces(dictionary: str) -> list[str]:
    """Return the pieces of one of fairseq's vocabularies as merges write them: no `@@` in a word, `</w>` at its end."""
    pieces = [line.rsplit(" ", 1)[0] for line in dictionary.split("\n") if line.strip()]
    return [*_SPECIAL, *(piece[:-2] if piece.endswith("@@") else f"{piece}</w>" for piece in pieces)]


def _write_weights(tensors: dict[str, torch.Tensor], unknown: int, folder: Path) -> None:
    source, answers = (tensors[f"{stack}.embed_tokens.weight"] for stack in ("encoder", "decoder"))
    unknown_row = source[_SPECIAL.index("<unk>")]
    kept = {
        f"model.{name}": tensor
        for name, tensor in tensors.items()
        if not any(part in name for part in ("embed", "version", "output_projection"))
    }
    kept["model.shared.weight"] = torch.cat([source, answers, unknown_row.expand(unknown, -1)])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def _config(trained: argparse.Namespace, source_size: int, vocab_size: int) -> dict[str, Any]:
    end = source_size + _SPECIAL.index("</s>")
    stacks = {
        f"{stack}_{name}": getattr(trained, f"{stack}_{of_fairseq}")
        for stack in ("encoder", "decoder")
        for name, of_fairseq in (
            ("layers", "layers"), ("attention_heads", "attention_heads"), ("ffn_dim", "ffn_embed_dim"),
        )
    }  # fmt: skip
    return stacks | {
        "model_type": "m2m_100",
        "vocab_size": vocab_size,
        "d_model": trained.encoder_embed_dim,
        "max_position_embeddings": trained.max_source_positions,
        "activation_function": trained.activation_fn,
        "scale_embedding": not trained.no_scale_embedding,
        "pad_token_id": _SPECIAL.index("<pad>"),
        "bos_token_id": _SPECIAL.index("<s>"),
        "eos_token_id": end,
        "decoder_start_token_id": end,
        "is_encoder_decoder": True,
    }


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> dict[str, Any]:
    def replace(text: str, content: str) -> dict[str, Any]:
        return {"type": "Replace", "pattern": {"String": text}, "content": content}

    specials = [*_SPECIAL, *(_MARK + name for name in _SPECIAL)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    end = {"id": "</s>", "ids": [vocabulary["</s>"]], "tokens": ["</s>"]}
    with_end = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    return {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[name], "content": name, "special": True, **flags} for name in specials],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": with_end,
            "pair": with_end,
            "special_tokens": {"</s>": end},
        },
        "decoder": {"type": "Sequence", "decoders": [replace(_MARK, ""), replace("</w>", " ")]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "end_of_word_suffix": "</w>",
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
