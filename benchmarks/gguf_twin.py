"""A GGUF file of a checkpoint: its own shape, weights in float32, and the metadata of the file that it came from.

    python benchmarks/gguf_twin.py SmolLM2-135M-Instruct.Q4_1.gguf tuned/best tuned.gguf

For models that are a Llama to llama.cpp, as SmolLM2 is. One that came from no file has a tokenizer by `edgelm tokenizer
train`, whose metadata are written instead (write_first).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import click
import gguf
import numpy as np

from edgelm.config import ModelConfig
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.checkpoints.tensor_map import ORDERS, pattern_of
from edgelm_export.sources.sources import open_checkpoint

# What the writer says itself.
_OWN = (
    "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count",
    "general.architecture", "general.quantization_version", "general.file_type",
)  # fmt: skip


def write_twin(original: Path, checkpoint: Path, target: Path) -> None:
    """Write `target`: the metadata of the file `original`, with the shape and the weights of a checkpoint folder."""

    def add_metadata(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
        own = _shape(config)
        for field in gguf.GGUFReader(original).fields.values():
            if field.name not in _OWN:
                inner = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, own.get(field.name, field.contents()), field.types[0], inner)

    _write(checkpoint, target, add_metadata)


def write_first(checkpoint: Path, target: Path) -> None:
    """Write `target`: a checkpoint folder that came from no file, with a tokenizer by `edgelm tokenizer train`."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, control = tokenizer["model"]["vocab"], {token["id"] for token in tokenizer["added_tokens"]}
    kinds = [gguf.TokenType.CONTROL if id_ in control else gguf.TokenType.NORMAL for id_ in sorted(vocabulary.values())]

    def add_metadata(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
        for key, value in _shape(config).items():
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(key, value)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")  # splits English as ours do: digits one by one, the rest as GPT-2
        writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
        writer.add_token_types(kinds)
        writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
        if config.bos_token_id is not None:
            writer.add_bos_token_id(config.bos_token_id)
        writer.add_eos_token_id(config.eos_token_ids[0])

    _write(checkpoint, target, add_metadata)


def _write(checkpoint: Path, target: Path, add_metadata: Callable[[gguf.GGUFWriter, ModelConfig], None]) -> None:
    layout = ARCHITECTURES["llama"].gguf.layout
    writer = gguf.GGUFWriter(target, "llama")
    with open_checkpoint(checkpoint) as source:
        config, shapes = source.config, source.config.tensor_shapes()
        add_metadata(writer, config)
        for name, shape in shapes.items():
            writer.add_tensor_info(layout.source_name(name), shape, np.dtype(np.float32), 4 * math.prod(shape))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in shapes:
            tensor = source.tensor(name)
            order = layout.row_orders.get(pattern_of(name)[0].rpartition(".")[0])
            if order is not None:
                # That order takes their rows to ours: its inverse takes ours to theirs.
                tensor = tensor[np.argsort(ORDERS[order](config, len(tensor)))]
            writer.write_tensor_data(np.ascontiguousarray(tensor, np.float32))
        writer.close()


def _shape(config: ModelConfig) -> dict[str, int | float]:
    """Return what llama.cpp must know of the shape; what else it reads is the same in both."""
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_theta,
    }


@click.command()
@click.argument("original", type=click.Path(exists=True, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def main(original: Path, checkpoint: Path, target: Path) -> None:
    """Write TARGET: ORIGINAL with the shape and the weights of CHECKPOINT."""
    write_twin(original, checkpoint, target)


if __name__ == "__main__":
    main()
