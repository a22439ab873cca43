"""What a path holds that is no checkpoint: other programs' formats, downloads that went wrong, half of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from edgelm.errors import PackageError
from edgelm.files import lfs_pointer
from edgelm.files.gguf_part_names import one_of_each_model
from edgelm.files.regular_file import read_json_object
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm.package.adapter import is_adapter, is_trained_adapter, why_not_trained
from edgelm.package.foreign_graph import GENAI_CONFIG
from edgelm.package.manifest import FILE_NAME
from edgelm.shell_word import shell_word

CONFIG = "config.json"
FIRST_BYTES = 512  # of a file are enough to tell it by

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHTS = (".safetensors", *_PICKLES)
_NO_PICKLES = (
    "Such pickle files can run code when they are read, so edgelm does not. Take the model's safetensors, or convert "
    "them where you trust them: save_pretrained of transformers writes safetensors."
)
# A file that no other program writes -> the program; some of them call their weights .bin too.
_OTHER_PROGRAMS = {
    "openvino_model.xml": "OpenVINO",
    "model.bin": "CTranslate2",
    "weights.npz": "an older mlx-lm",
}
_RUN_IT = "which is run as it is: edgelm run {path}. To quantize or train the model, take its safetensors."
_UNPACK = "Unpack it, and name the folder in it that has config.json."
_GGML = (b"tjgg", b"fmgg", b"lmgg")  # of three versions, in files that end with .bin
# How files begin that people have under the name of a model.
_BEGINNINGS = (
    ((b"PK\3\4",), f"is a zip archive. {_UNPACK}"),
    ((b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"7z\xbc\xaf"), f"is a compressed archive. {_UNPACK}"),
    ((b"<",), "is a web page: the server sent an error instead of the model. Download it again."),
)
_PICKLE = re.compile(rb"\x80[\2-\5]")  # and its protocol
_TAR, _TAR_AT = b"ustar", 257
# Ollama keeps a model's files as blobs, by their hashes; a manifest, in a folder of each name, lists those of a model.
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_FILE = "`ollama show --modelfile NAME` prints the file of a model of Ollama's, behind FROM."
_MODELFILE = re.compile(rb"(?:\s|#[^\n]*\n)*FROM\s", re.IGNORECASE)


def why_no_checkpoint_file(path: Path, content: bytes) -> str:
    """Say what a file is that is not a GGUF file, and the way on; `content` is how it begins."""
    if content.startswith(lfs_pointer.BEGINNING):
        return f"{path} {lfs_pointer.EXPLANATION}"
    if not content:
        return f"{path} is empty. Download it again."
    if content.startswith(_GGML):
        return f"{path} is of GGML, the format before GGUF. Take a GGUF file of the model."
    if path.suffix in _PICKLES or _PICKLE.match(content):
        return f"{path} is a pickle file. {_NO_PICKLES}"
    if path.suffix == ".safetensors":
        return f"{path} holds tensors alone. Name the folder that also has {CONFIG} and tokenizer.json."
    if path.suffix == ".llamafile":
        return f"{path} is a program with a GGUF file in it. Take that out: unzip {shell_word(path)} '*.gguf'"
    if path.suffix == ".onnx":
        return f"{path} is a graph of ONNX, {_RUN_IT.format(path=shell_word(path))}"
    for beginnings, explanation in _BEGINNINGS:
        if content.startswith(beginnings):
            return f"{path} {explanation}"
    if content.startswith(_TAR, _TAR_AT):
        return f"{path} is a tar archive. {_UNPACK}"
    return _of_ollama(path, content) or (
        f"{path} is not a GGUF file (it begins with {content[:4]!r}). Name one, or a folder with {CONFIG}, safetensors "
        "and tokenizer.json."
    )


def _of_ollama(path: Path, content: bytes) -> str | None:
    if _MODELFILE.match(content):
        return (
            f"{path} is a Modelfile of Ollama. Name the GGUF file or the folder that stands behind FROM. {_OLLAMA_FILE}"
        )
    try:
        layers = read_json_object(path).get("layers")
        digests = [layer["digest"] for layer in layers or () if layer["mediaType"] == _OLLAMA_MODEL]
    except (PackageError, OSError, ValueError, TypeError, KeyError):
        return None
    stores = [folder.parent for folder in path.absolute().parents if folder.name == "manifests"]
    if not digests or not stores:
        return None
    blobs = [stores[-1] / "blobs" / str(digest).replace(":", "-") for digest in digests]
    named = " ".join(map(shell_word, blobs))
    return f"{path} is a manifest of Ollama. Name the file of its model: {named}"


def why_no_checkpoint_folder(folder: Path) -> str:
    """Say what a folder is that lacks config.json, or safetensors, or both; and the way on."""
    names = sorted(path.name for path in folder.iterdir())
    return (
        _of_another_kind(folder, names)
        or _without_its_weights(folder, names)
        or _with_folders(folder)
        or f"{folder} is not a checkpoint: looked for {CONFIG} with model.safetensors or model.safetensors.index.json, "
        f"{FILE_NAME}, or one .gguf file."
    )


def _of_another_kind(folder: Path, names: Sequence[str]) -> str | None:
    if is_trained_adapter(folder):
        return (
            f"{folder} holds an adapter, which is no model by itself. Merge it into its base first: edgelm merge "
            f"{shell_word(folder)} -o merged/ (or put it beside the base's package: edgelm export-adapter)."
        )
    if is_adapter(folder):
        return why_not_trained(folder)
    checkpoint = checkpoint_of_run(folder)
    if checkpoint is not None:
        return f"{folder} is the folder of a run. Name one of its checkpoints, such as {checkpoint}."
    if any((near / "blobs").is_dir() and (near / "manifests").is_dir() for near in (folder, folder / "models")):
        return f"{folder} is where Ollama keeps its models. {_OLLAMA_FILE} Name that."
    if "model_index.json" in names:
        return f"{folder} is a model for diffusers, which makes pictures or sound. edgelm runs models that write text."
    gguf_files = one_of_each_model(name for name in names if name.endswith(".gguf"))
    if len(gguf_files) == 1:
        return f"{folder} has safetensors without {CONFIG}, and a GGUF file. To read that, name it: {gguf_files[0]}."
    if gguf_files:
        return f"{folder} has several GGUF files: {', '.join(gguf_files)}. Name one of them."
    if GENAI_CONFIG in names or any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx")):
        return f"{folder} holds a graph of ONNX, {_RUN_IT.format(path=shell_word(folder))}"
    return None


def _without_its_weights(folder: Path, names: Sequence[str]) -> str | None:
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    tensors = [name for name in weights if name.endswith(".safetensors")]
    listed = ", ".join((tensors or weights)[:4])
    if any(name.startswith("consolidated") for name in tensors):
        return (
            f"{folder} has its weights in {listed} alone, in the format of their author's own program. Take the same "
            f"model in Hugging Face's: {CONFIG}, model.safetensors (or its shards) and tokenizer.json or tekken.json. "
            "Or take a GGUF file of it."
        )
    if tensors and CONFIG in names:
        return (
            f"{folder} has its tensors in {listed}. If that is the whole model, rename it to model.safetensors; of a "
            "model in several files, download model.safetensors.index.json too."
        )
    if tensors:
        return f"{folder} has {listed}, and no {CONFIG}. Download the model's other files too."
    for name, program in _OTHER_PROGRAMS.items():
        if name in names:
            return f"{folder} has its weights in a format of {program}. Take its safetensors, or a GGUF file of it."
    if weights:
        return f"{folder} has its weights in {listed} alone. {_NO_PICKLES}"
    if any(name.endswith((".h5", ".msgpack")) for name in names):
        return f"{folder} has weights for TensorFlow or JAX alone. Take the model's safetensors."
    if CONFIG in names:
        return (
            f"{folder} has {CONFIG}, and no weights. Download the model's safetensors too; the command that began a "
            "download goes on with it."
        )
    return None


def _with_folders(folder: Path) -> str | None:
    """Name the checkpoints below: people name a trainer's folder, the hub's cache or a model in it, or LM Studio's."""
    folders = ("*", "*/*", "models--*/snapshots/*")
    files = (path for below in folders for name in (CONFIG, "*.gguf") for path in folder.glob(f"{below}/{name}"))
    inner = sorted({path.parent for path in files})
    if not inner:
        return None
    return f"{folder} is not a checkpoint, and holds some. Name one: {', '.join(map(str, inner[-4:]))}."
