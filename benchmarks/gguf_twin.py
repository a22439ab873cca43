"""A GGUF file of a checkpoint: the metadata of the file that it came from, and its own weights in float32.

    python benchmarks/gguf_twin.py SmolLM2-135M-Instruct.Q4_1.gguf tuned/best tuned.gguf

For models that are a Llama to llama.cpp, as SmolLM2 is.
"""

from __future__ import annotations

from pathlib import Path

import click
import gguf
import numpy as np

from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.sources import open_checkpoint
from edgelm_export.tensor_map import ROW_ORDERS, pattern_of

# What the writer says itself.
_OWN = (
    "GGUF.version", "GGUF.tensor_count", "GGUF.kv_count",
    "general.architecture", "general.quantization_version", "general.file_type",
)  # fmt: skip


@click.command()
@click.argument("original", type=click.Path(exists=True, path_type=Path))
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def main(original: Path, checkpoint: Path, target: Path) -> None:
    """Write TARGET: ORIGINAL with the weights of CHECKPOINT."""
    layout = ARCHITECTURES["llama"].gguf.layout
    reader, writer = gguf.GGUFReader(original), gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name not in _OWN:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    with open_checkpoint(checkpoint) as source:
        for name in source.config.tensor_shapes():
            tensor = source.tensor(name)
            order = layout.row_orders.get(pattern_of(name)[0].rpartition(".")[0])
            if order is not None:
                # That order takes their rows to ours: its inverse takes ours to theirs.
                tensor = tensor[np.argsort(ROW_ORDERS[order](source.config, len(tensor)))]
            writer.add_tensor(layout.source_name(name), np.ascontiguousarray(tensor, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
