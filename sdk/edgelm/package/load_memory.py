"""How much memory a model takes when it is loaded."""

from __future__ import annotations

import math

from edgelm.architecture.tensor_shapes import tensor_shapes
from edgelm.config import ModelConfig
from edgelm.package.graph_file import DATA_FILE, PREFILL_DATA_FILE
from edgelm.package.manifest import Manifest

_LARGEST_NUMBER = 4  # bytes of a float32
_EMBEDDING = "model.embed_tokens.weight"
# ONNX Runtime makes three float32 of each scale of 16 bits: itself, one in the packed weights, and a sum of its block.
_BYTES_OF_SCALE = 2, 12
_BLOCK = 64
# ONNX Runtime itself, the graph's nodes and what is freed again; and a tokenizer for each byte of its file.
_BESIDE_WEIGHTS = 32 << 20
_TOKENIZER_FACTOR = 10


def memory_to_load(manifest: Manifest, config: ModelConfig, *, prefill_graph: bool) -> int:
    """Estimate the bytes that a load on a CPU takes at its peak, without what memory maps of files.

    Rows of tables stay in the file. SmolLM2-135M in int8 (139 MB of weights): 209 MB; its load was killed where it
    could have 205 MB, and went through with 215. What of a head is read for a shortlist alone stays there too, and is
    counted, half a byte a weight: no manifest says whether a head has one. prefill_graph: whether one that reads
    prompts is loaded too.
    """
    tensors = {name: math.prod(shape) for name, shape in tensor_shapes(config).items()}
    in_file = sum(entry.size for entry in manifest.files if entry.path == DATA_FILE)
    tokenizer = sum(entry.size for entry in manifest.files if entry.path == "tokenizer.json")
    head = _EMBEDDING if config.tie_word_embeddings else None
    table = sum(n for name, n in tensors.items() if "embed_tokens" in name and name != head)
    rest = sum(tensors.values()) - table
    if manifest.precision in ("fp16", "bf16"):
        weights = _LARGEST_NUMBER * rest
    elif in_file < 2 * sum(tensors.values()):  # quantized, tables to a byte
        stored, loaded = _BYTES_OF_SCALE
        weights = in_file - table + (loaded - stored) * rest // _BLOCK
    else:
        weights = in_file - _LARGEST_NUMBER * table
    if prefill_graph:
        weights += sum(entry.size for entry in manifest.files if entry.path == PREFILL_DATA_FILE)
    return max(0, weights) + _BESIDE_WEIGHTS + _TOKENIZER_FACTOR * tokenizer
