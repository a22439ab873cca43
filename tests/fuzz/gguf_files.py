"""GGUF files: short ones, and whole models of one layer, in a file or in two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from fuzz import gguf_families, package_files
from fuzz.mutations import mutate_bytes, mutate_json
from fuzz.target import Target, tiny_package

from edgelm.testing import tiny_model_path
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.gguf.file import GGUFFile
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint


def _gguf_seeds(folder: Path) -> list[bytes]:
    return [(write_gguf(folder / f"seed-{kind}.gguf", kind)).read_bytes() for kind in ("F32", "Q8_0")]


_SECOND_PART = "model-00002-of-00002.gguf"


def _second_part_seeds(folder: Path) -> list[bytes]:
    """Leave the first of two parts in the folder, and return second ones."""
    return [write_gguf(folder / "model.gguf", kind, split_max_tensors=6).read_bytes() for kind in ("Q8_0", "F32")]


def write_gguf(path: Path, kind: str, split_max_tensors: int = 0) -> Path:
    """Write a whole model of one layer, with a byte-level tokenizer of 300 tokens; return the last file of it."""
    import gguf

    spec = json.loads((tiny_model_path() / "tokenizer.json").read_text())
    vocabulary = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_max_tensors)
    writer.add_name("tiny")
    for field, value in (("context_length", 64), ("embedding_length", 32), ("block_count", 1), ("head_count", 2)):
        getattr(writer, f"add_{field}")(value)
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(package_files.TEMPLATES[0])
    rows = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    tensors = {f"blk.0.{name}.weight": np.ones((size, 32), np.float32) for name, size in rows.items()}
    tensors["token_embd.weight"] = np.ones((len(vocabulary), 32), np.float32)
    quantized = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        writer.add_tensor(name, gguf.quantize(tensor, quantized), raw_dtype=quantized)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return writer.format_shard_names(path)[-1]


def _short_gguf_seeds(folder: Path) -> list[bytes]:
    import gguf

    seeds = []
    for version in (0, 1):
        writer = gguf.GGUFWriter(folder / f"short-{version}.gguf", "llama")
        writer.add_uint32("a.number", 7)
        writer.add_array("an.array", [1, 2, 3])
        writer.add_array("a.text.array", ["a", "bc"])
        writer.add_bool("a.bool", True)
        writer.add_float32("a.float", 0.5)
        writer.add_tensor("a", np.ones((2, 32), np.float32))
        writer.add_tensor("b", gguf.quantize(np.ones((2, 32), np.float32), gguf.GGMLQuantizationType.Q8_0),
                          raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        seeds.append((folder / f"short-{version}.gguf").read_bytes())
    return seeds


def _read_gguf(folder: Path) -> None:
    with GGUFFile.open(folder / "model.gguf") as file:
        for name in file.tensors:
            file.data(name)


def _read_gguf_checkpoint(folder: Path, file: str = "model.gguf") -> None:
    with GGUFCheckpoint(folder / file) as checkpoint:
        assert checkpoint.text_files
        assert checkpoint.source
        for name in checkpoint.config.tensor_shapes():
            checkpoint.tensor(name)
            checkpoint.quantized_blocks(name)


def _adapter_seeds(folder: Path) -> list[bytes]:
    """Copy the tiny package, and return adapters for it."""
    from gguf_adapters import write_adapter

    (folder / "package").mkdir()
    tiny_package(folder / "package")
    layers = ("blk.0.attn_output.weight", "blk.0.attn_q.weight")
    tensors = {f"{layer}.lora_{part}": np.ones((32, 32), np.float32) for layer in layers for part in "ab"}
    kinds = ("F32", "Q8_0")
    return [write_adapter(folder / f"{kind}.gguf", tensors, "llama", kind).read_bytes() for kind in kinds]


def _export_adapter(folder: Path) -> None:
    try:
        export_adapter(folder / "adapter.gguf", folder / "package", folder / "made")
    finally:
        shutil.rmtree(folder / "made", ignore_errors=True)


ROWS: dict[str, Target] = {
    "gguf-adapter": Target(
        file="adapter.gguf", prepare=_adapter_seeds, mutate=mutate_bytes, read=_export_adapter, count=80,
        long_count=50_000,
    ),
    "gguf": Target(
        file="model.gguf", prepare=_short_gguf_seeds, mutate=mutate_bytes, read=_read_gguf, count=800,
        long_count=1_000_000,
    ),
    "gguf-checkpoint": Target(
        file="model.gguf", prepare=_gguf_seeds, mutate=mutate_bytes, read=_read_gguf_checkpoint, count=100,
        long_count=20_000,
    ),
    "gguf-part": Target(
        file=_SECOND_PART, prepare=_second_part_seeds, mutate=mutate_bytes,
        read=lambda folder: _read_gguf_checkpoint(folder, _SECOND_PART), count=100, long_count=20_000,
    ),
    "gguf-families": Target(
        file="metadata.json", prepare=gguf_families.metadata_of_families, mutate=mutate_json,
        read=gguf_families.read_metadata, count=400, long_count=1_000_000,
    ),
}  # fmt: skip
