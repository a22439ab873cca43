import json
import os
import re
import resource
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import invoke
from forked_processes import exit_status, fork
from json_files import change_json
from make_tiny_model import CONFIG, make_checkpoint
from safetensors.numpy import load_file, save_file
from tokenizers.processors import TemplateProcessing

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ExportError, VerificationError
from edgelm.package.manifest import Manifest
from edgelm.runtime.session import DecoderSession
from edgelm.testing import tiny_model_path
from edgelm_export import exporter
from edgelm_export.decoder import DecoderStack
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint, write_checkpoint
from edgelm_export.mixed import Budget, export_mixed
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_export.verification import verify


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_package_of_every_precision_loads_and_its_figures_are_within_bounds(
    checkpoint: HuggingFaceCheckpoint, precision: str, tmp_path: Path
) -> None:
    manifest = export_package(checkpoint, tmp_path / "package", precision)
    quality = manifest.quality
    assert quality is not None
    assert quality.perplexity <= quality.source_perplexity * PRECISIONS[precision].perplexity_bound
    assert quality.mean_kl_divergence >= 0
    model = edgelm.load(tmp_path / "package")
    assert model.generate("The", edgelm.GenerationConfig(max_new_tokens=3)).usage.completion_tokens == 3
    assert Manifest.load(tmp_path / "package") == manifest


def test_scales_are_in_float16_on_the_disk_and_widened_in_the_graph(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    export_package(checkpoint, tmp_path / "package", "int8")
    graph = onnx.load_model(tmp_path / "package" / "model.onnx", load_external_data=False).graph
    scales = {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.name.endswith(".scales")}
    assert scales
    assert set(scales.values()) == {onnx.TensorProto.FLOAT16}
    widened = {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in scales}
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert {node.input[2] for node in products} == widened


def test_an_fp32_package_is_its_source(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    quality = export_package(checkpoint, tmp_path / "package", "fp32").quality
    assert quality is not None
    assert quality.max_logit_difference < 1e-4  # float32 sums in another order; 5e-6 seen
    assert quality.top1_agreement == 1.0
    assert quality.greedy_agreement == quality.greedy_tokens == 32


def test_a_program_may_name_source_and_target_as_texts(tmp_path: Path) -> None:
    with open_checkpoint(str(make_checkpoint(tmp_path / "checkpoint"))) as checkpoint:
        export_package(checkpoint, str(tmp_path / "package"), "fp32")
    import_checkpoint(str(tmp_path / "package"), str(tmp_path / "again"))
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_a_graph_that_lacks_a_part_of_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"attention_output_gate": True})
    monkeypatch.setattr(DecoderStack, "gated", lambda self, attended, *_: attended)
    message = r"no place for model\.layers\.0\.self_attn\.gate_proj\.weight and 1 more tensors of .*reference/model\.py"
    with (
        HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config)) as checkpoint,
        pytest.raises(ExportError, match=message),
    ):
        export_package(checkpoint, tmp_path / "package", "fp32")
    assert not (tmp_path / "package").exists()


def test_a_short_context_is_shared_between_the_prompt_and_the_greedy_tokens(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(CONFIG.to_dict() | {"max_position_embeddings": 32})
    with HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config)) as checkpoint:
        quality = export_package(checkpoint, tmp_path / "package", "fp32").quality
    assert quality is not None
    assert quality.greedy_agreement == quality.greedy_tokens == 16


def test_every_file_of_the_package_is_in_the_manifest(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    manifest = export_package(checkpoint, tmp_path / "package")
    listed = {entry.path for entry in manifest.files}
    assert listed | {"edgelm.json"} == {path.name for path in (tmp_path / "package").iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "config.json", "genai_config.json"} <= listed


def test_a_folder_that_is_no_package_is_not_replaced(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(ExportError, match=r"home is not replaced: it exists and is not a model package"):
        export_package(checkpoint, home)
    assert (home / "thesis.txt").read_text() == "years of work"


@pytest.mark.usefixtures("open_files_stay")  # the check of the new one has closed it
def test_an_older_package_is_replaced_whole(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    target = tmp_path / "package"
    export_package(checkpoint, target, "fp32")
    export_package(checkpoint, target, "int8")
    assert Manifest.load(target).precision == "int8"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite values"):
        export_package(HuggingFaceCheckpoint(folder), tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_package_that_is_worse_than_its_bound_is_not_written(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_package(checkpoint, tmp_path / "package", "fp32")
    before = state_of(tmp_path / "package")
    forward = DecoderSession.forward
    monkeypatch.setattr(DecoderSession, "forward", lambda *args, **options: forward(*args, **options) * 3)
    with pytest.raises(VerificationError, match=r"The int8 package has a perplexity of .* Nothing was written"):
        export_package(checkpoint, tmp_path / "package", "int8")
    assert state_of(tmp_path / "package") == before


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"perplexity": np.nan}, "The fp32 package has a perplexity of nan where its source has"),
        ({"source_perplexity": np.nan}, "The fp32 package has a perplexity of .* where its source has nan"),
        (
            {"perplexity_after_prefill": np.nan, "source_perplexity_after_prefill": 9.0},
            "Behind a prompt .* has a perplexity of nan where its source has 9.00",
        ),
        (
            {"perplexity_after_prefill": 10.0, "source_perplexity_after_prefill": 9.0},
            "Behind a prompt .* 1.111 times, and .* is the bound. Nothing was written. Export it without --prefill",
        ),
        ({"mean_kl_divergence": np.nan}, "The fp32 package computes something else than its source: .* by nan nats"),
        ({"mean_kl_divergence": 0.003}, "diverge by 0.0030 nats a token, and 0.0020 is the bound. Nothing was written"),
    ],
)
def test_a_figure_that_is_none_or_too_large_is_refused(figures: dict[str, float], message: str) -> None:
    quality = Manifest.load(tiny_model_path()).quality
    assert quality is not None
    verify.check_quality(quality, PRECISIONS["fp32"])
    with pytest.raises(VerificationError, match=message):
        verify.check_quality(replace(quality, **figures), PRECISIONS["fp32"])


def test_integers_may_diverge_from_their_source_as_their_bits_allow() -> None:
    quality = Manifest.load(tiny_model_path()).quality
    assert quality is not None
    verify.check_quality(replace(quality, mean_kl_divergence=0.5), PRECISIONS["int4"])
    verify.check_quality(replace(quality, mean_kl_divergence=0.05), PRECISIONS["int8"])
    with pytest.raises(VerificationError, match=r"The int8 package .* diverge by 0.8000 nats .* 0.0591 is the bound"):
        verify.check_quality(replace(quality, mean_kl_divergence=0.8), PRECISIONS["int8"])


def test_a_package_in_floats_that_computes_something_else_is_refused_though_its_perplexity_is_lower(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = DecoderSession.forward
    monkeypatch.setattr(DecoderSession, "forward", lambda *args, **options: forward(*args, **options) * 0.5)
    with pytest.raises(VerificationError, match=r"The fp32 package computes something else than its source: .* nats"):
        export_package(checkpoint, tmp_path / "package", "fp32")
    assert not (tmp_path / "package").exists()


def test_an_interrupted_export_leaves_the_old_package(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_package(checkpoint, tmp_path / "package", "fp32")
    before = state_of(tmp_path / "package")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    names = vars(exporter)
    for place, stage in ((exporter._DECODERS, "onnxruntime"), (names, "measure_quality"), (names, "describe_file")):
        with monkeypatch.context() as patch:
            patch.setitem(place, stage, interrupt)
            with pytest.raises(KeyboardInterrupt):
                export_package(checkpoint, tmp_path / "package", "int8")
        assert state_of(tmp_path / "package") == before
        assert sorted(path.name for path in tmp_path.iterdir() if "package" in path.name) == ["package"]


def test_a_full_disk_leaves_the_old_package(tmp_path: Path) -> None:
    folder, target = make_checkpoint(tmp_path / "checkpoint"), tmp_path / "package"
    export_package(HuggingFaceCheckpoint(folder), target)
    before = state_of(target)

    def export() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        with pytest.raises(ExportError, match=rf"^{target} cannot be written: \[Errno 27\] File too large"):
            export_package(HuggingFaceCheckpoint(folder), target, "fp32")

    assert exit_status(fork(export)) == 0
    assert state_of(target) == before


def test_a_full_disk_of_the_check_is_named(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Path("/dev/full").open("w+b"))  # noqa: SIM115
    message = rf"logits in {re.escape(tempfile.gettempdir())}, which fails: .*No space left .* folder .* as TMPDIR\."
    with pytest.raises(VerificationError, match=message):
        export_package(checkpoint, tmp_path / "package", "fp32")
    assert not (tmp_path / "package").exists()


def test_progress_counts_every_tensor(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    progress: Callable[[str, int, int], None] = lambda *step: seen.append(step)  # noqa: E731
    export_package(checkpoint, tmp_path / "package", progress=progress)
    total = len(checkpoint.config.tensor_shapes())
    assert [step for step in seen if step[0] == "weights"][-1] == ("weights", total, total)
    count = len(checkpoint.config.tensor_shapes())
    assert [done for label, done, total in seen if label == "check" and total == count][-1] == count


def test_the_shipped_tiny_model_is_what_its_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_package(checkpoint, tmp_path / "package", "fp32", name="tiny-random")
    for name in ("model.onnx.data", "tokenizer.json", "config.json", "chat_template.jinja", "genai_config.json"):
        assert (tmp_path / "package" / name).read_bytes() == (tiny_model_path() / name).read_bytes(), name


def test_the_command_prints_the_figures(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    result = invoke("export", folder, "-o", tmp_path / "package", "--precision", "fp32")
    assert result.exit_code == 0, result.output
    for label in ("package", "perplexity", "KL divergence", "logits", "greedy tokens"):
        assert label in result.stdout


def test_the_command_prints_the_manifest_as_json(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    result = invoke("export", folder, "-o", tmp_path / "package", "--json")
    assert json.loads(result.stdout)["precision"] == "int8"


def test_the_command_puts_a_package_into_the_library_by_default(tmp_path: Path, own_library: Path) -> None:
    folder = make_checkpoint(tmp_path / "Little")
    for options in ([], ["--precision", "int4"]):
        result = invoke("export", folder, *options)
        assert result.exit_code == 0, result.output
    assert sorted(os.listdir(own_library / "models")) == ["little", "little-int4"]
    assert edgelm.load("little-int4").manifest.precision == "int4"


def test_the_verification_text_fits_small_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_WINDOWS", 4)  # of which conftest.py makes one
    model = edgelm.load(tiny_model_path())
    small = edgelm.ModelConfig.from_dict(model.config.to_dict() | {"max_position_embeddings": 40})
    _, windows, _ = verify._texts(model.tokenizer, small)
    assert [len(window) for window in windows] == [40] * 4


@pytest.mark.parametrize(("size", "count"), [("vocab_size", 3), ("max_position_embeddings", 1)])
def test_a_model_that_knows_no_two_tokens_of_the_text_is_refused(size: str, count: int) -> None:
    model = edgelm.load(tiny_model_path())
    small = edgelm.ModelConfig.from_dict(model.config.to_dict() | {size: count})
    with pytest.raises(VerificationError, match=r"^There is nothing to check: .* Take the tokenizer that belongs"):
        verify._texts(model.tokenizer, small)


def test_a_large_model_is_checked_on_shorter_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_WINDOW_TOKENS", 256)  # which conftest.py makes fewer
    monkeypatch.setattr(verify, "_WINDOWS", 4)
    model = edgelm.load(tiny_model_path())
    sizes = {"intermediate_size": 2**16, "hidden_size": 2**10, "num_hidden_layers": 6}
    large = edgelm.ModelConfig.from_dict(model.config.to_dict() | sizes)
    for config, length in ((model.config, 256), (large, 64)):
        _, windows, _ = verify._texts(model.tokenizer, config)
        assert [len(window) for window in windows] == [length] * 4


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/package cannot be written: .* choose a folder with -o\."):
        export_package(checkpoint, tmp_path / "file" / "package")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ExportError, match=r"loop (is not|cannot be) written: .*[Ss]ym"):
        export_package(checkpoint, tmp_path / "loop")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("chat_template.jinja", "{% if x %}", "The chat template has a syntax error"),
        ("generation_config.json", '{"do_sample": true, "top_p": 0.0}', "top_p is 0.0"),
        ("tokenizer.json", "{}", "The tokenizer's decoder is none"),
    ],
)
def test_text_files_that_do_not_load_are_refused_before_the_work(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint")
    (folder / name).write_text(content)
    steps: list[tuple[str, int, int]] = []
    for write in (export_package, write_checkpoint):
        with pytest.raises(CheckpointError) as refused, HuggingFaceCheckpoint(folder) as checkpoint:
            write(checkpoint, tmp_path / "new", progress=lambda *step: steps.append(step))
        assert str(refused.value).startswith(f"The source's text files do not load: {folder / name}: {problem}")
    assert (steps, (tmp_path / "new").exists()) == ([], False)


def test_the_tokenizer_of_another_model_is_refused_before_the_work(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", replace(CONFIG, vocab_size=319))
    marks = TemplateProcessing(single="Ġthe $A", special_tokens=[("Ġthe", 319)])
    change_json(folder / "tokenizer.json", post_processor=json.loads(marks.__getstate__()))
    steps: list[tuple[str, int, int]] = []
    for export, how in ((export_package, "int8"), (export_mixed, Budget(size=10**6))):
        with pytest.raises(VerificationError, match="puts token 319 around a text; the model's are 0 to 318"):
            export(HuggingFaceCheckpoint(folder), tmp_path / "new", how, progress=lambda *step: steps.append(step))
    assert steps == []


def test_what_a_gguf_file_has_of_its_text_files_is_mended_in_the_folder_that_an_import_makes_of_it(
    tmp_path: Path, save_llama: Callable[..., Any], write_gguf: Callable[..., Path]
) -> None:
    path = write_gguf(tmp_path / "model.gguf", save_llama(tmp_path / "hf"), chat_template="{% if x %}")
    advice = rf"do not load: {path}: The chat template .*\. Put a chat_template\.jinja that does into the folder"
    with GGUFCheckpoint(path) as checkpoint:
        with pytest.raises(CheckpointError, match=advice):
            export_package(checkpoint, tmp_path / "package")
        (note,) = write_checkpoint(checkpoint, tmp_path / "new")
    assert re.search(advice, note)
    (tmp_path / "new" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export_package(HuggingFaceCheckpoint(tmp_path / "new"), tmp_path / "package", "fp32")
