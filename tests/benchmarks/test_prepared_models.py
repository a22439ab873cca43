"""What is measured: the weights that a step reads, a GGUF file of a checkpoint's weights, and where texts begin."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer as TokenizerOfFile

import prepare
from contestants import CONTESTANTS
from edgelm.config import ModelConfig
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.quantize.calibration_text import bundled_text
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training.checkpoints.checkpoint import save_checkpoint
from edgelm_training.model import Transformer
from edgelm_training.texts.tokenizer_training import TokenizerConfig, train_tokenizer
from gguf_twin import write_first, write_twin
from models import MODELS
from prepare import size_on_disk
from weights import weight_bytes
from workload import PERPLEXITY_TOKENS, QUICK, read_text


def test_each_contestant_has_a_worker_a_peer_and_what_makes_its_model() -> None:
    names = {contestant.name for contestant in CONTESTANTS}
    workers = {path.stem for path in (Path(prepare.__file__).parent / "workers").glob("*.py")}
    for row in CONTESTANTS:
        assert row.engine in workers, row.name
        assert row.baseline in {None, *names}, row.name
        assert row.model in prepare._MAKERS, row.name
        assert row.scored_model in {None, *prepare._MAKERS}, row.name
    assert all(names.issuperset(model.left_out) for model in MODELS.values())


def test_nothing_is_made_for_contestants_that_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_checkpoint", lambda model: tmp_path / "checkpoint")
    monkeypatch.setattr(prepare, "_MAKERS", {name: lambda model, target: target.mkdir() for name in prepare._MAKERS})
    assert prepare.prepare_models("genai-int4", "llama-q8_0-plain") == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"genai-int4", "genai-int4-all-logits", "llama-q8_0.gguf"}


def test_a_step_reads_what_is_multiplied_and_not_what_is_looked_up(tmp_path: Path) -> None:
    weights = {
        "table": np.zeros((100, 8), np.float16),
        "packed": np.zeros((4, 8), np.uint8),
        "scales": np.zeros(4, np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("MatMulNBits", ["rows", "packed", "scales"], ["logits"], domain="com.microsoft"),
        ],
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["T", 4])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert weight_bytes(tmp_path) == 4 * 8 + 4 * 4


def test_a_gguf_file_with_a_head_of_its_own_has_an_embedding_that_is_looked_up(tmp_path: Path) -> None:
    for name, names in {"tied": ["token_embd"], "untied": ["token_embd", "output"]}.items():
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        for tensor in (*names, "blk.0.attn_q"):
            writer.add_tensor(f"{tensor}.weight", np.zeros((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert weight_bytes(tmp_path / name) == 2 * 4 * 32 * 4


def test_the_size_of_a_model_is_that_of_weights_and_graph_without_the_tokenizer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list([f"token {i}" for i in range(1000)])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, size in {"model.onnx": 10, "model.onnx.data": 500, "tokenizer.json": 1000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    assert size_on_disk(tmp_path / "model.gguf") == 4 * 32 * 4
    assert size_on_disk(tmp_path) == 510


def test_a_twin_has_the_shape_and_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "original", "llama")
    writer.add_block_count(30)
    for add in (writer.add_embedding_length, writer.add_feed_forward_length, writer.add_context_length):
        add(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500.0)
    writer.add_vocab_size(320)
    writer.add_token_list([f"token {i}" for i in range(320)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_twin(tmp_path / "original", tiny_model_path(), tmp_path / "twin.gguf")
    with open_checkpoint(tiny_model_path()) as source, open_checkpoint(tmp_path / "twin.gguf") as twin:
        for field in ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "rope_theta"):
            assert getattr(twin.config, field) == getattr(source.config, field)
        for name in source.config.tensor_shapes():
            np.testing.assert_array_equal(twin.tensor(name), source.tensor(name))


def test_a_checkpoint_that_was_trained_from_its_first_weight_on_has_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(bundled_text(), encoding="utf-8")
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "tokenizer", TokenizerConfig(vocab_size=512))
    config = ModelConfig(
        model_type="llama", vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64, norm_eps=1e-6,
        rope_theta=500.0, tie_word_embeddings=True, bos_token_id=0, eos_token_ids=(0, 2),
    )  # fmt: skip
    save_checkpoint(Transformer(config), tmp_path / "trained", text_files_from=tmp_path / "tokenizer")
    write_first(tmp_path / "trained", tmp_path / "trained.gguf")
    with open_checkpoint(tmp_path / "trained") as source, open_checkpoint(tmp_path / "trained.gguf") as written:
        read = written.config
        # A GGUF file has float32, so its epsilon is a neighbour of ours.
        assert dataclasses.replace(read, norm_eps=config.norm_eps) == config
        assert read.norm_eps == pytest.approx(config.norm_eps)
        for name in source.config.tensor_shapes():
            np.testing.assert_array_equal(written.tensor(name), source.tensor(name))
        rebuilt = TokenizerOfFile.from_str(written.text_files["tokenizer.json"])
    original = TokenizerOfFile.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    for text in (bundled_text(), "In 2026: 1,024 + 7\t= x; <|im_end|>"):
        assert rebuilt.encode(text).ids == original.encode(text).ids


def test_prompts_and_windows_begin_with_what_the_author_puts_before_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read_text(tiny_model_path(), QUICK)
    monkeypatch.setattr(Tokenizer, "leading_ids", (1,))
    text = read_text(tiny_model_path(), QUICK)
    for name, ids in text.prompts.items():
        assert ids == [1, *plain.prompts[name][:-1]]
    assert [ids[0] for ids in text.windows] == [1] * QUICK.perplexity_windows
    assert [len(ids) for ids in text.windows] == [PERPLEXITY_TOKENS] * QUICK.perplexity_windows
