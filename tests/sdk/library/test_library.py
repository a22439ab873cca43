"""The model library: names lead to folders, never outside; what is missing is explained."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgelm.errors import ConfigError, ModelNotFoundError
from edgelm.files import atomic
from edgelm.files.file_lock import file_lock
from edgelm.files.folders import data_folder, state_folder
from edgelm.library import sources
from edgelm.library.library import Library
from edgelm.package.adapter import is_adapter
from edgelm.testing import tiny_model_path


@pytest.fixture
def library(own_library: Path) -> Library:
    return Library()


def add_package(library: Library, name: str) -> Path:
    shutil.copytree(tiny_model_path(), library.package_path(name))
    return library.package_path(name)


def add_source(library: Library, name: str, *files: str) -> Path:
    folder = library.root / "sources" / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_bytes(b"x")
    return folder


def test_an_empty_library_has_nothing_and_makes_no_folder(library):
    assert (library.packages(), library.sources()) == ([], [])
    assert not library.root.exists()


def test_packages_and_sources_are_named_in_order_without_hidden_folders_and_files(library):
    for name in ("zebra", "ant", ".staging"):
        (library.root / "models" / name).mkdir(parents=True)
    (library.root / "models" / "note.txt").touch()
    add_source(library, "bee")
    assert library.packages() == ["ant", "zebra"]
    assert library.sources() == ["bee"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no folder of such a name")
def test_a_folder_whose_name_no_model_can_have_is_none(library):
    shutil.copytree(tiny_model_path(), library.root / "models" / "CON")
    assert library.packages() == []
    assert not library.has_package("CON")
    assert library.resolve("CON") == "CON"
    with pytest.raises(ModelNotFoundError, match=r"The library .* is empty\."):
        library.latest()


def test_a_name_leads_to_its_package(library):
    folder = add_package(library, "tiny")
    assert library.find("tiny") == folder == library.package_path("tiny")


def test_a_path_leads_to_its_folder(library, tmp_path, monkeypatch):
    shutil.copytree(tiny_model_path(), tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    assert library.find(tmp_path / "package") == tmp_path / "package"
    assert library.find("./package") == Path("package")
    assert library.find("package") == Path("package")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.find("~/package") == tmp_path / "package"


def test_a_source_is_its_gguf_file_or_its_folder(library):
    folder = add_source(library, "small", "model.gguf", "source.json")
    assert library.source_path("small") == folder / "model.gguf"
    folder = add_source(library, "parts", "model-00002-of-00002.gguf", "model-00001-of-00002.gguf")
    assert library.source_path("parts") == folder / "model-00001-of-00002.gguf"
    folder = add_source(library, "large", "config.json", "model.safetensors")
    assert library.source_path("large") == folder


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "smollm2-135m-instruct",
            "There is no model 'smollm2-135m-instruct'. In the library: tiny. To fetch it: edgelm pull smollm2-135m-",
        ),
        ("smollm2", "Did you mean smollm2-360m-instruct or smollm2-135m-instruct?"),
        ("tinny", "There is no model 'tinny'. Did you mean tiny"),
        ("", "There is no model ''. In the library: tiny."),
        ("original", "Only the source of 'original' is in the library. Make a package of it: edgelm export original"),
        ("./nothing", "There is no model package at nothing. In the library: tiny."),
        ("Org/Model-1B", "In the library: tiny. From the Hugging Face hub: edgelm pull hf:Org/Model-1B"),
        ("hf:Org/Model-1B", "In the library: tiny. From the Hugging Face hub: edgelm pull hf:Org/Model-1B"),
        ("hf.co/Org/Model-1B:Q4_K_M", "From the Hugging Face hub: edgelm pull hf:Org/Model-1B$"),
        ("hf:Org/Model-1B@v1", "From the Hugging Face hub: edgelm pull hf:Org/Model-1B@v1$"),
        ("hf:Org/Model/a b.gguf", "From the Hugging Face hub: edgelm pull (['\"])hf:Org/Model/a b.gguf\\1$"),
        ("./shop", "shop is an adapter, which is no model by itself. .* beside: --adapter shop"),
        ("./model.gguf", "model.gguf is a GGUF file, not a model package. .*: edgelm export model.gguf -o package/"),
        ("model.gguf", "model.gguf is a GGUF file, not a model package. .*: edgelm export model.gguf -o package/"),
        ("./run", "run is the folder of a run. .* its best checkpoint: edgelm export run/best -o package/"),
        ("./unvalidated", "Make a package of its latest checkpoint: edgelm export unvalidated/latest -o package/"),
        ("./ft", r"ft holds an adapter, .* edgelm export-adapter ft --base PACKAGE .*: edgelm merge ft -o merged/\)"),
        ("ft/best", "ft/best holds an adapter, which is no model by itself. .* edgelm export-adapter ft/best --base"),
        ("my model", "my model is not a model package: .* make a package of it: edgelm export 'my model' -o package/"),
        ("original.txt", "original.txt is a file, not a model package. Name the .* edgelm export original.txt -o pack"),
        (
            "ckpt/a.safetensors",
            "a.safetensors is a file, not a model package. Name the .* edgelm export ckpt -o package/$",
        ),
        ("./sha256-ab", "sha256-ab is a GGUF file, not a model package. .*: edgelm export sha256-ab -o package/"),
        ("./model.zip", "model.zip is a zip archive. Unpack it, and name the folder in it that has edgelm.json"),
        ("my package/model.onnx", "model.onnx is a file of the package my package. Name the folder: 'my package'$"),
    ],
)
def test_what_is_not_here_is_explained(library, wanted, message, tmp_path, monkeypatch):
    add_package(library, "tiny")
    add_source(library, "original")
    monkeypatch.chdir(tmp_path)
    for file in ("model.gguf", "original.txt"):
        Path(file).touch()
    Path("shop").mkdir()
    Path("shop/adapter.json").write_text("{}")
    Path("ckpt").mkdir()
    for part in ("config.json", "a.safetensors"):
        Path("ckpt", part).touch()
    Path("sha256-ab").write_bytes(b"GGUF\3\0\0\0")
    Path("model.zip").write_bytes(b"PK\3\4")
    Path("my model").mkdir()
    Path("my package").mkdir()
    for part in ("edgelm.json", "model.onnx"):
        Path("my package", part).touch()
    for part in ("best", "checkpoints"):
        Path("run", part).mkdir(parents=True)
        Path("ft", part).mkdir(parents=True)
    for part in ("latest", "checkpoints"):
        Path("unvalidated", part).mkdir(parents=True)
    Path("ft/best/adapter_config.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=message):
        library.find(wanted)


def test_the_latest_package_is_the_one_written_last(library):
    for age, name in enumerate(("newest", "middle", "oldest")):
        os.utime(add_package(library, name) / "edgelm.json", (1e9 - age, 1e9 - age))
    assert library.latest() == "newest"


def test_without_a_package_the_way_to_one_is_named(library):
    with pytest.raises(ModelNotFoundError, match=f"No package is in the library {library.root}. To fetch it: edgelm"):
        library.find("smollm2-135m-instruct")
    with pytest.raises(ModelNotFoundError, match=rf"The library {library.root} is empty.*edgelm pull smollm2-135m"):
        library.latest()
    hub = r"^There is no model package at Org/Model\. From the Hugging Face hub: edgelm pull hf:Org/Model$"
    with pytest.raises(ModelNotFoundError, match=hub):  # one way out, not the empty library's before it
        library.find("Org/Model")
    add_source(library, "original")
    with pytest.raises(ModelNotFoundError, match=hub):
        library.find("Org/Model")
    with pytest.raises(ModelNotFoundError, match=r"Only sources are in the library.*edgelm export original"):
        library.latest()


def test_a_source_that_is_removed_while_it_is_named_is_no_crash(library, monkeypatch):
    looks = [["small"], []]  # in the last moment before it is removed, and behind that
    monkeypatch.setattr(Library, "sources", lambda _: looks.pop(0))
    with pytest.raises(ModelNotFoundError, match="Make a package of one: edgelm export small"):
        library.latest()


def test_remove_deletes_package_source_and_unfinished_download(library):
    add_package(library, "tiny")
    add_package(library, "other")
    add_source(library, "tiny", "model.gguf")
    library.downloads_path("tiny").mkdir(parents=True)
    leftover = library.root / "models" / ".edgelm-removed-1-01234567-older"
    leftover.mkdir()
    library.remove("tiny")
    assert library.packages() == ["other"]
    assert [path.name for kind in ("models", "sources", "downloads") for path in (library.root / kind).iterdir()] == [
        "other"
    ]


PULL = """
import os
from edgelm.library.library import Library
library = Library()
with library.lock("tiny"):
    print("held", flush=True)
    input()
    (library.root / "sources").mkdir()
    os.replace(library.downloads_path("tiny"), library.root / "sources" / "tiny")
"""


def test_removing_what_is_being_pulled_removes_what_the_pull_brings(library):
    library.downloads_path("tiny").mkdir(parents=True)
    pull = subprocess.Popen([sys.executable, "-c", PULL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert pull.stdout is not None
    assert pull.stdout.readline() == "held\n"
    library.remove("tiny", waiting=lambda _: pull.communicate("go on\n") and None)
    assert pull.returncode == 0
    assert library.sources() == []


@pytest.mark.skipif(
    sys.platform != "win32" and not Path("/proc/self/maps").exists(), reason="asks Linux, or Windows, what is open"
)
def test_what_a_server_has_open_on_windows_is_not_removed(library, monkeypatch, open_files_stay):
    monkeypatch.setattr(atomic, "_WAITS", (0,))
    with (add_package(library, "tiny") / "edgelm.json").open():
        with pytest.raises(ConfigError, match=r"may have it open\): .*tiny'\. End that program, such as a server, and"):
            library.remove("tiny")
        assert library.packages() == ["tiny"]
    library.remove("tiny")
    assert library.packages() == []


def test_removing_a_linked_package_leaves_what_it_links_to(library, tmp_path):
    shutil.copytree(tiny_model_path(), tmp_path / "elsewhere")
    (library.root / "models").mkdir(parents=True)
    (library.root / "models" / "linked").symlink_to(tmp_path / "elsewhere")
    library.remove("linked")
    assert library.packages() == []
    assert (tmp_path / "elsewhere" / "edgelm.json").exists()


def test_removing_what_is_not_there_is_an_error(library):
    with pytest.raises(ModelNotFoundError, match=r"There is no model 'tiny' to remove. In the library: none\."):
        library.remove("tiny")


@pytest.mark.parametrize(
    "name", ["../tiny", "a/b", "a\\b", ".hidden", "-x", "", "..", "a ", "x" * 101, "tiny\n", "a.", "NUL", "aux.v1"]
)
def test_no_name_reaches_outside_the_library(library, name):
    for method in (library.package_path, library.source_path, library.downloads_path, library.remove):
        with pytest.raises(ConfigError, match="is not a name for a model"):
            method(name)


def test_the_name_without_the_tag_of_ollama_is_suggested(library):
    for method in (library.package_path, library.remove, library.remove_alias):
        with pytest.raises(ConfigError, match=r"'tiny:latest' is not a .* Names have no tags here: write 'tiny'\."):
            method("tiny:latest")
    for name in ("NUL", ":latest", "a/b:latest", "tiny:0.5b"):
        with pytest.raises(ConfigError, match=r"none that is a device of Windows\.$"):
            library.remove(name)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no limit that is like a full disk")
def test_a_model_is_removed_from_a_full_disk(library):
    import resource

    add_package(library, "tiny")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file can take a byte
    try:
        library.remove("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert library.packages() == []


def test_on_a_full_disk_the_error_says_how_to_make_room(library):
    with pytest.raises(ConfigError, match=r"No space left on device\. Make room: edgelm rm NAME$"), library.writing():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_library_that_cannot_be_written_or_read_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"The model library .* cannot be written: .* Set EDGELM_HOME"),
        Library(tmp_path / "file").lock("tiny"),
    ):
        pass
    with pytest.raises(ConfigError, match=r"The model library .*/file cannot be read: .* Set EDGELM_HOME"):
        Library(tmp_path / "file").find("tiny")
    (tmp_path / "models").touch()
    with pytest.raises(ConfigError, match=r"The model library .* cannot be read: .* Set EDGELM_HOME"):
        Library(tmp_path).packages()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is the convention of other systems")
def test_folders_follow_the_environment(monkeypatch, tmp_path):
    assert data_folder() == state_folder() == Path(os.environ["EDGELM_HOME"])
    monkeypatch.delenv("EDGELM_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert data_folder() == tmp_path / ".local/share/edgelm"
    assert state_folder() == tmp_path / ".local/state/edgelm"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert (data_folder(), state_folder()) == (Path("/data/edgelm"), Path("/state/edgelm"))


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is the convention of other systems")
def test_variables_that_are_empty_count_as_not_set(monkeypatch):
    users = {os.getuid(): SimpleNamespace(pw_dir="/home/somebody")}
    monkeypatch.setattr("pwd.getpwuid", users.__getitem__)
    for name in ("EDGELM_HOME", "XDG_DATA_HOME", "HOME"):
        monkeypatch.setenv(name, "")
    assert data_folder() == Path("/home/somebody/.local/share/edgelm")
    users.clear()
    with pytest.raises(ConfigError, match=r"There is no home folder to keep models in. Set EDGELM_HOME"):
        data_folder()


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("EDGELM_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match=r"There is no home folder to keep models in. Set EDGELM_HOME"):
        data_folder()


HOLD = """
from edgelm.library.library import Library
with Library().lock("tiny"):
    print("held", flush=True)
    input()
"""


def test_a_lock_is_waited_for_and_ends_with_its_holder(library):
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited_for: list[str] = []

    def waiting(owner: str) -> None:
        waited_for.append(owner)
        holder.kill()

    with library.lock("tiny", waiting):
        holder.wait()
    assert waited_for == [str(holder.pid)]


def test_locks_of_different_models_do_not_meet(library, tmp_path):
    with library.lock("one"), library.lock("two", lambda _: pytest.fail("waited")):
        pass
    with file_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("wanted", ["a" * 300, "~nosuchuser/x", "./" + "b" * 300])
def test_a_path_that_the_system_refuses_is_an_error_that_names_it(library, wanted):
    for find in (library.find, library.find_source):
        with pytest.raises(ModelNotFoundError, match=f"There is no model at '{wanted}': .*Check the path"):
            find(wanted)


def test_a_folder_that_may_not_be_read_is_an_error_that_says_so(library, monkeypatch):
    def refused(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(ModelNotFoundError, match=r"There is no model at './locked': .*Permission denied"):
        library.find("./locked")


def test_a_name_means_a_model_where_the_working_folder_may_not_be_entered(library, monkeypatch):
    def refused(path: Path, *, follow_symlinks: bool = True, stat=Path.stat) -> os.stat_result:
        if not path.is_absolute():  # what the system does to other users, and not to root
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    package, source = add_package(library, "small"), add_source(library, "small", "model.gguf")
    monkeypatch.setattr(Path, "stat", refused)
    assert not is_adapter(Path("small"))
    assert (library.find("small"), library.find_source("small")) == (package, source / "model.gguf")
    with pytest.raises(ModelNotFoundError, match=r"There is no model 'smal'\. Did you mean small\?"):
        library.find("smal")
    with pytest.raises(ModelNotFoundError, match=r"No model 'smal' is known"):
        sources.resolve("smal")


def test_a_url_that_windows_takes_for_no_path_leads_to_the_hub(library, monkeypatch):
    def refused(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        error = OSError(22, "The filename, directory name, or volume label syntax is incorrect", str(path))
        error.winerror = 123
        raise error

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(ModelNotFoundError, match=r"edgelm pull hf:org/repo"):
        library.find("https://huggingface.co/org/repo")
    assert library.find_source("./a*") == Path("./a*")


def test_a_source_is_found_by_path_or_by_name(library, tmp_path, monkeypatch):
    folder = add_source(library, "small", "model.gguf")
    assert library.find_source("small") == folder / "model.gguf"
    monkeypatch.chdir(tmp_path)
    for name in ("small", "other"):
        (tmp_path / name).touch()
    assert library.find_source("small") == folder / "model.gguf"
    assert library.find_source("./small") == Path("small")
    assert library.find_source("other") == Path("other")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert library.find_source("~/nowhere/") == tmp_path / "nowhere"
    with pytest.raises(ModelNotFoundError, match=r"no source of that name in the library \(there: small\)"):
        library.find_source("large")
    package = add_package(library, "large")
    with pytest.raises(
        ModelNotFoundError, match=rf"Of 'large' .* alone, .* \(there: small\)\. .* its folder: {package}"
    ):
        library.find_source("large")


def test_without_a_library_that_can_be_read_a_name_is_what_lies_here(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    library.root.parent.mkdir(parents=True, exist_ok=True)
    library.root.write_text("a file")
    assert library.find_source("checkpoint") == Path("checkpoint")
    with pytest.raises(ConfigError, match=r"cannot be read: .*Set EDGELM_HOME to a folder of yours"):
        library.find_source("other")


def test_a_home_that_does_not_exist_is_an_error_that_names_the_variable(monkeypatch):
    monkeypatch.setenv("EDGELM_HOME", "~nosuchuser/x")
    with pytest.raises(ConfigError, match=r"EDGELM_HOME is '~nosuchuser/x': .* Set it to a folder of yours"):
        data_folder()


def test_a_folder_without_a_manifest_is_not_the_latest_package(library):
    library.package_path("broken").mkdir(parents=True)
    assert not library.has_package("broken")
    with pytest.raises(ModelNotFoundError, match=r"No package in the library has its edgelm.json. In .*: broken."):
        library.latest()
    add_package(library, "tiny")
    assert library.latest() == "tiny"
    assert library.has_package("tiny")
    assert not library.has_package("hf:org/tiny")


def test_remove_deletes_what_a_killed_export_left_behind(library):
    add_package(library, "tiny")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    staging = library.root / "models" / f".edgelm-tmp-{ended.pid}-0123abcd-tiny"
    staging.mkdir()
    library.remove("tiny")
    assert list((library.root / "models").iterdir()) == []
