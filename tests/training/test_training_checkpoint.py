"""Checkpoint folders in PyTorch: what is written is what is read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import runpy
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from forked_processes import exit_status, fork
from json_files import edited_json
from safetensors.torch import load_file, save_file

from edgelm.config import SECTION, ModelConfig
from edgelm.errors import CheckpointError, ConfigError
from edgelm_training import model as model_file
from edgelm_training.checkpoints import checkpoint
from edgelm_training.checkpoints.checkpoint import (
    check_is_checkpoint,
    hf_config,
    load_checkpoint,
    save_checkpoint,
    save_weights,
    weights_sha256,
)
from edgelm_training.layers.attention import Attention
from edgelm_training.model import Transformer
from edgelm_training.runs import distributed


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(tiny_config)


@pytest.fixture
def saved(model: Transformer, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, folder)
    return folder


@pytest.mark.parametrize(("ends", "written"), [((), None), ((2,), 2), ((2, 5), [2, 5])])
def test_end_tokens_are_written_as_transformers_reads_them(
    ends: tuple[int, ...], written: object, tiny_config: ModelConfig
) -> None:
    assert hf_config(replace(tiny_config, eos_token_ids=ends))["eos_token_id"] == written


def test_the_folder_holds_config_weights_and_generation_config(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert json.loads((saved / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_a_disk_without_modes_is_written_to(
    model: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", chmod)
    save_checkpoint(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


def test_shards_are_read_through_their_index(model: Transformer, saved: Path) -> None:
    shard(saved)

    loaded = load_checkpoint(saved)

    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def shard(folder: Path, parts: int = 2) -> None:
    """Split model.safetensors into some files and an index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((list(state)[part::parts] for part in range(parts)), start=1):
        file = f"model-{number:05d}-of-{parts:05d}.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_the_hash_of_weights_is_that_of_their_file_or_of_their_shards_hashes(saved: Path) -> None:
    assert weights_sha256(saved) == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    shard(saved, parts=7)  # so many that no set has them in order by chance
    parts = sorted(saved.glob("model-*.safetensors"))
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts]
    assert weights_sha256(saved) == hashlib.sha256("".join(hashes).encode()).hexdigest()
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: No such file.* Copy or download it"):
        weights_sha256(saved)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_load_as_float32_whatever_is_stored(stored: torch.dtype, model: Transformer, tmp_path: Path) -> None:
    save_checkpoint(model.to(stored), tmp_path / "checkpoint")

    loaded = load_checkpoint(tmp_path / "checkpoint")

    assert {tensor.dtype for tensor in [*loaded.parameters(), *loaded.buffers()]} == {torch.float32}
    assert torch.equal(loaded.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"].float())
    assert loaded(torch.tensor([[1, 2, 3]])).dtype == torch.float32


def test_a_header_is_parsed_once_for_all_weights(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def safe_open(path: Path, **options: Any) -> Any:
        opened.append(path)
        return safetensors.safe_open(path, **options)

    monkeypatch.setattr(checkpoint, "safe_open", safe_open)
    load_checkpoint(saved)
    assert opened == [saved / "model.safetensors"]


def test_every_tensor_that_does_not_fit_is_listed(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"], state["model.norm.weight"]
    state["model.layers.7.mlp.up_proj.weight"] = torch.zeros(3, 2)
    state["lm_head.weight"] = state["lm_head.weight"][:-1].clone()
    state["model.layers.1.input_layernorm.weight"] = torch.zeros(24, dtype=torch.int8)
    save_file(state, saved / "model.safetensors")

    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)

    assert str(caught.value).splitlines() == [
        f"The tensors in {saved} do not fit its config.json:",
        "  missing: model.layers.0.mlp.up_proj.weight [40, 24]",
        "  missing: model.norm.weight [24]",
        "  mis-shaped: lm_head.weight is [60, 24], the config says [61, 24]",
        "  stored as I8, which is none of F32, F16, BF16: model.layers.1.input_layernorm.weight",
        "  unknown: model.layers.7.mlp.up_proj.weight [3, 2]",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: one.double() for name, one in weights.items()}, "stored as torch.float64, which is"),
        (lambda weights: {name: one for name, one in weights.items() if "layers.1" not in name}, "missing: model.lay"),
        (lambda weights: {f"_orig_mod.{name}": one for name, one in weights.items()}, "unknown: _orig_mod.model.emb"),
    ],
    ids=["another type", "a layer less", "wrapped by torch.compile"],
)
def test_weights_that_could_not_be_read_again_are_refused_before_they_replace_others(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, model: Transformer, saved: Path
) -> None:
    before = (saved / "model.safetensors").read_bytes()

    with pytest.raises(CheckpointError, match=r"do not fit their config, and no checkpoint was written") as caught:
        save_weights(change(model.state_dict()), model.config, saved)

    assert message in str(caught.value)
    assert str(caught.value).endswith("that torch.compile or DistributedDataParallel has wrapped, save the one inside.")
    assert (saved / "model.safetensors").read_bytes() == before


def test_weights_that_share_memory_or_lie_column_by_column_are_written_as_they_are(
    model: Transformer, tmp_path: Path
) -> None:
    weights = model.state_dict()
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.norm.weight"] = weights["model.embed_tokens.weight"][0]
    weights["lm_head.weight"] = weights["lm_head.weight"].T.contiguous().T

    save_weights(weights, model.config, tmp_path / "checkpoint")

    read = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_numbers_that_a_new_part_computes_are_not_lost_in_silence(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithSlopes(Attention):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.slopes = torch.nn.Buffer(2.0 ** -torch.arange(4), persistent=False)

    monkeypatch.setattr(model_file, "Attention", WithSlopes)

    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.slopes is no part .* meta device.*torch\.from_numpy"):
        load_checkpoint(saved)


def test_a_missing_or_broken_weights_file_is_an_error(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: .*Copy or download it again\."):
        load_checkpoint(saved)

    weights.unlink()
    with pytest.raises(CheckpointError, match=r"Cannot read .*model\.safetensors: .*No such file"):
        load_checkpoint(saved)


def test_all_missing_parts_of_a_sharded_checkpoint_are_named_at_once(saved: Path) -> None:
    shard(saved)
    names = sorted(path.name for path in saved.glob("model-*.safetensors"))
    for name in names:
        (saved / name).unlink()

    with pytest.raises(CheckpointError, match=rf"lacks 2 of the 2 files .* {names[0]}, {names[1]}\. Copy or download"):
        load_checkpoint(saved)

    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "x" * 999}}))
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 1 files .*: x{100}\. Copy or download them again\."):
        load_checkpoint(saved)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}', "[" * 100_000, "[" + "1," * 150_000]
)
def test_a_broken_index_is_an_error(text: str, saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"index\.json does not list the weight files"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_reaches_no_file_outside_the_folder(name: str, saved: Path) -> None:
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))

    with pytest.raises(CheckpointError, match="which is not a plain file name"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    {
        "package": (("edgelm.json", "config.json"), r"is a package, .*: edgelm import .* -o checkpoint/"),
        "adapter": (("adapter_config.json",), r"holds an adapter, .*: edgelm merge .* -o merged/"),
        "run": (("config.toml", "checkpoints/step-00000001/config.json"), r"is the folder of a run\. .*latest"),
        "GGUF": (("model.gguf",), r"is no checkpoint folder\. From a GGUF file, .*: edgelm import .* -o checkpoint/"),
        "nothing": ((), r"is no checkpoint folder: there is no such folder\. .* a model of the library"),
    }.values(),
    ids=["package", "adapter", "run", "GGUF", "nothing"],
)
def test_what_is_no_checkpoint_says_how_to_come_to_one(content: tuple[str, ...], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in content:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    with pytest.raises(CheckpointError, match=message):
        check_is_checkpoint(folder)


def test_a_name_that_no_folder_can_have_is_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x cannot be read: .*File name too long.* Check the path\."):
        check_is_checkpoint(tmp_path / ("x" * 300))


def test_a_folder_without_our_section_is_an_error(saved: Path) -> None:
    with edited_json(saved / "config.json") as values:
        del values[SECTION]

    with pytest.raises(ConfigError, match="has no 'edgelm' section"):
        load_checkpoint(saved)


def test_text_files_come_along(model: Transformer, saved: Path, tmp_path: Path) -> None:
    texts = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{ }",
        "chat_template.jinja": "{{ bos_token }}é\r\n",
        "generation_config.json": '{"eos_token_id": [2, 9]}',
    }
    source = tmp_path / "source"
    source.mkdir()
    for name, text in (texts | {"README.md": "no part of a checkpoint"}).items():
        (source / name).write_bytes(text.encode())

    save_checkpoint(model, saved, text_files_from=source)

    assert {name: (saved / name).read_bytes().decode() for name in texts} == texts
    assert not (saved / "README.md").exists()


@pytest.mark.parametrize(
    ("theirs", "ends"), [({"eos_token_id": 9, "top_k": 3}, [9, 2]), ({"eos_token_id": None}, 2), ({}, 2)]
)
def test_transformers_stops_at_all_ends_of_the_config(
    theirs: dict[str, Any], ends: Any, model: Transformer, saved: Path, tmp_path: Path
) -> None:
    (saved / "tokenizer.json").write_text("{}")
    (saved / "generation_config.json").write_text(json.dumps(theirs))
    save_checkpoint(model, tmp_path / "new", text_files_from=saved)
    assert json.loads((tmp_path / "new/generation_config.json").read_text()) == theirs | {"eos_token_id": ends}


def test_a_generation_config_that_is_broken_stays_as_it_is(model: Transformer, saved: Path, tmp_path: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    (saved / "generation_config.json").write_text("{")
    save_checkpoint(model, tmp_path / "new", text_files_from=saved)
    assert (tmp_path / "new/generation_config.json").read_text() == "{"


def test_a_checkpoint_replaces_the_one_whose_text_files_it_takes(
    model: Transformer, saved: Path, tiny_config: ModelConfig
) -> None:
    (saved / "tokenizer.json").write_text("{}")
    loaded = load_checkpoint(saved)
    with torch.no_grad():
        loaded.lm_head.weight.add_(1.0)

    save_checkpoint(loaded, saved, text_files_from=saved)

    assert (saved / "tokenizer.json").read_text() == "{}"
    again = load_checkpoint(saved).state_dict()
    assert torch.equal(again["lm_head.weight"], model.state_dict()["lm_head.weight"] + 1.0)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_a_source_without_a_tokenizer_is_an_error(model: Transformer, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json to copy\."):
        save_checkpoint(model, tmp_path / "new", text_files_from=saved)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("config", [None, "{", "[1]", '{"model_type": "llama"}'])
def test_a_folder_that_is_not_a_checkpoint_of_ours_is_never_replaced(
    config: str | None, model: Transformer, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("ten years")
    if config is not None:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(CheckpointError, match="exists and is not a checkpoint folder of edgelm"):
        save_checkpoint(model, tmp_path)
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint folder of edgelm"):
        save_checkpoint(model, tmp_path / "thesis.txt")

    assert (tmp_path / "thesis.txt").read_text() == "ten years"


POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="limits on file sizes and SIGKILL are POSIX's")


@POSIX_ONLY
def test_a_full_disk_is_an_error_and_leaves_the_old_checkpoint(
    model: Transformer, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def save() -> None:
        # A limit on the size of a file stands in for a full disk; it cannot be lifted again, hence the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(model, saved)
        print(caught.value)

    assert exit_status(fork(save)) == 0
    said = capfd.readouterr().out
    assert said.startswith(f"Cannot write {saved}: ")
    assert said.strip().endswith("What stood there is as it was.")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


@POSIX_ONLY
def test_a_save_that_is_killed_leaves_the_old_checkpoint(
    model: Transformer, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / "model.safetensors").read_bytes()

    def killed(*arguments: Any, **options: Any) -> None:
        save_file(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as changed:
        changed.setattr(checkpoint, "save_file", killed)
        assert exit_status(fork(lambda: save_checkpoint(model, saved))) == -signal.SIGKILL

    assert (saved / "model.safetensors").read_bytes() == before
    save_checkpoint(model, saved)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_one_process_needs_nothing_that_shards_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """To import it takes half as long as to import torch, and every command that reads a checkpoint would."""
    for name in ("fsdp", "tensor"):
        monkeypatch.setitem(sys.modules, f"torch.distributed.{name}", None)
    imported = runpy.run_path(distributed.__file__)
    tensor = torch.ones(1)
    assert imported["whole"](tensor) is tensor
