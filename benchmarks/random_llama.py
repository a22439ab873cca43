"""A checkpoint of random weights in SmolLM2-1.7B's shape: where speed and memory matter and what it says does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.hf_config import hf_config
from edgelm.config import ModelConfig
from edgelm_export.checkpoints.safetensors_writer import TensorSpec, write_safetensors

SHAPE = ModelConfig(
    model_type="llama",
    vocab_size=49152,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=64,
    max_position_embeddings=8192,
    rope_theta=130000.0,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)


def write_checkpoint(folder: Path, tokenizer: Path, layers: int = SHAPE.num_hidden_layers) -> None:
    """Write random weights as the hub has them, in bfloat16: no section of ours in config.json.

    tokenizer: a checkpoint folder of SmolLM2-135M, which has the same one.
    """
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    config = dataclasses.replace(SHAPE, num_hidden_layers=layers)
    (folder / "config.json").write_text(json.dumps(hf_config(config), indent=2) + "\n", encoding="utf-8")
    shapes, random = config.tensor_shapes(), np.random.default_rng(0)

    def weights(name: str) -> NDArray[np.float32]:
        if name.endswith("norm.weight"):
            return np.ones(shapes[name], np.float32)
        values = random.standard_normal(shapes[name], np.float32) * np.float32(0.02)
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    specs = {name: TensorSpec(dtype="BF16", shape=shape) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", specs, weights, {})
