"""The doctor in a process of its own, on machines that lack this or that."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import invoke
from json_files import edited_json

from edgelm import doctor
from edgelm.files import control_groups
from edgelm.memory import available_memory
from edgelm.package.slow_operators import slow_operators
from edgelm.runtime import cpu, onnx_runtime
from edgelm.runtime.onnx_runtime import RuntimeDescription
from edgelm.testing import tiny_model_path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    return folder


def examine(library: Path, *, path: Path | None = None) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Run `edgelm doctor --json`; `path` comes first on the module path, so that its packages are found first."""
    paths = os.pathsep.join(filter(None, (str(path or ""), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"EDGELM_HOME": str(library), "PYTHONPATH": paths}
    command = [sys.executable, "-c", "from edgelm.cli.main import main; main(prog_name='edgelm')", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    findings: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(done.stdout):
        findings.setdefault(finding["topic"], []).append(finding)
    return done.returncode, findings


def install(folder: Path, name: str, version: str) -> None:
    """Leave what pip leaves of a wheel."""
    (folder / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_sound_machine_gets_no_error(library: Path) -> None:
    code, findings = examine(library)
    assert code == 0
    assert set(findings) == set(doctor.CHECKS)
    assert all(row["state"] != "error" for rows in findings.values() for row in rows)
    assert "CPU" in findings["onnxruntime"][0]["found"]


def test_both_wheels_are_found_and_the_fix_removes_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path / "modules", "onnxruntime-gpu", "1.30.0")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    ((state, found, fix),) = doctor._check_wheels()
    assert (state, "onnxruntime and onnxruntime-gpu are both installed" in found) == ("error", True)
    assert fix is not None
    assert fix.startswith("`pip uninstall -y onnxruntime onnxruntime-gpu`, ")


def test_an_onnxruntime_that_does_not_import_is_a_finding(library: Path, tmp_path: Path) -> None:
    (tmp_path / "modules" / "onnxruntime").mkdir(parents=True)
    broken = "raise ImportError('libcudart.so.13: cannot open shared object file')"
    (tmp_path / "modules" / "onnxruntime" / "__init__.py").write_text(broken)
    code, findings = examine(library, path=tmp_path / "modules")
    assert code == 1
    assert "does not import: ImportError: libcudart.so.13" in findings["onnxruntime"][0]["found"]
    assert "--force-reinstall" in findings["onnxruntime"][0]["fix"]


OLD = """
__version__ = "{version}"
def get_available_providers(): return ["CUDAExecutionProvider", "CPUExecutionProvider"]
class Device:
    ep_name = "CPUExecutionProvider"
    class device:
        class type: name = "CPU"
def get_ep_devices(): return [Device]
"""


@pytest.mark.parametrize(
    ("wheel", "version", "state", "found"),
    [
        ("onnxruntime", "1.27.0", "error", "is older than 1.28"),
        ("onnxruntime", "1.28.0", "ok", "onnxruntime 1.28.0, devices: CPU (CPU)"),
        ("onnxruntime-openvino", "1.24.0", "ok", "onnxruntime-openvino 1.24.0, devices: "),
        ("onnxruntime-gpu", "1.30.0", "warning", "finds none: it computes on the CPU"),
    ],
)
def test_old_builds_and_builds_without_their_device_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: str, version: str, state: str, found: str
) -> None:
    install(tmp_path, wheel, version)
    install(tmp_path, "onnxruntime-genai", "0.10.0")  # which has no module of that name
    (tmp_path / "onnxruntime.py").write_text(OLD.format(version=version))
    onnx_runtime.describe_runtime()  # imports the real one, which the test's end puts back
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime")
    rows = list(doctor._check_wheels())
    assert (rows[-1][0], found in rows[-1][1]) == (state, True)


def test_a_machine_without_onnxruntime_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    ((state, found, fix),) = doctor._check_wheels()
    assert (state, found) == ("error", "ONNX Runtime is not installed.")
    assert fix is not None
    assert "edgelm[cpu]" in fix


def test_a_build_without_the_metadata_of_a_wheel_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a distribution packages it, or as it lies in the folder where somebody built it."""
    monkeypatch.setattr(doctor.metadata, "distributions", list)
    ((state, found, _),) = doctor._check_wheels()
    assert (state, found.startswith("onnxruntime 1.")) == ("ok", True)


def test_broken_packages_and_a_folder_that_cannot_be_written_are_errors(
    monkeypatch: pytest.MonkeyPatch, own_library: Path, tmp_path: Path
) -> None:
    library = own_library
    shutil.copytree(tiny_model_path(), library / "models" / "sound")
    shutil.copytree(tiny_model_path(), library / "models" / "broken")
    with (library / "models" / "broken" / "model.onnx.data").open("r+b") as file:
        file.truncate(100)
    ((state, found, fix),) = doctor._check_packages()
    assert (state, found.startswith("broken: ")) == ("error", True)
    assert fix is not None
    assert f"remove {library / 'models' / 'broken'}, and pull or export it again" in fix
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGELM_HOME", str(tmp_path / "file"))
    state, _, fix = next(iter(doctor._check_library()))
    assert (state, fix is not None and "EDGELM_HOME" in fix) == ("error", True)


def test_a_library_that_cannot_be_written_works_where_it_has_models(
    monkeypatch: pytest.MonkeyPatch, own_library: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    ((state, _, fix),) = doctor._check_library()
    assert (state, fix) == ("error", "Set EDGELM_HOME to a folder of yours.")
    shutil.copytree(tiny_model_path(), own_library / "models" / "tiny")
    ((state, found, _),) = doctor._check_library()
    assert state == "warning"
    assert found.endswith("Read-only file system. Its models run; none can be pulled or exported.")
    monkeypatch.setattr(doctor.Library, "packages", refuse)  # as of a folder whose entries cannot be looked at
    ((state, _, _),) = doctor._check_library()
    assert state == "error"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"user.slice/cpu.max": "max 100000\n", "user.slice/app.service/cpu.max": "50000 100000\n"}, 0.5),
        ({"user.slice/cpu.max": "200000 100000\n", "user.slice/app.service/cpu.max": "max 100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({}, None),
    ],
)
def test_a_containers_share_of_the_processors_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    own = (
        "5:memory:/\n4:cpu,cpuacct:/a\n"
        if any(name.startswith("cpu/") for name in files)
        else "0::/user.slice/app.service\n"
    )
    (tmp_path / "cgroup").write_text(own)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path)
    assert cpu.cpu_quota() == quota


@pytest.mark.parametrize(("quota", "cores", "usable"), [(None, 8, 8), (2.5, 8, 2), (0.5, 8, 1), (16.0, 8, 8)])
def test_no_more_threads_than_the_share_of_a_container(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int, usable: int
) -> None:
    monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cpu, "physical_cores", lambda _: cores)
    assert cpu.usable_cores() == usable


@pytest.mark.parametrize(
    ("text", "state", "advice"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512_vnni\n", "ok", None),
        ("flags\t\t: fpu sse2 avx2\n", "warning", "--prefill-graph"),
        ("flags\t\t: fpu sse2\n", "warning", "--precision fp32"),
        ("Features\t: fp asimd asimddp\n", "ok", None),
        ("Features\t: fp asimd\n", "warning", "--precision fp32"),  # a Cortex-A72, as in a Raspberry Pi 4
    ],
)
def test_a_processor_without_fast_integer_products_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, state: str, advice: str | None
) -> None:
    name = "model name\t: Prozessor für Gäste\n".encode("latin-1")  # as a virtual machine may call it
    (tmp_path / "cpuinfo").write_bytes(b"processor\t: 0\n" + name + text.encode())
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "cpuinfo")
    ((found, _, fix),) = doctor._check_processor()
    assert found == state
    assert fix is None if advice is None else fix is not None and advice in fix


def test_a_processor_that_the_system_does_not_tell_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "none")
    assert list(doctor._check_processor()) == [("ok", "Its instruction sets are not known on this system.", None)]


def test_little_room_on_the_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 500_000_000}))
    ((state, found, fix),) = doctor._check_library()
    assert (state, found.endswith(", 0.5 GB free on its disk.")) == ("warning", True)
    assert fix is not None
    assert "edgelm rm NAME" in fix


def test_what_is_slow_of_the_library_is_told(monkeypatch: pytest.MonkeyPatch, own_library: Path) -> None:
    shutil.copytree(tiny_model_path(), own_library / "models" / "tiny")
    monkeypatch.setattr(doctor, "slow_operators", lambda _: ["2 products are slow."])
    slow, whole = doctor._check_packages()
    assert slow == ("warning", "tiny: 2 products are slow.", doctor._EXPORT_AGAIN)
    assert whole[:2] == ("ok", "1 in the library, all complete (their hashes are checked by each load).")


def test_little_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:     500000 kB\n")
    monkeypatch.setattr(available_memory, "_MEMORY_INFO", tmp_path / "meminfo")
    ((state, found, _),) = doctor._check_memory()
    assert (state, found) == ("warning", "0.5 GB are free.")
    assert available_memory.available_memory() == 500_000 * 1024


@pytest.mark.parametrize("text", ["MemTotal:  1000 kB\n", None])
def test_memory_that_the_system_does_not_tell_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    if text is not None:  # as Linux before 3.14 has it
        (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(available_memory, "_MEMORY_INFO", tmp_path / "meminfo")
    assert list(doctor._check_memory()) == [("ok", "How much is free is not known on this system.", None)]


@pytest.mark.parametrize(
    ("load", "usable", "advice"),
    [(0.9, 2, None), (1.0, 2, "--threads 1"), (9.0, 2, "--threads 1"), (1.2, 1, "top"), (2.4, 4, "--threads 2")],
)
def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch, load: float, usable: int, advice: str | None) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: usable)
    monkeypatch.setattr(doctor, "usable_cores", lambda: usable)
    (_, *warnings) = doctor._check_threads()
    assert [state for state, _, _ in warnings] == ([] if advice is None else ["warning"])
    for _, _, fix in warnings:
        assert advice in fix


def product(bits: int, level: int | None, zero_points: str = "") -> onnx.NodeProto:
    settings = {"K": 64, "N": 1, "bits": bits, "block_size": 64}
    if level is not None:
        settings["accuracy_level"] = level
    inputs = ["x", "w", "s", *([zero_points] if zero_points else [])]
    return onnx.helper.make_node("MatMulNBits", inputs, [f"y{bits}"], domain="com.microsoft", **settings)


def write_graph(folder: Path, nodes: list[onnx.NodeProto]) -> Path:
    zeros = [
        onnx.numpy_helper.from_array(np.zeros(1, type_), name)
        for name, type_ in (("floats", np.float32), ("halves", np.float16), ("integers", np.uint8))
    ]
    graph = onnx.helper.make_graph(nodes, "products", [], [], zeros)
    path = folder / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def test_slow_settings_of_operators_are_found(tmp_path: Path) -> None:
    fast = [product(8, 4), product(4, None), product(4, 0, "integers"), onnx.helper.make_node("Add", ["x", "x"], ["z"])]
    assert slow_operators(write_graph(tmp_path, fast)) == []
    slow = [product(8, None), product(8, 1), product(4, 4, "floats"), product(8, 4, "halves")]
    first, second = slow_operators(write_graph(tmp_path, fast + slow))
    assert first.startswith("2 products of 8 bits without accuracy_level 4")
    assert second.startswith("2 products with float zero points")


def test_a_setting_without_a_name_is_none(tmp_path: Path) -> None:
    nameless = product(8, None)
    nameless.attribute.append(onnx.AttributeProto(i=4, type=onnx.AttributeProto.INT))
    (found,) = slow_operators(write_graph(tmp_path, [nameless]))
    assert found.startswith("1 product of 8 bits without accuracy_level 4")


@pytest.mark.parametrize(("bits", "level", "is_slow"), [(4, None, True), (4, 4, False), (8, None, False)])
def test_experts_that_keep_floats_are_found(bits: int, level: int | None, is_slow: bool, tmp_path: Path) -> None:
    settings = {"expert_weight_bits": bits} | ({} if level is None else {"accuracy_level": level})
    node = onnx.helper.make_node("QMoE", ["x", "scores", "w"], ["y"], domain="com.microsoft", k=1, **settings)
    found = slow_operators(write_graph(tmp_path, [node, node]))
    assert [text[:37] for text in found] == ["2 layers with experts of 4 bits witho"] * is_slow


def test_a_model_is_looked_at_by_name_and_by_path(library: Path, tmp_path: Path) -> None:
    (row,) = doctor._check_model(str(tiny_model_path()))
    assert row[:2] == ("ok", "tiny-random: no operator is set to be slow on a CPU.")
    (row,) = doctor._check_model("nowhere")
    assert row[0] == "error"
    assert "There is no model 'nowhere'" in row[1]
    shutil.copytree(tiny_model_path(), tmp_path / "foreign")
    (tmp_path / "foreign" / "edgelm.json").unlink()
    with edited_json(tmp_path / "foreign" / "config.json") as config:
        del config["edgelm"]
    write_graph(tmp_path / "foreign", [product(8, None)])
    (row,) = doctor._check_model(str(tmp_path / "foreign"))
    assert row[0] == "warning"
    assert "19 times slower" in row[1]
    assert row[2] is not None
    assert "--precision int8" in row[2]


def test_the_command_shows_a_fix_below_what_it_is_for_and_no_package_commands_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [("ok", "\x1b[2Jall", None), ("error", "gone", "fetch it\x07")]
    monkeypatch.setattr(doctor, "CHECKS", {"packages": lambda: iter(rows)})
    result = invoke("doctor")
    assert result.stdout == f"ok   packages     [2Jall\nBAD  packages     gone\n{'':<18}→ fetch it\n"
    assert result.exit_code == 1


def test_a_missing_library_of_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    described = RuntimeDescription(
        version="1.31.0", devices=("CPU (CPU)",), missing_library="libcuda.so.1: cannot open"
    )
    monkeypatch.setattr(onnx_runtime, "describe_runtime", lambda: described)
    rows = list(doctor._check_wheels())
    assert rows[-1][:2] == ("warning", "CUDA cannot be used: libcuda.so.1: cannot open")


@pytest.mark.parametrize(("value", "states"), [("2", ["ok"]), ("99", ["ok", "warning"]), ("²", ["ok"])])
def test_more_threads_than_cores_are_told(monkeypatch: pytest.MonkeyPatch, value: str, states: list[str]) -> None:
    for name, result in {"usable_cores": 2, "physical_cores": 1, "cpu_quota": None}.items():
        monkeypatch.setattr(doctor, name, lambda result=result: result)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setenv("EDGELM_RUN_THREADS", value)
    rows = list(doctor._check_threads())
    assert rows[0][1] == "1 physical core: 2 threads a step."
    assert [state for state, _, _ in rows] == states
    assert rows[-1][2] == ("unset EDGELM_RUN_THREADS" if len(states) == 2 else None)


def test_more_threads_than_cores_are_told_where_the_config_file_sets_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "edgelm.toml"
    file.write_text("[run]\nthreads = 64\n[chat]\nthreads = 2\n[bench]\nthreads = 64\n")
    monkeypatch.setenv("EDGELM_CONFIG", str(file))
    monkeypatch.setenv("EDGELM_BENCH_THREADS", "2")  # which goes before the file
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    findings = json.loads(invoke("doctor", "--json").stdout)
    (warning,) = [row for row in findings if row["topic"] == "threads" and row["state"] == "warning"]
    assert warning["found"].startswith(f"[run] threads in {file} is 64, more threads than the 2 that compute")
    assert warning["fix"] == 'Take it out: $EDITOR "$(edgelm config --path)"'
