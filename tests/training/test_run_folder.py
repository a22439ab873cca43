"""The folder of a run: what may be begun or gone on with, what is kept, and what is not whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from json_files import change_json, edited_json
from tiny_training_runs import settings

from edgelm.errors import TrainingError
from edgelm.files.run_checkpoint import checkpoint_of_run
from edgelm_training.model import Transformer
from edgelm_training.pretrain import build_recipe, pretrain
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_folder import RunFolder
from edgelm_training.runs.train_log import Reporter, read_log
from edgelm_training.settings.pretrain_config import PretrainConfig


@pytest.fixture(scope="module")
def finished(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with a checkpoint each two of them."""
    run = tmp_path_factory.mktemp("finished") / "run"
    pretrain(settings(tiny_shards, run, sample_every=0, keep_last=2))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def with_losses(run: Path, losses: dict[int, float | None]) -> RunFolder:
    """Make checkpoints of these steps and validation losses out of the newest one."""
    source = next(path for path in (run / "checkpoints").iterdir() if path.name == "step-00000008")
    for step, loss in losses.items():
        target = run / "checkpoints" / f"step-{step:08d}"
        shutil.copytree(source, target)
        change_json(target / "trainer" / "state.json", step=step, validation_loss=loss)
    return RunFolder(run)


def steps(folder: RunFolder) -> list[int]:
    return [saved.step for saved in folder.checkpoints()]


def test_the_last_and_the_best_are_kept_and_linked(run: Path) -> None:
    folder = with_losses(run, {10: 0.0, 12: 9.0, 14: None, 16: 8.0})

    folder.keep(2)

    assert steps(folder) == [10, 14, 16]
    # Relative, so that a run that is moved keeps them.
    assert (run / "latest").readlink() == Path("checkpoints/step-00000016")
    assert (run / "best").readlink() == Path("checkpoints/step-00000010")


def test_losses_over_other_rows_do_not_compare(run: Path) -> None:
    change_json(run / "checkpoints/step-00000008/trainer/state.json", validation_loss=0.0)
    pretrain({"output": str(run), "max_steps": 10}, resume=True)
    assert (run / "best").readlink() == Path("checkpoints/step-00000008")
    pretrain({"output": str(run), "max_steps": 12, "eval_rows": 1}, resume=True)
    assert (run / "best").readlink() == Path("checkpoints/step-00000012")


def test_a_link_that_a_kill_left_half_made_does_not_stay(run: Path) -> None:
    (run / ".latest").symlink_to("checkpoints/step-00000006")

    RunFolder(run).keep(2)

    assert (run / "latest").readlink() == Path("checkpoints/step-00000008")
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == [".lock"]


def test_a_run_that_was_copied_with_checkpoints_in_the_place_of_its_links_has_links_again(
    run: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(run, tmp_path / "copied")
    assert not (copied / "best").is_symlink()

    with_losses(copied, {10: 0.0}).keep(1)

    for link in ("latest", "best"):
        assert (copied / link).readlink() == Path("checkpoints/step-00000010")


def test_a_folder_of_something_else_in_the_place_of_a_link_is_left_alone(run: Path) -> None:
    (run / "best").unlink()
    (run / "best" / "trainer").mkdir(parents=True)
    (run / "best" / "trainer" / "state.json").write_text("{}")

    RunFolder(run).keep(1)

    assert (run / "best" / "trainer" / "state.json").read_text() == "{}"


def test_a_link_is_pointed_at_the_newest_where_no_rename_replaces_a_link_to_a_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replace_files(source: Path, target: Path) -> None:
        if target.is_dir():
            raise PermissionError(13, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", replace_files)
    (run / "latest").unlink()
    (run / "latest").symlink_to("checkpoints/step-00000006", target_is_directory=True)

    RunFolder(run).keep(2)

    assert (run / "latest").readlink() == Path("checkpoints/step-00000008")


def test_a_checkpoint_that_windows_does_not_delete_while_it_is_read_goes_at_the_next_save(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied", str(source), None, str(target))

    folder = with_losses(run, {10: 1.0, 12: 0.0})
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        folder.keep(1)
    assert steps(folder) == [6, 8, 10, 12]
    folder.keep(1)
    assert steps(folder) == [12]


def test_a_run_that_does_not_begin_says_why_where_its_lock_file_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "The process cannot access the file", path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(TrainingError, match="No data"), RunFolder(tmp_path / "run").lock():
        raise TrainingError("No data.")


def test_where_there_are_no_links_a_run_has_its_checkpoints_all_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refused)
    folder = with_losses(run, {10: 0.5})

    folder.keep(1)

    assert steps(folder) == [10]


@pytest.mark.parametrize(
    ("losses", "stands"), [({10: 0.5, 12: 0.6, 14: None}, 10), ({10: None, 100000000: None}, 100000000)]
)
def test_without_links_the_best_checkpoint_stands_for_a_run_or_the_newest(
    losses: dict[int, float | None], stands: int, run: Path
) -> None:
    with_losses(run, losses)
    for path in (run / "checkpoints/step-00000006", run / "checkpoints/step-00000008/trainer"):
        shutil.rmtree(path)
    for link in ("latest", "best"):
        (run / link).unlink()
    assert checkpoint_of_run(run) == run / f"checkpoints/step-{stands:08d}"


def test_a_run_that_is_moved_to_another_system_has_its_checkpoints_there(run: Path) -> None:
    state = json.loads((run / "checkpoints/step-00000008/trainer/state.json").read_text())
    assert "model.safetensors" in state["files"]
    assert not [name for name in state["files"] if "\\" in name]


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_those_have(run: Path) -> None:
    folder = with_losses(run, {99_999_999: None, 100_000_000: None})
    assert steps(folder) == [6, 8, 99_999_999, 100_000_000]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "state", ["[]", "3", "{}", '{"step": 8, "files": []}', '{"step": [], "files": {}}', "[" * 10**5]
)
def test_a_state_that_is_something_else_is_that_of_no_checkpoint(state: str, run: Path) -> None:
    (run / "checkpoints/step-00000008/trainer/state.json").write_text(state)
    assert steps(RunFolder(run)) == [6]


def test_no_checkpoint_on_the_disk_knows_more_than_the_log_there(
    tiny_shards: Path, tmp_path: Path, on_disk: list[tuple[str, Path, int]]
) -> None:
    run = tmp_path / "run"
    pretrain(settings(tiny_shards, run, sample_every=0, max_steps=2))
    saved = on_disk.index(("rename", run / "checkpoints" / "step-00000002", 0))
    log = run / "log.jsonl"
    assert ("fsync", log, log.stat().st_size) in on_disk[:saved]


def test_a_run_keeps_no_more_than_asked(run: Path) -> None:
    assert steps(RunFolder(run)) == [6, 8]


@pytest.mark.parametrize("damage", ["cut", "missing", "state", "not json", "another step"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(damage: str, run: Path) -> None:
    newest = run / "checkpoints" / "step-00000008"
    state = newest / "trainer" / "state.json"
    if damage == "cut":
        weights = newest / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "missing":
        (newest / "tokenizer.json").unlink()
    elif damage == "state":
        state.unlink()
    elif damage == "not json":
        state.write_text("{")
    else:
        state.write_text(state.read_text().replace('"step": 8', '"step": 6'))
    assert max(steps(RunFolder(run))) == 6

    outcome = pretrain({"output": str(run), "max_steps": 9}, resume=True)

    assert outcome.step == 9
    assert [entry["step"] for entry in read_log(run / "log.jsonl") if "loss" in entry] == list(range(1, 10))


def test_a_run_whose_checkpoints_are_all_broken_does_not_begin_anew_over_them(run: Path) -> None:
    states = sorted((run / "checkpoints").glob("step-*/trainer/state.json"))
    for state in states:
        state.write_text("{")
    with pytest.raises(TrainingError, match=r"No checkpoint in .* is whole: in step-00000008, trainer/state\.json is"):
        pretrain({"output": str(run), "max_steps": 9}, resume=True)
    assert [state.read_text() for state in states] == ["{", "{"]

    shutil.rmtree(run / "checkpoints")
    assert pretrain({"output": str(run), "max_steps": 2}, resume=True).step == 2


@pytest.mark.parametrize(
    ("version", "way_out"), [(2, r"Update edgelm\."), (0, r"Remove .*step-00000008 to go on from another\.")]
)
def test_a_checkpoint_of_another_version_is_not_passed_over(version: int, way_out: str, run: Path) -> None:
    change_json(run / "checkpoints/step-00000008/trainer/state.json", schema_version=version)
    with pytest.raises(
        TrainingError, match=rf"state\.json has schema_version {version}; this edgelm reads 1\. {way_out}"
    ):
        pretrain({"output": str(run), "max_steps": 9}, resume=True)


def test_a_checkpoint_from_before_they_had_a_number_is_gone_on_with(run: Path) -> None:
    with edited_json(run / "checkpoints/step-00000008/trainer/state.json") as values:
        assert values.pop("schema_version") == 1
    assert steps(RunFolder(run)) == [6, 8]


def test_a_checkpoint_that_cannot_be_read_is_an_error(run: Path) -> None:
    tensors = next((run / "latest" / "trainer").glob("*.safetensors"))
    tensors.write_bytes(b"\xff" * tensors.stat().st_size)

    with pytest.raises(TrainingError, match=r"Cannot go on from .*step-00000008: .*Remove that folder"):
        pretrain({"output": str(run), "max_steps": 9}, resume=True)


def test_a_run_goes_on_with_a_parameter_that_had_no_gradient_yet(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_an_idle_head(config: PretrainConfig, reporter: Reporter) -> tuple[PretrainConfig, Recipe]:
        config, recipe = build_recipe(config, reporter)
        recipe.model.register_parameter("idle_head", torch.nn.Parameter(torch.ones(3)))

        def write(weights: dict[str, torch.Tensor], folder: Path) -> None:
            recipe.write_weights({name: one for name, one in weights.items() if name != "idle_head"}, folder)

        return config, replace(recipe, write_weights=write)

    monkeypatch.setattr("edgelm_training.pretrain.build_recipe", with_an_idle_head)
    pretrain(settings(tiny_shards, tmp_path / "run", max_steps=2, sample_every=0, eval_every=0))

    assert pretrain({"output": str(tmp_path / "run"), "max_steps": 3}, resume=True).step == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3))),
            r"missing there and \[3\]",
        ),
        (lambda model: model.model.norm.requires_grad_(False), r"model\.norm\.weight is \[32\] there and missing now"),
    ],
    ids=["more", "less"],
)
def test_a_model_that_was_changed_since_its_checkpoint_is_no_reason_to_remove_it(
    change: Callable[[Transformer], None], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(config: PretrainConfig, reporter: Reporter) -> tuple[PretrainConfig, Recipe]:
        config, recipe = build_recipe(config, reporter)
        assert isinstance(recipe.model, Transformer)
        change(recipe.model)
        return config, recipe

    monkeypatch.setattr("edgelm_training.pretrain.build_recipe", changed)

    with pytest.raises(
        TrainingError, match=rf"step-00000008 is of another model .*{message}.*begin another run"
    ) as caught:
        pretrain({"output": str(run), "max_steps": 9}, resume=True)
    assert "emove" not in str(caught.value)


def test_a_run_is_not_begun_twice(run: Path, tiny_shards: Path) -> None:
    before = (run / "log.jsonl").read_bytes()

    with pytest.raises(TrainingError, match=r"already holds a run, saved at step 8\. Go on with it \(--resume\), or"):
        pretrain(settings(tiny_shards, run))

    assert (run / "log.jsonl").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    for resume in (False, True):
        with pytest.raises(TrainingError, match="is not empty and holds no run"):
            pretrain(settings(tiny_shards, tmp_path), resume=resume)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_no_run_begins_in_a_model_package(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, system: str
) -> None:
    if system == "win32":
        request.getfixturevalue("open_files_stay")
    monkeypatch.setattr(sys, "platform", system)
    (tmp_path / "edgelm.json").touch()
    with pytest.raises(TrainingError, match=f"run is not written: {tmp_path} is a model package"):
        pretrain(settings(tiny_shards, tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["edgelm.json"]


def test_a_folder_that_a_file_manager_has_looked_at_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"seen")

    RunFolder(tmp_path).open(resume=False)


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_file_is_no_folder_of_a_run(name: str, tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=rf"The run's folder .*/{name} cannot be made: .*Choose another: -o FOLDER"):
        pretrain(settings(tiny_shards, tmp_path / name))


def test_what_the_steps_behind_were_made_with_cannot_change(run: Path) -> None:
    changes = {"seed": 3, "sequence_length": 16, "global_batch_size": 8, "optimizer": "muon", "qat": "int8"}
    changes |= {"params": "15M", "model": {"hidden_size": 32, "intermediate_size": 65}, "init": "ckpt"}
    for name, value in changes.items():
        with pytest.raises(TrainingError, match=rf"^{name}.* is .*; the run in .* began with .*, and cannot change it"):
            pretrain({"output": str(run), name: value}, resume=True)
    with pytest.raises(
        TrainingError, match=r"^model\.intermediate_size is 65; the run in .* began with 64, and cannot"
    ):
        pretrain({"output": str(run), "model": changes["model"]}, resume=True)
    same = {"output": str(run), "seed": 0, "global_batch_size": 4, "model": {"hidden_size": 32}}
    assert pretrain(same, resume=True).step == 8


def test_the_table_of_a_model_that_a_run_began_with_goes_on_with_it(run: Path) -> None:
    table = {"rope_scaling": {"rope_type": "default"}, "layers_without_rope": ()}

    assert pretrain({"output": str(run), "model": table}, resume=True).step == 8
    with pytest.raises(TrainingError, match=r"^model\.rope_scaling\.factor is 2\.0; the run in .* began with 1\.0"):
        pretrain({"output": str(run), "model": {"rope_scaling": {"factor": 2.0}}}, resume=True)


def test_a_run_goes_on_from_another_folder_where_its_paths_are_named_anew(
    run: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(tiny_shards), tiny_shards.name))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError, match=rf"^data of .* is '{tiny_shards.name}', and there is none .*: --data PATH"):
        pretrain({"output": str(run), "max_steps": 9}, resume=True)
    assert pretrain({"output": str(run), "data": str(tiny_shards), "max_steps": 9}, resume=True).step == 9
    config.write_text(config.read_text().replace(str(tiny_shards), tiny_shards.name))
    monkeypatch.chdir(tiny_shards.parent)
    assert pretrain({"output": str(run)}, resume=True).step == 9


def test_the_checkpoint_that_a_run_began_with_may_be_spelled_otherwise(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run / "config.toml"
    table = config.read_text().index("[model]")
    config.write_text('init = "run/latest"\n' + config.read_text()[:table])
    monkeypatch.chdir(tmp_path)
    assert pretrain({"output": "run", "init": "./run/latest/"}, resume=True).step == 8
    Path("loop").symlink_to("loop")
    for init in ("ckpt", "loop"):
        message = rf"^init is '{init}'; the run in run began with 'run/latest', and cannot"
        with pytest.raises(TrainingError, match=message):
            pretrain({"output": "run", "init": init}, resume=True)


def test_a_run_whose_settings_are_broken_cannot_go_on(run: Path) -> None:
    (run / "config.toml").write_text("max_steps = ")

    with pytest.raises(TrainingError, match=r"Cannot read .*config\.toml.* The run cannot go on without its settings"):
        pretrain({"output": str(run)}, resume=True)


def test_a_full_disk_before_the_first_step_leaves_no_folder_of_a_run(tiny_shards: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"^Cannot write .*/run/config\.toml: File too large\. Make room, or"):
            pretrain(settings(tiny_shards, tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_saving_leaves_the_older_checkpoints(run: Path) -> None:
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a full disk does, a limit on the size of files does too.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(TrainingError) as caught:
            pretrain({"output": str(run), "max_steps": 12}, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert str(caught.value).startswith(f"Cannot save step 10 in {run}: ")
    assert f"The last good checkpoint is {run / 'checkpoints/step-00000008'}. Make room" in str(caught.value)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert pretrain({"output": str(run)}, resume=True).step == 12
