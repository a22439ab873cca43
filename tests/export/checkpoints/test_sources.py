from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from edgelm.errors import CheckpointError, ModelNotFoundError
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.sources import open_checkpoint

SaveLlama = Callable[..., LlamaForCausalLM]
WriteGGUF = Callable[..., Path]

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69\nsize 269060552\n"


def test_a_checkpoint_is_opened_by_what_is_on_disk_whatever_its_name(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    save_llama(tmp_path / "sharded", max_shard_size="100KB")
    (tmp_path / "downloaded").mkdir()
    write_gguf(tmp_path / "downloaded" / "tiny.gguf", model)
    renamed = write_gguf(tmp_path / "blob-123", model)
    for path in (renamed, tmp_path / "downloaded"):
        with open_checkpoint(path) as checkpoint:
            assert isinstance(checkpoint, GGUFCheckpoint)
    for path in (tmp_path / "hf", tmp_path / "sharded"):
        with open_checkpoint(path) as checkpoint:
            assert isinstance(checkpoint, HuggingFaceCheckpoint)


def test_nothing_at_the_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"There is no file or folder .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(
        ModelNotFoundError, match=r"no file or folder Org/Model. From .* hub: edgelm pull hf:Org/Model$"
    ):
        open_checkpoint(Path("Org/Model"))
    with pytest.raises(ModelNotFoundError, match=r"There is no model at .*x': .*File name too long"):
        open_checkpoint(tmp_path / ("x" * 300))


def test_another_file_is_refused_with_what_it_begins_with(tmp_path: Path) -> None:
    (tmp_path / "model.dat").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(CheckpointError, match=r"is not a GGUF file \(it begins with b'\\x08.*Name one, or a folder"):
        open_checkpoint(tmp_path / "model.dat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.gguf", b"", "model.gguf is empty. Download it again"),
        ("model.gguf", LFS_POINTER, "model.gguf is not the file itself but a pointer of git-lfs .* git lfs pull"),
        ("model.gguf", b"<!DOCTYPE html>", "model.gguf is a web page: the server sent an error"),
        ("model.zip", b"PK\3\4....", "model.zip is a zip archive. Unpack it"),
        ("model.tar.gz", b"\x1f\x8b\x08", "model.tar.gz is a compressed archive. Unpack it"),
        ("model.tar.xz", b"\xfd7zXZ\0", "model.tar.xz is a compressed archive. Unpack it"),
        (
            "my.llamafile",
            b"MZqFpD='",
            "is a program with a GGUF file in it. Take that out: unzip .*my.llamafile '\\*.gguf'",
        ),
        ("model.tar", b"\0" * 257 + b"ustar", "model.tar is a tar archive. Unpack it"),
        ("pytorch_model.bin", b"PK\3\4....", "pytorch_model.bin is a pickle file. Such pickle files can run code"),
        ("model.pkl", b"PK\3\4....", "model.pkl is a pickle file. Such pickle files can run code"),
        ("weights", b"\x80\4\x95\n", "weights is a pickle file. Such pickle files can run code"),
        ("ggml-model-q4_0.bin", b"tjgg\3\0\0\0", "is of GGML, the format before GGUF. Take a GGUF file of the model"),
        ("Modelfile", b"# mine\nFROM ./a.gguf\n", "is a Modelfile of Ollama. Name the GGUF file .* behind FROM"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}", "model.safetensors holds tensors alone. Name the folder"),
        ("model.onnx", b"\x08\x08", "is a graph of ONNX, which is run as it is: edgelm run .*model.onnx. To quantize"),
    ],
)
def test_a_file_is_told_what_it_is_and_the_way_on(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model_index.json", "unet/config.json"], "is a model for diffusers, which makes pictures or sound"),
        (["config.json", "onnx/model.onnx"], "holds a graph of ONNX, which is run as it is: edgelm run "),
        (["config.json", "genai_config.json"], "holds a graph of ONNX, which is run as it is: edgelm run "),
        (
            ["params.json", "consolidated.safetensors"],
            "its weights in consolidated.safetensors alone, in the",
        ),
        (["config.json", "model.fp16.safetensors"], "has its tensors in model.fp16.safetensors. If that is the whole"),
        *(
            (names, "has model.safetensors, and no config.json. Download the model's other files too")
            for names in (
                ["model.safetensors"],
                ["model.safetensors", "edgelm.json"],
            )
        ),
        (["model.safetensors", "a.gguf"], "safetensors without config.json, and a GGUF file. To read that, name it: a"),
        (["config.json", "tf_model.h5"], "has weights for TensorFlow or JAX alone. Take the model's safetensors"),
        (["config.json", "tokenizer.json"], "has config.json, and no weights. Download the model's safetensors too"),
        (["checkpoint-500/config.json"], "is not a checkpoint, and holds some. Name one: .*checkpoint-500."),
        (
            ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b-00002-of-00002.gguf"],
            "has several GGUF files: a-00001-of-00002.gguf, b-00002-of-00002.gguf. Name one of them",
        ),
        (["refs/main", "snapshots/abc/config.json"], "is not a checkpoint, and holds some. Name one: .*snapshots.abc."),
        (
            ["config.json", "openvino_model.xml", "openvino_model.bin"],
            "in a format of OpenVINO. Take its safetensors",
        ),
        (
            ["config.json", "model.bin"],
            "in a format of CTranslate2. Take its safetensors, or a GGUF file of it",
        ),
        (["refs/main", "snapshots/abc/a.gguf"], "is not a checkpoint, and holds some. Name one: .*snapshots.abc."),
        (["models--a--b/snapshots/abc/a.gguf"], "is not a checkpoint, and holds some. Name one: .*snapshots.abc."),
        (["author/model/a.gguf", "author/model/b.gguf"], "and holds some. Name one: [^,]*author.model."),
        (
            ["blobs/sha256-ab", "manifests/a/b"],
            "is where Ollama keeps its models. `ollama show --modelfile NAME` prints",
        ),
    ],
)
def test_a_folder_is_told_what_it_is_and_the_way_on(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_the_part_that_reads_images_is_no_second_model_in_a_folder(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    model = save_llama(tmp_path / "hf")
    (tmp_path / "gguf").mkdir()
    write_gguf(tmp_path / "gguf" / "tiny.gguf", model)
    (tmp_path / "gguf" / "mmproj-tiny-f16.gguf").touch()
    with open_checkpoint(tmp_path / "gguf") as checkpoint:
        assert checkpoint.source["files"][0]["path"] == "tiny.gguf"


def test_a_manifest_of_ollama_leads_to_the_file_of_its_model(tmp_path: Path) -> None:
    layers = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{kind}"}
        for kind in ("model", "params")
    ]
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    with pytest.raises(
        CheckpointError, match=r"a manifest of Ollama. Name the file of its model: .*blobs.sha256-model$"
    ):
        open_checkpoint(manifest)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_clone_without_git_lfs_is_told_so(tmp_path: Path, save_llama: SaveLlama, name: str) -> None:
    save_llama(tmp_path)
    (tmp_path / name).write_bytes(LFS_POINTER)
    message = f"{name} is not the file itself but a pointer of git-lfs to it: .* git lfs install, then git lfs pull"
    with pytest.raises(CheckpointError, match=message), open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.text_files


def test_pickled_weights_are_refused_because_they_run_code(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"weights in pytorch_model.bin alone. Such pickle files can run code"):
        open_checkpoint(tmp_path)


def test_a_best_checkpoint_that_a_run_does_not_have_is_answered_with_its_newest(tmp_path: Path) -> None:
    for name in ("checkpoints", "latest"):
        (tmp_path / name).mkdir()
    with pytest.raises(ModelNotFoundError, match=r"There is no file or folder .*best\. The run has .*latest\."):
        open_checkpoint(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"is the folder of a run\. Name one of .*, such as .*latest\."):
        open_checkpoint(tmp_path)


def test_an_adapter_and_the_folder_of_a_run_are_refused_with_the_way_on(tmp_path: Path) -> None:
    for name in ("checkpoints", "best"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        CheckpointError, match=r"is the folder of a run\. Name one of its checkpoints, such as .*best\."
    ):
        open_checkpoint(tmp_path)
    (tmp_path / "best/adapter.json").write_text("{}")
    (tmp_path / "best/adapter_model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match=r"best is an adapter that was exported, for one package\. Name what it"):
        open_checkpoint(tmp_path / "best")
    (tmp_path / "best/adapter_config.json").write_text("{}")
    (tmp_path / "best/base.gguf").write_bytes(b"GGUF")  # the base that it belongs to is not what it is
    for folder in (tmp_path, tmp_path / "best"):
        message = rf"holds an adapter, .* first: edgelm merge {folder} -o merged/"
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)


def test_a_command_that_is_named_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "my adapter").mkdir()
    (tmp_path / "my adapter/adapter_config.json").touch()
    with pytest.raises(CheckpointError, match=r"edgelm merge '[^']*my adapter' -o merged/"):
        open_checkpoint(tmp_path / "my adapter")


def test_several_gguf_files_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"looked for config.json with model.safetensors or .*, or one .gguf file"
    ):
        open_checkpoint(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"has several GGUF files: a.gguf, b.gguf. Name one of them"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_an_error_that_names_it() -> None:
    with pytest.raises(CheckpointError, match="/proc/self/mem cannot be read"):
        open_checkpoint(Path("/proc/self/mem"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    for path in (tmp_path / "model.gguf", tmp_path):
        with pytest.raises(CheckpointError, match=r"model\.gguf is a pipe or a device, and not a file"):
            open_checkpoint(path)


def test_where_a_pulled_source_came_from_goes_into_the_manifest(
    tmp_path: Path, save_llama: SaveLlama, write_gguf: WriteGGUF
) -> None:
    record = {"reference": "hf:org/base", "repository": "org/base", "revision": "0" * 40, "license": "mit", "files": []}
    model = save_llama(tmp_path / "hf")
    (tmp_path / "hf" / "source.json").write_text(json.dumps(record))
    (tmp_path / "gguf").mkdir()
    gguf = write_gguf(tmp_path / "gguf" / "tiny.gguf", model)
    (tmp_path / "gguf" / "source.json").write_text(json.dumps(record | {"repository": 3}))
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        source = checkpoint.source
    assert (source["repository"], source["revision"], source["license"]) == ("org/base", "0" * 40, "mit")
    with open_checkpoint(gguf) as checkpoint:
        source = checkpoint.source
    assert "repository" not in source
    assert (source["revision"], source["license"]) == ("0" * 40, "apache-2.0")  # the file itself knows better
