"""Quantization-aware training: the model computes on the exporter's grid, and the exporter packs just that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from tiny_training_runs import MODEL, assert_same_run, finetune_settings, loss_log, losses, settings
from torch.nn import functional
from unchecked_export import export_unchecked

from edgelm.architecture.block_grid import in_blocks, searched_grid
from edgelm.architecture.multipliers import Multipliers
from edgelm.architecture.quantization_recipe import Precision, Rule, precision_named
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, TrainingError
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import pack, unpack
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_training.adaptation.fake_quantization import (
    FakeQuantization,
    add_fake_quantization,
    on_grid,
    quantized_precision,
    schemes_of,
    steps_and_scales,
)
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.finetune import finetune
from edgelm_training.model import Transformer
from edgelm_training.pretrain import pretrain
from edgelm_training.rows.batches import Batches
from edgelm_training.runs.loss import count_targets, next_token_loss
from edgelm_training.texts.shards import Shards

SCHEMES = [
    "int8-block32", "int8-block64-asymmetric", "int4-block16", "int4-block64", "int4-block64-asymmetric",
    "int2-block32", "int2-block64-asymmetric",
]  # fmt: skip
IDS = torch.tensor([[5, 17, 3, 44, 8, 60]])
# `int4` has 8 bits in the first and the last layer.
DEEP = MODEL | {"num_hidden_layers": 3}


def random_weight(rows: int = 24, columns: int = 144) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("name", SCHEMES)
def test_the_exporter_packs_the_integers_that_were_trained(name: str) -> None:
    scheme, weight = parse_scheme(name), random_weight()
    quantization = FakeQuantization(weight, scheme)
    learned = weight * 1.1 + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))

    steps, scales = steps_and_scales(learned, quantization.shares, scheme)
    packed = quantize_alone(quantization(learned).numpy(), scheme)

    assert np.array_equal(unpack(packed), quantization(learned).numpy())
    # A grid turned upside down, or a coarser one, holds some blocks as exactly.
    same = packed.scales == scales.numpy()
    assert same.mean() > 0.5
    if scheme.symmetric:
        values = (steps + (1 << (scheme.bits - 1))).numpy().astype(np.uint8)
        trained = pack(values, scales.numpy(), None, bits=scheme.bits, columns=weight.shape[1])
        assert np.array_equal(packed.packed[same], trained.packed[same])


def test_it_begins_on_the_grid_that_the_exporter_would_search() -> None:
    scheme, weight = parse_scheme("int4-block64"), random_weight()
    blocks = in_blocks(weight.numpy(), 64)
    searched = searched_grid(blocks, scheme).with_half_scales()

    rounded = FakeQuantization(weight, scheme)(weight).numpy()

    wanted = searched.weights(searched.nearest(blocks)).reshape(len(blocks), -1)[:, :144]
    # Shares in float32: a scale between two of float16 may go to the other one, as a weight between two steps may.
    assert (np.abs(rounded - wanted) > 2**-16 * np.abs(wanted)).mean() < 0.005


def test_the_gradient_passes_straight_through() -> None:
    scheme, weight = parse_scheme("int4-block16"), random_weight(8, 32).requires_grad_()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    quantization = FakeQuantization(weight, scheme)

    functional.linear(x, quantization(weight)).square().sum().backward()

    rounded = on_grid(weight.detach(), quantization.shares, scheme).requires_grad_()
    functional.linear(x, rounded).square().sum().backward()
    assert torch.equal(weight.grad, rounded.grad)


def test_a_tied_embedding_is_rounded_once_for_both_of_its_uses(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(tiny_config, tie_word_embeddings=True))
    plain = Transformer(model.config)
    add_fake_quantization(model, Precision(rules=(Rule(pattern="embed", scheme="int4-block16"), REST)))
    plain.load_state_dict(
        {name.replace(".parametrizations.weight.original", ".weight"): value
         for name, value in model.state_dict().items() if not name.endswith("shares")}
    )  # fmt: skip
    with torch.no_grad():
        plain.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight)

    assert torch.equal(model(IDS), plain(IDS))


REST = Rule(pattern=".", scheme="fp32")


def test_the_schemes_are_the_recipe_s_for_every_matrix_but_positions() -> None:
    config = dataclasses.replace(CONFIG, num_hidden_layers=3, position="learned")

    schemes = schemes_of(config, precision_named("int4"))

    assert {name: scheme.bits for name, scheme in schemes.items() if "q_proj" in name or "embed" in name} == {
        "model.embed_tokens": 8,
        "model.layers.0.self_attn.q_proj": 8,
        "model.layers.1.self_attn.q_proj": 4,
        "model.layers.2.self_attn.q_proj": 8,
    }
    matrices = [name for name, shape in config.tensor_shapes().items() if len(shape) == 2]
    assert len(schemes) == len(matrices) - 1


@pytest.mark.parametrize(
    ("position", "plain"), [("learned", "embed_positions"), ("relative", "relative_attention_bias")]
)
def test_the_positions_of_two_stacks_stay_off_the_grid(position: str, plain: str) -> None:
    stack = dataclasses.replace(CONFIG, position=position, num_key_value_heads=CONFIG.num_attention_heads)
    config = dataclasses.replace(stack, encoder=stack, decoder_start_token_id=0)
    matrices = {name.removesuffix(".weight") for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    schemes = schemes_of(config, precision_named("int4"))
    assert matrices - schemes.keys() == {f"model.{side}.{plain}" for side in ("encoder", "decoder")}


@pytest.fixture(scope="module")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with `--qat int4`."""
    run = tmp_path_factory.mktemp("qat") / "run"
    pretrain(settings(tiny_shards, run, model=DEEP, qat="int4"))
    return run


def test_the_package_has_the_trained_weights_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    with open_checkpoint(trained / "latest") as checkpoint:
        export_unchecked(checkpoint, tmp_path / "pkg", "int4")
    graph = onnx.load(tmp_path / "pkg/model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    model = load_checkpoint(trained / "latest")

    def dequantized(name: str, bits: int) -> np.ndarray:
        packed, scales = stored[name], stored[f"{name}.scales"]
        values = packed if bits == 8 else np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:2], -1)
        weight = (values.astype(np.float32) - (1 << (bits - 1))) * scales.reshape(*packed.shape[:2], 1)
        return weight.reshape(len(weight), -1)

    embedding = model.model.embed_tokens.weight.detach().numpy()
    assert np.array_equal(dequantized("model.embed_tokens.weight", 8)[:, :32], embedding)
    for layer, bits in ((0, 8), (1, 4), (2, 8)):
        attention, mlp = model.model.layers[layer].self_attn, model.model.layers[layer].mlp
        for name, parts in {
            "self_attn.qkv_proj": (attention.q_proj, attention.k_proj, attention.v_proj),
            "self_attn.o_proj": (attention.o_proj,),
            "mlp.gate_up_proj": (mlp.gate_proj, mlp.up_proj),
            "mlp.down_proj": (mlp.down_proj,),
        }.items():
            weight = np.concatenate([part.weight.detach().numpy() for part in parts])
            got = dequantized(f"model.layers.{layer}.{name}.weight", bits)
            assert np.array_equal(got[:, : weight.shape[1]], weight), name


def test_a_checkpoint_is_the_model_that_was_trained(trained: Path, tiny_shards: Path) -> None:
    saved = load_checkpoint(trained / "latest")
    batch = Batches(Shards.open(tiny_shards, "validation"), sequence_length=32, seed=0).batch(0, 2)
    with torch.no_grad():
        loss = float(next_token_loss(saved, batch).objective) / count_targets(batch)

    measured = [entry["validation_loss"] for entry in loss_log(trained) if "validation_loss" in entry]
    assert measured[-1] == pytest.approx(loss, abs=1e-6)  # of weights beside their grid: 2e-4 less
    assert {name for name, _ in saved.named_parameters()} == set(saved.config.tensor_shapes())


def test_a_run_that_resumes_is_the_run_that_was_never_interrupted(
    tiny_shards: Path, trained: Path, tmp_path: Path
) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", model=DEEP, qat="int4", max_steps=4))
    # The schedule of learning rates spans the whole run, so the first half is done again.
    pretrain(settings(tiny_shards, tmp_path / "whole", model=DEEP, qat="int4", keep_last=9))
    for step in (6, 8):
        (tmp_path / f"whole/checkpoints/step-{step:08d}").rename(tmp_path / f"gone-{step}")
    pretrain({"output": str(tmp_path / "whole")}, resume=True)

    assert_same_run(trained, tmp_path / "whole")


def test_the_whole_model_is_fine_tuned_with_it(tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finetune(
        finetune_settings(
            tiny_chat_model, tiny_chats, run, method="sft", qat="int8", teacher=str(tiny_chat_model),
            teacher_weight=0.5, max_steps=12,
        )
    )  # fmt: skip

    assert losses(run)[-1] < losses(run)[0]
    scheme = parse_scheme("int8-block64")
    weights = load_checkpoint(run / "latest").state_dict()
    weight = weights["model.layers.0.mlp.up_proj.weight"].numpy()
    assert np.array_equal(unpack(quantize_alone(weight, scheme)), weight)

    # What the preset folds into other weights would move these off their grid.
    with open_checkpoint(run / "latest") as checkpoint:
        manifest = export_unchecked(checkpoint, tmp_path / "pkg", "int8")
    assert manifest.recipe == ({"pattern": ".", "scheme": "int8-block64"},)
    with PackageCheckpoint(tmp_path / "pkg") as package:
        np.testing.assert_array_equal(package.tensor("model.layers.0.mlp.up_proj.weight"), weight)


@pytest.mark.parametrize("name", ["int5", "fp16", "keep", "missing.txt"])
def test_a_precision_without_integers_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"qat is '{name}'; it must be one of int8, int8-wide, int4, int2, or"):
        quantized_precision(name)


def test_a_recipe_file_says_what_to_train_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[rules]]\npattern = "."\nscheme = "int4-block32"\n')
    assert quantized_precision(str(path)).schemes == [parse_scheme("int4-block32")]

    path.write_text('transforms = ["rotate"]\n' + path.read_text())
    with pytest.raises(ConfigError, match="without transforms"):
        quantized_precision(str(path))

    (tmp_path / "mine.JSON").write_text('{"rules": [{"pattern": ".", "scheme": "int4-block32"}]}')
    assert quantized_precision(str(tmp_path / "mine.JSON")).schemes == [parse_scheme("int4-block32")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_multiplier": 0.5}, r"residual_multiplier is 0\.5: the exporter folds it"),
        ({"multipliers": Multipliers(mlp_down=0.7)}, "multipliers of its projections: the exporter folds them"),
    ],
)
def test_factors_that_the_exporter_folds_in_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schemes_of(dataclasses.replace(CONFIG, **changes), precision_named("int4"))


def test_experts_are_refused() -> None:
    config = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    with pytest.raises(ConfigError, match="qat is set, and the model has 4 experts"):
        schemes_of(config, precision_named("int4"))


@pytest.mark.parametrize("pattern", [".", r"encoder\.embed_tokens"])
def test_an_embedding_that_the_exporter_cannot_gather_is_refused(pattern: str) -> None:
    encoder = dataclasses.replace(CONFIG, own_embedding=True, tie_word_embeddings=False)
    config = dataclasses.replace(CONFIG, encoder=encoder, decoder_start_token_id=0)
    precision = Precision(rules=(Rule(pattern=pattern, scheme="int4-block32-asymmetric"), REST))
    with pytest.raises(ConfigError, match="qat gives the embedding 4 bits with zero points"):
        schemes_of(config, precision)


def test_an_adapter_does_not_go_with_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qat is 'int4', for which the whole model must learn: use --method sft"):
        finetune(finetune_settings(tmp_path, tmp_path, tmp_path / "run", qat="int4"))


def test_a_run_keeps_its_precision(tiny_shards: Path, trained: Path) -> None:
    with pytest.raises(TrainingError, match=r"qat is 'int8'; the run in .* began with 'int4'"):
        pretrain({"output": str(trained), "qat": "int8"}, resume=True)


def test_a_fine_tuning_goes_on_where_its_precision_is_named_again(
    tiny_chat_model: Path, tiny_chats: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finetune(finetune_settings(tiny_chat_model, tiny_chats, run, method="sft", qat="int4", max_steps=1))
    # Without the run's own settings, --qat int4 would be one for the default method, an adapter.
    finetune({"output": str(run), "qat": "int4", "max_steps": 2}, resume=True)
    assert len(losses(run)) == 2
    with pytest.raises(TrainingError, match=r"qat is 'int8'; the run in .* began with 'int4'"):
        finetune({"output": str(run), "qat": "int8"}, resume=True)


def test_int2_is_exported_as_it_was_trained_although_its_recipe_calibrates(tiny_shards: Path, tmp_path: Path) -> None:
    pretrain(settings(tiny_shards, tmp_path / "run", model=DEEP, qat="int2", max_steps=2))

    with open_checkpoint(tmp_path / "run/latest") as checkpoint:
        export_unchecked(checkpoint, tmp_path / "pkg", "int2")

    graph = onnx.load(tmp_path / "pkg/model.onnx").graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    packed, name = stored["model.layers.1.mlp.gate_up_proj.weight"], "model.layers.1.mlp.gate_up_proj.weight"
    values = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], -1).reshape(len(packed), -1).astype(np.float32)
    zeros = (stored[f"{name}.zero_points"].reshape(len(packed), -1)[:, :1] & 3).astype(np.float32)
    weight = (values - zeros) * stored[f"{name}.scales"].reshape(len(packed), 1)
    mlp = load_checkpoint(tmp_path / "run/latest").model.layers[1].mlp
    wanted = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).detach().numpy()
    assert np.array_equal(weight[:, :32], wanted)


def test_a_checkpoint_made_elsewhere_begins_a_run(tiny_shards: Path, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "ckpt")
    (checkpoint / "tokenizer.json").write_bytes((tiny_shards / "tokenizer.json").read_bytes())
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[[rules]]\npattern = "."\nscheme = "int4-block16"\n')
    changes = {"model": None, "init": str(checkpoint), "qat": str(recipe), "max_steps": 2, "sequence_length": 32}
    given = {name: value for name, value in settings(tiny_shards, tmp_path / "run", **changes).items() if value}

    pretrain(given)

    weight = load_checkpoint(tmp_path / "run/latest").model.layers[1].mlp.up_proj.weight.detach().numpy()
    assert np.array_equal(unpack(quantize_alone(weight, parse_scheme("int4-block16"))), weight)
