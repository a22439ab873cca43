"""Several processes on one model: the losses of one, through shards, losses of workers and changes of their number."""

from __future__ import annotations

import math
import os
import re
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from forked_processes import LAUNCHER_VARIABLES, exit_status, fork, run_processes
from model_features import FEATURES, config_with
from safetensors.torch import load_file
from tiny_training_runs import StopAt, loss_log, losses, settings
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from edgelm import TrainingError
from edgelm.cli.main import main
from edgelm.config import ModelConfig
from edgelm_training import trainer
from edgelm_training.cli import run_command as cli_run_command
from edgelm_training.model import Transformer
from edgelm_training.pretrain import pretrain
from edgelm_training.rows.batches import Batches
from edgelm_training.runs import distributed
from edgelm_training.runs.throughput import flops_per_token
from edgelm_training.runs.train_log import SilentReporter, read_log
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import read_settings, to_toml
from edgelm_training.texts.shards import Shards

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork is POSIX's")

# float32 sums over 2 or 4 processes have another order. Measured over 8 steps: 1.1e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def one_process(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    pretrain(settings(tiny_shards, run, save_every=4))
    return run


def train_together(count: int, values: dict[str, Any], *, resume: bool = False, stop_at: int = 0) -> list[int]:
    return run_processes(lambda: pretrain(values, resume=resume, reporter=StopAt(stop_at)) and None, count)


def samples(run: Path) -> list[dict[str, Any]]:
    return [entry for entry in loss_log(run) if "sample" in entry]


def validation_losses(run: Path) -> list[float]:
    return [entry["validation_loss"] for entry in loss_log(run) if "validation_loss" in entry]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(
    parallel: str, one_process: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_together(2, settings(tiny_shards, run, parallel=parallel, micro_batch_size=1, save_every=4)) == [0, 0]

    assert losses(run) == pytest.approx(losses(one_process), abs=TOLERANCE)
    assert validation_losses(run) == pytest.approx(validation_losses(one_process), abs=TOLERANCE)
    assert samples(run) == samples(one_process)
    ours, theirs = saved_weights(run), saved_weights(one_process)
    # AdamW divides by the gradient's size, so rounding shows in full where a gradient is almost 0. Measured: 2e-5.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 5e-4


@pytest.mark.parametrize(
    "features",
    ["relative positions of each layer's own", "keys and values of earlier layers, with wider feed-forwards"],
)
def test_what_blocks_share_is_there_where_each_of_them_is_gathered_alone(features: str, tmp_path: Path) -> None:
    model, ids = Transformer(config_with(FEATURES[features])), torch.arange(5, 45)[None]
    expected = model(ids)

    def check() -> None:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        for module in (*distributed.blocks(model), model):
            fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        found = model(ids)
        found.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        torch.testing.assert_close(found, expected)

    assert exit_status(fork(check)) == 0


def test_tables_of_positions_are_not_sent_around_before_each_pass() -> None:
    def check() -> None:
        workers = distributed.launched_workers()
        with distributed.process_group(workers, torch.device("cpu")):
            model = Transformer(config_with({}))
            together = distributed.distribute(model, "ddp", workers, torch.device("cpu"))
            (table, *_) = (buffer for name, buffer in model.named_buffers() if name.endswith(".cos"))
            table.fill_(workers.rank)
            together(torch.arange(5, 45)[None]).sum().backward()
            assert bool((table == workers.rank).all())

    assert run_processes(check, 2) == [0, 0]


def saved_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "latest" / "model.safetensors")


def test_a_run_of_four_with_shards_goes_on_as_two_and_ends_as_one(
    one_process: Path, tiny_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_together(4, settings(tiny_shards, run, parallel="fsdp", save_every=4), stop_at=3) == [0] * 4
    assert train_together(2, {"output": str(run), "parallel": "ddp"}, resume=True, stop_at=5) == [0] * 2
    assert [entry["step"] for entry in loss_log(run)][-1] == 5

    assert pretrain({"output": str(run), "parallel": "auto"}, resume=True).step == 8

    assert losses(run) == pytest.approx(losses(one_process), abs=TOLERANCE)


def test_each_step_of_each_process_draws_other_random_numbers_and_another_seed_others_still(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, drawn_from = Transformer.forward, tmp_path / "seeds"

    def noting(model: Transformer, *inputs: Any) -> torch.Tensor:
        if model.training:
            with drawn_from.open("a") as file:
                file.write(f"{torch.initial_seed()}\n")
        return forward(model, *inputs)

    monkeypatch.setattr(Transformer, "forward", noting)
    changes = {"max_steps": 3, "save_every": 3, "sample_every": 0, "eval_every": 0}
    assert train_together(2, settings(tiny_shards, tmp_path / "two", **changes)) == [0, 0]
    pretrain(settings(tiny_shards, tmp_path / "one", seed=1, **changes))

    assert len(set(drawn_from.read_text().splitlines())) == 2 * 3 + 3


class StopSecond(SilentReporter):
    """Send the second process SIGTERM in its third step."""

    def working(self, text: str) -> None:
        if os.environ["RANK"] == "1" and text.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_all_processes_stop_where_any_of_them_is_told_to(tiny_shards: Path, tmp_path: Path) -> None:
    values = settings(tiny_shards, tmp_path / "run", save_every=100)

    def train() -> None:
        outcome = pretrain(values, reporter=StopSecond())
        assert (outcome.step, outcome.signal) == (3, signal.SIGTERM)

    assert run_processes(train, 2) == [0, 0]
    assert (tmp_path / "run/latest").resolve().name == "step-00000003"


def test_a_bad_loss_of_another_process_is_said_with_the_rows_of_that_one(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    forward = Transformer.forward

    def poisoned(model: Transformer, *inputs: Any) -> torch.Tensor:
        return forward(model, *inputs) * (math.nan if os.environ["RANK"] == "1" else 1.0)

    monkeypatch.setattr(Transformer, "forward", poisoned)
    assert train_together(2, settings(tiny_shards, tmp_path / "run", eval_every=0)) == [1, 1]

    rows = Batches(Shards.open(tiny_shards), sequence_length=32, seed=0)
    named = "; ".join(dict.fromkeys(rows.describe(row) for row in (2, 3)))  # the second half of four
    assert f"The loss is nan at step 1. The documents of the batch: {named}. No checkpoint" in capfd.readouterr().err


def test_the_share_of_the_peak_is_of_what_all_devices_could_do(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "peak_flops", lambda _: 1e9)
    assert train_together(2, settings(tiny_shards, tmp_path / "run", max_steps=2)) == [0, 0]

    each = flops_per_token(ModelConfig.load(tmp_path / "run/latest"), 32)
    for entry in [entry for entry in read_log(tmp_path / "run/log.jsonl") if "loss" in entry]:
        assert entry["mfu"] == pytest.approx(entry["tokens_per_second"] * each / 2e9, abs=1e-3)


def test_pieces_of_every_process_make_the_rows_of_a_step(tiny_shards: Path, tmp_path: Path) -> None:
    for name, count in (("one", 1), ("two", 2)):
        values = settings(tiny_shards, tmp_path / name, micro_batch_size=1, grad_accum_steps=3, max_steps=2)
        del values["global_batch_size"]
        assert train_together(count, values) == [0] * count
        assert read_settings(tmp_path / name / "config.toml", PretrainConfig)["global_batch_size"] == 3 * count


def test_rows_that_the_processes_cannot_share_are_an_error(
    tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_together(2, settings(tiny_shards, tmp_path / "run", global_batch_size=5)) == [1, 1]

    assert "global_batch_size is 5; it must be a multiple of the 2 processes." in capfd.readouterr().err


def test_an_error_of_the_folder_is_said_once(
    one_process: Path, tiny_shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_together(2, settings(tiny_shards, one_process)) == [1, 1]

    assert capfd.readouterr().err.count("TrainingError: ") == 1


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_lost_another_one_says_so(
    lost: int, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave() -> None:
        if os.environ["RANK"] == str(lost):
            os._exit(7)

    monkeypatch.setattr(trainer, "refuse_unsaved_state", lambda *_: leave())
    assert train_together(2, settings(tiny_shards, tmp_path / "run")) == ([7, 1] if lost == 0 else [1, 7])

    said = re.findall(r"TrainingError: .*", capfd.readouterr().err)
    assert len(said) == 1
    assert re.search(rf"Process {1 - lost} of 2 lost another one: .*\w\. What that one said, or a lack of mem", said[0])


@pytest.mark.parametrize(
    ("kind", "reason", "detail"),
    [
        (TrainingError, "remote process exited or there was a network error", "ncclRemoteError: A call failed"),
        (torch.distributed.DistBackendError, "invalid usage", "Last error:\nDuplicate GPU detected : rank 1"),
    ],
)
def test_of_the_errors_of_nccl_one_is_of_a_lost_process(
    kind: type[Exception], reason: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_connect", lambda _: None)
    monkeypatch.setattr(distributed, "_LET_GO_SECONDS", 0)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    workers = distributed.Workers(rank=0, world_size=2, local_rank=0)
    with pytest.raises(kind, match=reason), distributed.process_group(workers, torch.device("cuda")):
        raise torch.distributed.DistBackendError(f"NCCL error in: NCCLUtils.hpp:268, {reason}\n{detail}")


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_do_not_meet_are_an_error_that_names_the_address(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in zip(LAUNCHER_VARIABLES, (rank, 2, rank, "127.0.0.1", port), strict=True):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "_CONNECT_TIMEOUT", timedelta(seconds=1))

    message = rf"Process {rank} of 2 did not meet the others at 127\.0\.0\.1:{port}: .*imed out after"
    with (
        pytest.raises(TrainingError, match=message),
        distributed.process_group(distributed.launched_workers(), torch.device("cpu")),
    ):
        raise AssertionError("there is nobody to meet")


def test_processes_that_met_wait_longer_for_what_one_computes() -> None:
    def check() -> None:
        with distributed.process_group(distributed.launched_workers(), torch.device("cpu")):
            gloo = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
            assert gloo.options._timeout == timedelta(hours=1)

    assert run_processes(check, 2) == [0, 0]


def test_a_loss_of_another_process_is_told_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_connect", lambda device: None)
    monkeypatch.setattr(distributed, "_LET_GO_SECONDS", 0)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    error = r"[third_party\gloo\gloo\transport\uv\pair.cc:63] Connection closed by peer"
    with (
        pytest.raises(TrainingError, match=r"^Process 0 of 2 lost another one: Connection closed by peer\. What"),
        distributed.process_group(distributed.Workers(rank=0, world_size=2, local_rank=0), torch.device("cpu")),
    ):
        raise RuntimeError(error)


def test_a_program_with_a_process_group_of_its_own_trains_in_one_process(tiny_shards: Path, tmp_path: Path) -> None:
    def train() -> None:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        assert pretrain(settings(tiny_shards, tmp_path / "run", max_steps=2, eval_every=0)).step == 2

    assert exit_status(fork(train)) == 0


def launch(work: Callable[[Any], None], value: Any, *, restarts: int = 0) -> None:
    """Work in two processes as torchrun has it with --standalone, but forked: none of them imports torch again."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=restarts, start_method="fork",
        run_id="tiny", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    elastic_launch(config, work)(value)


def train_as_a_program(arguments: list[str]) -> None:
    """Do what torchrun starts with -m edgelm_training.pretrain."""
    sys.argv[1:] = arguments
    runpy.run_module("edgelm_training.pretrain", run_name="__main__")


def train_and_lose_a_worker_at_the_fifth_step(toml: Path) -> None:
    """Do what torchrun starts, `edgelm train`, of which one worker is lost once."""
    batch = Batches.batch

    def lost(rows: Batches, first: int, count: int) -> Any:
        if first >= 4 * 4 and rows.shards.split == "train":
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(rows, first, count)

    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        Batches.batch = lost  # type: ignore[method-assign]
    main(["train", str(toml), "--json"], standalone_mode=False)


def test_torchrun_restarts_after_a_lost_worker_and_the_losses_are_the_same(
    one_process: Path, tiny_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    toml = tmp_path / "tiny.toml"
    toml.write_text(to_toml(PretrainConfig(**settings(tiny_shards, run))))
    assert exit_status(fork(lambda: launch(train_and_lose_a_worker_at_the_fifth_step, toml, restarts=3))) == 0

    said = capfd.readouterr()
    assert "did not meet" not in said.err  # the workers of one start find nothing of another one's
    assert '"step": 8' in said.out
    assert "Going on after step 4" in said.err
    assert losses(run) == pytest.approx(losses(one_process), abs=TOLERANCE)


def test_torchrun_ends_with_a_refused_setting_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "shards/", "-o", str(tmp_path / "run"), "--seed", "-1"]
    assert exit_status(fork(lambda: launch(train_as_a_program, arguments))) == 1

    said = capfd.readouterr().err
    assert said.count("Error: seed is -1; it must be from 0 to") == 1
    assert "exitcode  : 2 " in said


@pytest.mark.parametrize("command", ["train", "finetune", "distill"])
@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--max-steps", "many"], 2, "Error: Invalid value for '--max-steps': 'many' is not a valid integer."),
        (["unknown.toml"], 2, "Error: unknown.toml: There is no setting 'unknown'."),
        (["nothing.toml"], 2, "Error: Cannot read nothing.toml:"),
        (["--seed", "-1", "-o", "run"], 2, "Error: seed is -1; it must be from 0 to"),
        (["-o", "held"], 1, "error: held is not empty and holds no run."),
    ],
)
def test_the_first_process_of_a_machine_says_what_is_wrong_and_all_end_alike(
    command: str,
    arguments: list[str],
    exit_code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unknown.toml").write_text("unknown = 1\n")
    (tmp_path / "held").mkdir()
    (tmp_path / "held/file").write_text("")
    monkeypatch.setattr(cli_run_command, "_WAIT_SECONDS", 0)
    for local_rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        result = invoke(command, *arguments)
        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert (message in result.stderr) == (local_rank == "0")
        assert bool(result.stderr) == (local_rank == "0")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_quantization_aware_training_is_the_same_with_two_processes(
    parallel: str, tiny_shards: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "int4.toml"
    recipe.write_text('[[rules]]\npattern = "."\nscheme = "int4-block16"\n')
    changes = {"qat": str(recipe), "micro_batch_size": 2, "max_steps": 4, "save_every": 4, "sample_every": 0}
    together = settings(tiny_shards, tmp_path / "two", parallel=parallel, **changes)
    assert run_processes(lambda: pretrain(together) and None, 2) == [0, 0]
    pretrain(settings(tiny_shards, tmp_path / "one", **changes))

    # A weight between two steps of its grid goes to the other one for a difference of float32's last bit.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    ours, theirs = (load_file(tmp_path / folder / "latest/model.safetensors") for folder in ("one", "two"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().mean() < 1e-3 for name in ours)
