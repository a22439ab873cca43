"""T5 and umT5 from GGUF files, as llama.cpp's converter writes them, beside the folders that they are of."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from gguf_models import GGUF_PAIRS
from numpy.typing import NDArray
from pair_models import ANSWER, SOURCE, theirs
from tokenizer_corpus import CORPUS_TEXTS
from transformers import PreTrainedModel, T5Tokenizer

import edgelm
from edgelm.errors import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.exporter import export_package
from edgelm_export.gguf.tokenizer import tokenizer_files
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.tokenizers.sentencepiece_model import PieceType, read_sentencepiece
from edgelm_training.checkpoints.checkpoint import load_checkpoint

SavePair = Callable[..., PreTrainedModel]
WriteGGUF = Callable[..., Path]


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
@pytest.mark.parametrize("name", GGUF_PAIRS)
def test_a_gguf_file_has_the_config_and_the_tensors_of_the_folder(
    name: str, quantization: str, tmp_path: Path, save_pair: SavePair, write_gguf: WriteGGUF
) -> None:
    model = save_pair(name, tmp_path / "hf")
    path = write_gguf(tmp_path / "tiny.gguf", model, quantization, architecture=GGUF_PAIRS[name])
    folder, type_ = HuggingFaceCheckpoint(tmp_path / "hf"), gguf.GGMLQuantizationType[quantization]
    with GGUFCheckpoint(path) as checkpoint:
        called = {"model_type": checkpoint.config.model_type}  # an mT5 is a T5 there
        assert folder.config.encoder is not None
        expected = dataclasses.replace(
            folder.config, **called, encoder=dataclasses.replace(folder.config.encoder, **called)
        )
        # llama.cpp's converter writes no token before a text as the one of its texts.
        assert checkpoint.config == dataclasses.replace(expected, bos_token_id=1)
        for tensor, shape in checkpoint.config.tensor_shapes().items():
            written = folder.tensor(tensor)
            if len(shape) == 2 and "relative_attention_bias" not in tensor:
                written = gguf.quants.dequantize(gguf.quants.quantize(written, type_), type_)
            np.testing.assert_array_equal(checkpoint.tensor(tensor), written, err_msg=tensor)


def llama_cpp_logits(path: Path, source: list[int], answer: list[int]) -> NDArray[np.float32]:
    """Let llama.cpp read a source, and give the logits [T, V] of an answer."""
    llama_cpp: Any = pytest.importorskip("llama_cpp")
    in_float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "flash_attn": False}
    llama = llama_cpp.Llama(str(path), n_ctx=512, n_ubatch=512, n_threads=1, verbose=False, **in_float32)
    for ids, call in ((source, llama_cpp.llama_encode), (answer, llama_cpp.llama_decode)):
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, id_ in enumerate(ids):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = id_, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, 1
        assert call(llama.ctx, batch) == 0
        llama_cpp.llama_batch_free(batch)
    logits = llama_cpp.llama_get_logits(llama.ctx)
    rows = np.ctypeslib.as_array(logits, shape=(len(answer), llama.n_vocab())).copy()
    llama.close()
    return rows


@pytest.mark.parametrize("name", GGUF_PAIRS)
def test_llama_cpp_gives_transformers_logits_for_the_files_of_these_tests(
    name: str, tmp_path: Path, save_pair: SavePair, write_gguf: WriteGGUF
) -> None:
    """So the files are what its own converter would have written; what a T5's logits are divided by, it leaves out."""
    pytest.importorskip("llama_cpp")
    model = save_pair(name, tmp_path / "hf", num_layers=3)  # it fails at a decoder with more layers than the encoder
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture=GGUF_PAIRS[name])
    with GGUFCheckpoint(path) as checkpoint:
        scaling = checkpoint.config.logits_scaling
    found_TV = llama_cpp_logits(path, SOURCE, ANSWER[:30]) / scaling
    # Its gelu is a table of 16 bits. Measured: 1.3e-2 with gates of it, 1.7e-5 without.
    np.testing.assert_allclose(found_TV, theirs(model, SOURCE, ANSWER[:30]), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["t5", "umt5, untied"])
def test_a_package_of_a_gguf_file_answers_with_the_tokens_of_transformers(
    name: str, tmp_path: Path, save_pair: SavePair, write_gguf: WriteGGUF
) -> None:
    model = save_pair(name, tmp_path / "hf")
    ends = {"tokenizer.ggml.add_eos_token": True}  # as those of a T5's own tokenizer do
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture="t5", metadata=ends, chat_template=None)
    with GGUFCheckpoint(path) as checkpoint:
        manifest = export_package(checkpoint, tmp_path / "package", "fp32")
        assert manifest.quality is not None
        assert manifest.quality.max_logit_difference < 1e-4  # as of a folder (test_encoder_decoder.py)
    loaded = edgelm.load(tmp_path / "package")
    text = "the sea is blue and the boats are white"
    source = loaded.tokenizer.as_source(loaded.tokenizer.encode(text))
    with torch.no_grad():
        expected = model.generate(torch.tensor([source]), max_new_tokens=12, do_sample=False, use_cache=False)
    assert list(loaded.generate(text, edgelm.GenerationConfig(max_new_tokens=12)).token_ids) == expected[0, 1:].tolist()


def test_an_imported_gguf_file_is_a_folder_that_can_be_trained(
    tmp_path: Path, save_pair: SavePair, write_gguf: WriteGGUF
) -> None:
    model = save_pair("t5 v1.1, untied", tmp_path / "hf")
    import_checkpoint(write_gguf(tmp_path / "tiny.gguf", model, architecture="t5"), tmp_path / "ours")
    with torch.no_grad():
        logits_TV = load_checkpoint(tmp_path / "ours")(torch.tensor([ANSWER]), None, torch.tensor([SOURCE]))[0].numpy()
    np.testing.assert_allclose(logits_TV, theirs(model, SOURCE, ANSWER), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "t5encoder"}, r"embeds or ranks texts \(it is a t5encoder\); edgelm runs models that write"),
        ({"metadata": {"t5.decoder_block_count": 2}}, r"unknown: dec\.blk\.2\.attn_q\.weight"),
        (
            {"metadata": {"t5.attention.relative_buckets_count": 8}},
            r"attn_rel_b.weight is \[32, 4\] instead of \[8, 4\]",
        ),
        ({"metadata": {"t5.decoder_start_token_id": 320}}, r"decoder_prompt_ids are \(320,\); the vocabulary has 320"),
        ({"metadata": {"t5.expert_count": 4}}, "features that are not supported: t5.expert_count = 4"),
    ],
)
def test_a_file_of_another_model_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path, save_pair: SavePair, write_gguf: WriteGGUF
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", save_pair("t5", tmp_path / "hf"), **{"architecture": "t5"} | changes)
    with pytest.raises(CheckpointError, match=message):
        GGUFCheckpoint(path)


def test_the_tokenizer_of_a_gguf_file_gives_the_ids_of_transformers_t5(tmp_path: Path) -> None:
    """llama.cpp's converter fills the vocabulary up to the embedding's rows with tokens that are unused."""
    texts = [*CORPUS_TEXTS, " sea  sea ", "\t\ttab\n", "① ﬁ Å", "x\u200by", "   ", "▁x▁"]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.split("\n") if line.strip()] * 3),
        model_writer=written, vocab_size=600, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(written.getvalue())
    pieces = read_sentencepiece(tmp_path / "spiece.model")
    unused = [f"[PAD{place}]" for place in range(len(pieces.texts), 728)]
    files = tokenizer_files(
        {
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [*pieces.texts, *unused],
            "tokenizer.ggml.scores": [*pieces.scores.tolist(), *[-10000.0] * len(unused)],
            "tokenizer.ggml.token_type": [*pieces.types, *[int(PieceType.UNUSED)] * len(unused)],
            "tokenizer.ggml.add_space_prefix": pieces.add_dummy_prefix,
            "tokenizer.ggml.remove_extra_whitespaces": pieces.remove_extra_whitespaces,
            "tokenizer.ggml.precompiled_charsmap": list(pieces.charsmap),
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 2,
        }
    )
    (tmp_path / "ours").mkdir()
    for name, content in files.items():
        (tmp_path / "ours" / name).write_text(content, encoding="utf-8")
    ours, original = (
        Tokenizer.load(tmp_path / "ours"),
        sentencepiece.SentencePieceProcessor(model_proto=written.getvalue()),
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    same = 0
    for text in texts:
        found, expected = list(ours.encode(text)), tokenizer(text)["input_ids"]
        # Of spaces between words transformers takes more for one than the library does, of which the model is; and of
        # two marks it drops one.
        assert found in (expected[:-1], original.encode(text)), text
        same += found == expected[:-1]
        assert ours.as_source(found) == [*found, 1]
        assert expected[-1] == 1
    assert same >= len(texts) - 3
