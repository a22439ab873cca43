"""Make the tiny model that `edgelm.testing` ships: python tests/make_tiny_model.py

Its weights come from numpy's PCG64 and its tokenizer from the bundled text: a test makes it again and compares.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelm.architecture.hf_config import hf_config
from edgelm.config import SECTION, ModelConfig
from edgelm.testing import tiny_model_path
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.verification.verification_text import verification_text

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)
# Whose rows are whole blocks of 64 and 128.
WIDE = replace(CONFIG, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2)


def make_checkpoint(folder: Path, config: ModelConfig = CONFIG, seed: int = 0) -> Path:
    """Write a checkpoint folder with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.PCG64(seed))
    scale = np.float32(config.hidden_size**-0.5)  # keeps the size of activations through a layer
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        values = random.standard_normal(shape, np.float32) * scale
        is_near_one = "norm.weight" in name or name.endswith(".layer_scalar")
        tensors[name] = values + np.float32(1.0) if is_near_one else values
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config(config) | {SECTION: config.to_dict()}, indent=2))
    (folder / "tokenizer.json").write_text(_tokenizer(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@cache
def _tokenizer() -> str:
    """Train a byte-level BPE: 256 bytes, 61 merges, 3 control tokens. Return its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([verification_text()], trainer)
    return tokenizer.to_str(pretty=True)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = HuggingFaceCheckpoint(make_checkpoint(Path(temporary) / "tiny"))
        print(export_package(checkpoint, tiny_model_path(), "fp32", name="tiny-random").quality)
