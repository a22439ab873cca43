"""Adapters on disk: PEFT reads ours, we read PEFT's, merging adds them up; and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from json_files import change_json, edited_json
from make_tiny_model import make_checkpoint
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_training_runs import finetune_settings, put_adapter_on
from transformers import AutoModelForCausalLM

from edgelm.errors import CheckpointError, ConfigError, MissingExtraError
from edgelm.loading import load
from edgelm.testing import tiny_model_path
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.adaptation.lora import LoraConfig as AdapterShape
from edgelm_training.adaptation.lora import linear_names
from edgelm_training.adaptation.quantized_linear import on_grid
from edgelm_training.checkpoints.adapter import Base, read_adapter, write_adapter
from edgelm_training.checkpoints.checkpoint import load_checkpoint, read_weights, save_weights
from edgelm_training.finetune import finetune
from edgelm_training.merge import adapter_folder, merge_adapter

IDS = torch.tensor([[5, 17, 3, 44, 8, 60, 200, 7]])
# float32 sums in another order: a product with A and B apart, or with their sum with the weight. Measured: 1.2e-6.
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def runs(tiny_chat_model: Path, tiny_chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a run of LoRA and of one of QLoRA, whose adapters say something."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lora", "qlora"):
        changes = {"max_steps": 2, "learning_rate": 0.1, "method": method}
        finetune(finetune_settings(tiny_chat_model, tiny_chats, folder / method, **changes))
    return folder


@torch.no_grad()
def our_logits(base: Path, adapter: Path) -> torch.Tensor:
    model = load_checkpoint(base).eval()
    put_adapter_on(model, adapter)
    return model(IDS)


@torch.no_grad()
def their_logits(base: Path, adapter: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(IDS).logits


@torch.no_grad()
def merged_logits(folder: Path) -> torch.Tensor:
    return load_checkpoint(folder).eval()(IDS)


def test_peft_reads_an_adapter_and_gives_the_same_logits(runs: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    adapter = runs / "lora/latest"
    ours = our_logits(tiny_chat_model, adapter)
    assert (ours - merged_logits(tiny_chat_model)).abs().max() > 0.1
    torch.testing.assert_close(ours, their_logits(tiny_chat_model, adapter), **CLOSE)
    merged = merge_adapter(adapter, tmp_path / "merged")
    assert (merged.base, merged.layers, merged.checked) == (tiny_chat_model, 14, True)
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), ours, **CLOSE)


def test_the_same_adapter_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    weights = {f"q_proj.lora_{side}.weight": torch.ones(1, 4) for side in "AB"}
    shape = AdapterShape(rank=1, alpha=2.0, dropout=0.0, target_modules=("q_proj",))
    base = Base(name="Grundgewichte é", sha256="0" * 64, grid="int4-block64")
    for _ in range(6):  # with the metadata in an order of chance, all are the same once in 7,776 times
        write_adapter(weights, shape, base, tmp_path)
        (tmp_path / "adapter_model.safetensors").rename(tmp_path / f"{len(list(tmp_path.iterdir()))}")
    first, *others = (path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json")
    assert len(others) == 5
    assert set(others) == {first}
    assert int.from_bytes(first[:8], "little") % 8 == 0  # the tensors behind the header are aligned


def test_beside_a_package_an_adapter_gives_the_logits_of_training(
    runs: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    with HuggingFaceCheckpoint(tiny_chat_model) as source:
        export_package(source, tmp_path / "pkg", "fp32")
    manifest = export_adapter(runs / "lora", tmp_path / "pkg", tmp_path / "exported")
    assert manifest.notes == ()  # the package is of the weights that it was trained on
    model = load(tmp_path / "pkg")
    model.load_adapter(tmp_path / "exported")
    cache = model.session.new_cache()
    cache.use_adapter("exported")
    found = torch.from_numpy(model.session.forward(IDS[0].tolist(), cache, all_logits=True))
    torch.testing.assert_close(found, our_logits(tiny_chat_model, runs / "lora/best")[0], **CLOSE)


def test_an_adapter_of_a_base_in_4_bits_belongs_to_that_base(runs: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    adapter = runs / "qlora/latest"
    ours = our_logits(tiny_chat_model, adapter)
    config, weights = read_weights(tiny_chat_model)
    weights |= {
        f"{name}.weight": on_grid(weights[f"{name}.weight"]) for name in linear_names(load_checkpoint(tiny_chat_model))
    }
    save_weights(weights, config, tmp_path / "rounded", text_files_from=tiny_chat_model)
    torch.testing.assert_close(ours, their_logits(tmp_path / "rounded", adapter), **CLOSE)
    merge_adapter(adapter, tmp_path / "merged")
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), ours, **CLOSE)


def test_what_tells_layers_of_other_programs_adapters_is_an_extra(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = shutil.copytree(runs / "lora/latest", tmp_path / "theirs")
    weights = load_file(theirs / "adapter_model.safetensors")
    save_file(weights, theirs / "adapter_model.safetensors")  # which says nothing of its base
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for name in [name for name in sys.modules if name.startswith("edgelm_export")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match=r"trained needs 'ml_dtypes', .* pip install .edgelm\[export\]"):
        merge_adapter(theirs, tmp_path / "merged")
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    with pytest.raises(MissingExtraError, match="its metadata is older than its code"):
        merge_adapter(theirs, tmp_path / "merged")


@pytest.mark.parametrize("stabilized", [False, True])
def test_an_adapter_that_peft_wrote_is_read_and_merged(stabilized: bool, tiny_chat_model: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}, use_rslora=stabilized,
        alpha_pattern={"down_proj": 2.5, r"layers\.1\..*": 9},
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_chat_model), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(our_logits(tiny_chat_model, tmp_path / "adapter"), expected, **CLOSE)
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=tiny_chat_model)
    assert not merged.checked
    torch.testing.assert_close(merged_logits(tmp_path / "merged"), expected, **CLOSE)


def test_an_adapter_that_may_have_learned_on_rows_in_another_order_is_not_merged(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_chat_model, tmp_path / "base")
    with edited_json(base / "config.json") as config:
        config["edgelm"]["model_type"] = "glm"
    matrices = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_chat_model), matrices).save_pretrained(
        tmp_path / "adapter"
    )
    change_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(
        CheckpointError, match=r"that it does not name\. .* the rows of q_proj stand.*_path\), or merge"
    ):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", base=base)
    assert not (tmp_path / "merged").exists()


def test_merged_weights_keep_the_type_of_the_base_or_get_another(
    runs: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    for dtype, expected in (("same", torch.float32), ("bf16", torch.bfloat16)):
        merge_adapter(runs / "lora", tmp_path / dtype, dtype=dtype)
        assert {tensor.dtype for tensor in load_file(tmp_path / dtype / "model.safetensors").values()} == {expected}
    assert (tmp_path / "same/tokenizer.json").read_bytes() == (tiny_chat_model / "tokenizer.json").read_bytes()
    with pytest.raises(ConfigError, match="dtype is 'int4'; it must be one of same, fp32, bf16, fp16"):
        merge_adapter(runs / "lora", tmp_path / "out", dtype="int4")


def test_of_a_run_the_best_adapter_is_merged(runs: Path, tmp_path: Path) -> None:
    result = invoke("merge", runs / "lora", "-o", tmp_path / "merged", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["adapter"] == str((runs / "lora/best").resolve())
    assert (facts["layers"], facts["base_checked"]) == (14, True)
    again = invoke("merge", runs / "lora", "-o", tmp_path / "merged")
    assert again.stdout.startswith(f"{tmp_path / 'merged'}  {facts['adapter']} in 14 layers of ")


def test_of_a_run_that_measured_nothing_the_newest_adapter_is_merged(runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "lora", tmp_path / "run", symlinks=True)
    worse = shutil.copytree(run / "checkpoints/step-00000002", run / "checkpoints/step-00000009")
    change_json(worse / "trainer/state.json", step=9, validation_loss=99.0)
    assert adapter_folder(run).name == "step-00000002"
    for path in run.glob("checkpoints/*/trainer/state.json"):
        change_json(path, validation_loss=None)
    assert adapter_folder(run).name == "step-00000009"


def test_sums_are_rounded_once_to_the_type_of_the_base(runs: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    config, weights = read_weights(tiny_chat_model)
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_weights(half, config, tmp_path / "half", text_files_from=tiny_chat_model)
    adapter = copied(runs, tmp_path)
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    merge_adapter(adapter, tmp_path / "merged", base=tmp_path / "half")

    merged, read = load_file(tmp_path / "merged/model.safetensors"), read_adapter(adapter)
    for layer, (a, b) in read.matrices.items():
        expected = half[f"{layer}.weight"].float() + read.scales[layer] * (b @ a)
        assert torch.equal(merged[f"{layer}.weight"], expected.bfloat16())


def test_the_command_says_when_nothing_tells_the_base(runs: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    adapter = copied(runs, tmp_path)
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    result = invoke("merge", adapter, "-o", tmp_path / "merged", "--base", tiny_chat_model)
    assert result.stderr == "The adapter does not say which weights it was trained on; its shapes fit these.\n"


def copied(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "lora/latest", tmp_path / "adapter", ignore=shutil.ignore_patterns("trainer"))
    return tmp_path / "adapter"


def with_setting(key: str, value: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        change_json(adapter / "adapter_config.json", **{key: value})

    return change


def without(end: str) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        save_file({name: tensor for name, tensor in load_file(path).items() if not name.endswith(end)}, path)

    return change


def in_place_of(old: str, new: str) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {name.replace(old, new): tensors.pop(name) for name in list(tensors) if old in name}, path)

    return change


def of_two_ranks(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    save_file(tensors | {name: tensors[name][:, :3].contiguous()}, path)


def with_tensor(tensor: torch.Tensor) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {next(name for name in tensors if name.endswith("q_proj.lora_A.weight")): tensor}, path)

    return change


def of_another_grid(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"edgelm.base_grid": "nf4"})


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no adapter": (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "Cannot read .*config.json"),
    "no object": (lambda adapter: (adapter / "adapter_config.json").write_text("[]"), "it is no JSON object"),
    "no weights": (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "Cannot read .* Copy it again"),
    "cut": (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"\x10"), "Cannot read .* Copy it"),
    "DoRA": (with_setting("use_dora", True), "has use_dora = True; only plain LoRA adapters can be read: merge it"),
    "KaSA": (with_setting("kasa_config", {"beta": 0.1}), "has kasa_config = .*; only plain LoRA adapters can be read"),
    "blocks": (with_setting("use_bdlora", {"nblocks": 2}), r"has use_bdlora = \{'nblocks': 2\}; only plain LoRA"),
    "Monte Carlo": (with_setting("monteclora_config", {"num_samples": 4}), "has monteclora_config = "),
    "layers twice": (with_setting("layer_replication", [[0, 2]]), "can be read: train one without it"),
    "PiSSA": (with_setting("init_lora_weights", "pissa_niter_4"), "'pissa_niter_4': the adapter learned beside other"),
    "OLoRA": (with_setting("init_lora_weights", "olora"), "has init_lora_weights = 'olora': the adapter learned"),
    "another kind": (with_setting("peft_type", "IA3"), "has peft_type = 'IA3'; only plain LoRA"),
    "no alpha": (with_setting("lora_alpha", None), "has lora_alpha = None; it must be a number that float32 holds"),
    "an endless alpha": (with_setting("lora_alpha", 10**400), "has lora_alpha = 1000.*; it must be a number that"),
    "no alpha that a layer has": (
        lambda adapter: change_json(adapter / "adapter_config.json", lora_alpha=None, alpha_pattern={".*": 3}),
        "has lora_alpha = None; it must be a number",
    ),
    "no alphas": (with_setting("alpha_pattern", [1]), r"has alpha_pattern = \[1\]; it must be an object, or null"),
    "no alpha of a layer": (
        with_setting("alpha_pattern", {"o_proj": True, "q_proj": 3}),
        r"has alpha_pattern\['o_proj'\] = True; it must be a number that float32 holds",
    ),
    "no pattern": (
        with_setting("alpha_pattern", {"(q_proj": 3}),
        r"has alpha_pattern = \{'\(q_proj': 3\}; its keys must be ends of layers' names, or regular expressions",
    ),
    "a slow pattern": (
        with_setting("alpha_pattern", {r"(\w+)+!": 3}),
        "of none behind a bracket. Write the layers' names",
    ),
    "a pattern of many repetitions": (with_setting("alpha_pattern", {".*.*.*!": 3}), "two repetitions at most"),
    "many patterns": (with_setting("alpha_pattern", {f"{i}.*": 3 for i in range(101)}), "at most 100 may be regular"),
    "an endless pattern": (with_setting("alpha_pattern", {"q{9999999999999}": 3}), "or regular expressions for them"),
    "no partner": (without("q_proj.lora_B.weight"), "unpaired or unknown: .*q_proj.lora_B.weight. Copy it again if"),
    "embeddings": (in_place_of("q_proj.lora_A", "lora_embedding_A"), "lora_embedding_A.* If it learned more, merge it"),
    "nothing in it": (without(".weight"), "is no plain LoRA adapter; unpaired or unknown: all of it"),
    "no such layer": (
        in_place_of("q_proj", "c_attn"),
        r"\.c_attn: there is no such layer\nName the model .* If it is that one, merge it where",
    ),
    "another shape": (
        in_place_of("self_attn.o_proj", "mlp.up_proj"),
        r"up_proj: it is \[64, 32\], the adapter's A and",
    ),
    "NaN": (with_tensor(torch.full((4, 32), torch.nan)), "q_proj with the adapter in .* has values that fp32 does not"),
    "two ranks": (of_two_ranks, r"q_proj: it is \[.*\], the adapter's A and B are \[4, 32\] and \[\d+, 3\]"),
    "no matrix": (with_tensor(torch.ones(32)), r"q_proj\.lora_A\.weight is F32 \[32\]; read are matrices with a row"),
    "no rank": (with_tensor(torch.ones(0, 32)), r"q_proj\.lora_A\.weight is F32 \[0, 32\]; read are matrices"),
    "another grid": (of_another_grid, "its base is on the grid 'nf4'; this version knows int4-block64: update"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_adapter_that_cannot_be_merged_is_refused_and_nothing_is_written(
    name: str, runs: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    change, message = BROKEN[name]
    adapter = copied(runs, tmp_path)
    change(adapter)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(adapter, tmp_path / "merged", base=tiny_chat_model)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_merged_into_its_own_base_alone(runs: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"was trained on .*; the weights in .*other are others .*--base"):
        merge_adapter(runs / "lora", tmp_path / "merged", base=other)
    with pytest.raises(ConfigError, match=r"is .*nowhere, which is no checkpoint folder here\. Name it: --base"):
        merge_adapter(runs / "lora", tmp_path / "merged", base=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is a package, which is run, not trained\. Make a checkpoint folder of"):
        merge_adapter(runs / "lora", tmp_path / "merged", base=tiny_model_path())
    translator = shutil.copytree(tiny_model_path(), tmp_path / "translator")
    (translator / "encoder.onnx").touch()
    with pytest.raises(
        CheckpointError, match=r"not trained\. With an encoder, it is not read back: import what it was"
    ):
        merge_adapter(runs / "lora", tmp_path / "merged", base=translator)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="mine is not replaced"):
        merge_adapter(runs / "lora", tmp_path / "mine", base=tiny_chat_model)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"


@pytest.mark.usefixtures("any_case")
def test_the_base_is_never_replaced_by_what_was_merged_into_it(
    runs: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_chat_model, tmp_path / "base")
    (tmp_path / "link").symlink_to(base, target_is_directory=True)
    for output in (base, tmp_path / "link", tmp_path / "BASE"):
        with pytest.raises(
            ConfigError, match=r"output is .*, the base, without which .* Choose another folder: -o FOLDER"
        ):
            merge_adapter(runs / "lora", output, base=base)
    assert (base / "model.safetensors").read_bytes() == (tiny_chat_model / "model.safetensors").read_bytes()


def test_where_there_is_no_adapter_it_is_said(tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is neither an adapter .* nor a run with checkpoints"):
        merge_adapter(tiny_chat_model, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"There is no adapter at .*nowhere\. Check the path\."):
        merge_adapter(tmp_path / "nowhere", tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"holds no adapter: there is no adapter_config\.json"):
        read_adapter(tiny_chat_model)
    whole = finetune_settings(tiny_chat_model, tiny_chats, tmp_path / "run", method="sft", max_steps=1)
    finetune(whole)
    with pytest.raises(CheckpointError, match=r"are whole models, and no adapters\. .*: edgelm export .*best"):
        merge_adapter(tmp_path / "run", tmp_path / "merged")


def test_weights_that_can_run_code_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "adapter_config.json").write_text("{}")
    (tmp_path / "theirs" / "adapter_model.bin").touch()
    message = r"its weights in adapter_model.bin, which can run code .* save_pretrained of PEFT writes"
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(tmp_path / "theirs", tmp_path / "merged")


def test_an_adapter_in_a_gguf_file_is_told_the_way_on(tmp_path: Path) -> None:
    (tmp_path / "lora.gguf").touch()
    with pytest.raises(CheckpointError, match=r"lora.gguf is a GGUF file. An adapter .* with llama-export-lora"):
        merge_adapter(tmp_path / "lora.gguf", tmp_path / "merged")
