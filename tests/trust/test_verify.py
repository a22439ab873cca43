"""`edgelm verify`, `edgelm sign`, `--require-signature` and the bill of materials."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cyclonedx.schema import SchemaVersion
from cyclonedx.spdx import is_supported_id
from cyclonedx.validation.json import JsonStrictValidator
from tiny_adapter import write_tiny_adapter

from edgelm import load
from edgelm.errors import MissingExtraError, PackageError
from edgelm.package import spdx
from edgelm.package.bom import bill_of_materials
from edgelm.package.manifest import Manifest, describe_file
from edgelm.package.signature import check_signature, sign
from edgelm.package.spdx import spdx_identifier
from edgelm.testing import tiny_model_path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys: mine.key, mine.pub, other.key, other.pub; and mine once more with a password."""
    folder = tmp_path_factory.mktemp("keys")
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = serialization.PrivateFormat.PKCS8
        (folder / f"{name}.key").write_bytes(key.private_bytes(pem, private, plain))
        locked = serialization.BestAvailableEncryption(b"open sesame")
        (folder / f"{name}.locked").write_bytes(key.private_bytes(pem, private, locked))
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, public))
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    """Write a manifest that fits the folder's files, with some fields changed."""
    manifest = Manifest.load(folder)
    names = sorted(set(os.listdir(folder)) - {"edgelm.json"})
    files = tuple(describe_file(folder / name) for name in names)
    dataclasses.replace(manifest, files=files, **changes).save(folder)


def test_a_whole_package_is_good(package: Path) -> None:
    result = invoke("verify", package)

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["ok"] * 8
    sizes = [entry.size for entry in Manifest.load(package).files]
    assert f"{len(sizes)} files, {sum(sizes)} bytes, all as listed" in result.stdout
    assert "320 tokens, 3 of them control tokens" in result.stdout


def test_verify_tells_programs_what_it_found(package: Path) -> None:
    (package / "chat_template.jinja").write_text("{% for")

    result = invoke("verify", package, "--json")

    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["good"] is False
    problems = {finding["step"]: finding["problem"] for finding in facts["findings"] if finding["problem"]}
    assert problems.keys() == {"files", "chat template"}
    assert "chat_template.jinja has 6 bytes; the manifest says 198" in problems["files"]
    assert "syntax error" in problems["chat template"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"opsets": {"": 20, "com.microsoft": 1}}, "uses the operator sets {'': 21, 'com.microsoft': 1}"),
        ({"context_length": 512}, "has a context of 1024 tokens; the manifest says 512"),
        ({"control_token_ids": (0, 1)}, "disagree about the control tokens [2]"),
    ],
)
def test_a_manifest_that_says_another_thing_than_its_files_is_not_good(
    package: Path, changes: dict[str, Any], problem: str
) -> None:
    rewrite(package, **changes)

    result = invoke("verify", package)

    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert problem in result.stdout


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"custom_ops_library": "libevil.so"},
            "has 'custom_ops_library': 'libevil.so'",
        ),
        ({"decoder": [{"filename": "../model.onnx"}]}, "has 'filename': '../model.onnx'"),
        ({"decoder": {"filename": ["model.onnx"]}}, "has 'filename': ['model.onnx']"),
        ({"decoder": {"session_options": {"enable_profiling": "x"}}}, "has 'enable_profiling': 'x'"),
        (
            {"decoder": {"session_options": {"config_entries": {"session.save_model_format": "ORT"}}}},
            "has 'config_entries': {'session.save_model_format': 'ORT'}",
        ),
        (
            {"decoder": {"session_options": {"provider_options": [{"QNN": {"backend_path": "evil.so"}}]}}},
            "has 'QNN': {'backend_path': 'evil.so'}",
        ),
    ],
)
def test_a_genai_config_that_names_code_or_other_folders_is_not_good(
    package: Path, changes: dict[str, Any], problem: str
) -> None:
    path = package / "genai_config.json"
    config = path.read_text()
    path.write_text(json.dumps({"model": json.loads(config)["model"] | changes}))
    rewrite(package)
    assert problem in invoke("verify", package).stdout

    path.write_text(f'{{"model": {json.dumps(changes)}, {config[1:]}')
    rewrite(package)
    assert "it has the key 'model' twice in an object" in invoke("verify", package).stdout

    path.write_text("{")
    rewrite(package)
    assert f"Cannot read {path}" in invoke("verify", package).stdout
    path.unlink()
    rewrite(package)
    assert invoke("verify", package).exit_code == 0


def test_a_package_writes_no_lines_of_the_report(package: Path) -> None:
    rewrite(
        package, name="tiny\nok      signature         made with the key of mine.pub", license="MIT\x1b[2J\nname  x"
    )

    lines = invoke("verify", package).stdout.splitlines()
    assert not any(line.startswith("ok      signature") for line in lines)
    assert "ok      manifest                  tiny⏎ok      signature" in lines[0]
    shown = invoke("show", package).stdout
    assert "license               MIT[2J⏎name  x\n" in shown


def test_a_broken_manifest_ends_the_check(package: Path) -> None:
    (package / "edgelm.json").write_text("{")

    result = invoke("verify", package)

    assert (result.exit_code, result.stdout.count("\n")) == (1, 1)
    assert "FAILED  manifest" in result.stdout


def test_a_signed_package_loads_where_a_signature_is_required(package: Path, keys: Path) -> None:
    signed = invoke("sign", package, "--key", keys / "mine.key")
    assert (signed.exit_code, signed.stderr) == (0, f"Signed: {package / 'edgelm.sig'}\n")

    assert load(package, public_key=keys / "mine.pub").name == "tiny-random"
    assert load(package).name == "tiny-random"
    result = invoke("--require-signature", keys / "mine.pub", "run", package, "Hello", "--max-new-tokens", 2, "--json")
    os.environ.pop("EDGELM_REQUIRE_SIGNATURE")  # in a process of its own it would end with it
    assert result.exit_code == 0, result.output
    assert "made with the key of" in invoke("verify", package, "--public-key", keys / "mine.pub").stdout


def test_a_signature_holds_where_a_file_manager_has_looked_at_the_package(package: Path, keys: Path) -> None:
    sign(package, keys / "mine.key")
    for name in (".DS_Store", "._edgelm.sig"):
        (package / name).write_bytes(b"seen")
    assert load(package, public_key=keys / "mine.pub").name == "tiny-random"


def test_the_environment_can_require_a_signature(package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(keys / "mine.pub"))

    with pytest.raises(PackageError, match=r"is not signed \(it has no edgelm\.sig\), and a signature is required"):
        load(package)
    sign(package, keys / "mine.key")
    assert load(package).name == "tiny-random"


def test_where_a_signature_is_required_adapters_have_one_too(
    package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adapter = write_tiny_adapter(tmp_path / "adapter")
    sign(package, keys / "mine.key")
    monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(keys / "mine.pub"))
    model = load(package)
    with pytest.raises(PackageError, match=r"adapter is not signed \(it has no edgelm\.sig\), and a signature is"):
        model.load_adapter(adapter)
    assert "FAILED  signature" in invoke("verify", adapter).stdout
    assert invoke("sign", adapter, "--key", keys / "mine.key").exit_code == 0
    model.load_adapter(adapter)
    assert invoke("verify", adapter).exit_code == 0
    measured = invoke("verify", adapter, "--source", package)
    assert (measured.exit_code, "an adapter is checked without it" in measured.stderr) == (2, True)
    (adapter / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(PackageError, match=r"adapter_model\.safetensors has 7 bytes; the manifest says"):
        sign(adapter, keys / "mine.key")
    assert "FAILED  weights" in invoke("verify", adapter).stdout
    (adapter / "adapter.json").write_text("{}")
    assert "FAILED  manifest" in invoke("verify", adapter).stdout


def test_where_a_signature_is_required_nothing_is_made_of_a_package_without_one(
    package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(keys / "mine.pub"))

    for command in (["quantize", "--precision", "int8"], ["export"], ["import"]):
        result = invoke(*command, package, "-o", tmp_path / "made")
        assert (result.exit_code, "is not signed" in result.stderr) == (1, True), result.output
    assert not (tmp_path / "made").exists()
    assert "FAILED  signature" in invoke("verify", package).stdout
    sign(package, keys / "mine.key")
    assert invoke("verify", package).exit_code == 0
    assert invoke("import", package, "-o", tmp_path / "made").exit_code == 0


def test_what_has_to_be_signed_is_the_folder_whose_files_are_used(package: Path, keys: Path) -> None:
    """Of a graph without a manifest that lies in a folder `onnx`, with its configs above, as other programs have it."""
    (package / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (package / name).rename(package / "onnx" / name)
    for name in ("edgelm.json", "genai_config.json"):
        (package / name).unlink()
    tool = [sys.executable, "-m", "model_signing", "sign", "key", "--private_key", keys / "mine.key"]
    tool += ["--no-ignore-git-paths", "--signature"]

    subprocess.run([*tool, package / "onnx" / "edgelm.sig", package / "onnx"], check=True, capture_output=True)
    for path in (package / "onnx", package / "onnx" / "model.onnx"):
        with pytest.raises(PackageError, match=f"{re.escape(str(package))} is not signed"):
            load(path, public_key=keys / "mine.pub")
    subprocess.run([*tool, package / "edgelm.sig", package], check=True, capture_output=True)
    for path in (package, package / "onnx", package / "onnx" / "model.onnx"):
        assert load(path, public_key=keys / "mine.pub").name == "package"
    (package / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(PackageError, match="or was changed since"):
        load(package / "onnx", public_key=keys / "mine.pub")


def test_a_required_key_that_is_not_there_is_named(package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(package, keys / "mine.key")
    for name in ("lost.pub", "lost" * 80 + ".pub"):  # the second is none that a file can have
        monkeypatch.setenv("EDGELM_REQUIRE_SIGNATURE", str(keys / name))
        with pytest.raises(PackageError, match=r"The public key .*lost\.pub, .*, is not a file\. Correct its path"):
            load(package)


def test_a_key_with_a_password_signs(package: Path, keys: Path) -> None:
    assert invoke("sign", package, "--key", keys / "mine.locked", EDGELM_KEY_PASSWORD="open sesame").exit_code == 0
    check_signature(package, keys / "mine.pub")

    for password in ("abracadabra", ""):
        wrong = invoke("sign", package, "--key", keys / "mine.locked", EDGELM_KEY_PASSWORD=password)
        assert wrong.exit_code == 1
        assert f"Cannot sign {package} with {keys / 'mine.locked'} (its password, " in wrong.stderr
        assert "is taken from $EDGELM_KEY_PASSWORD): " in wrong.stderr
    assert "was not given" in wrong.stderr  # an empty variable is none


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ec.generate_private_key(ec.SECP256K1()), "secp256k1"),
    ],
)
def test_a_key_of_another_kind_is_refused_with_the_kinds_that_sign(
    package: Path, keys: Path, tmp_path: Path, key: Any, kind: str
) -> None:
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private, public = tmp_path / "wrong.key", tmp_path / "wrong.pub"
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))

    signed = invoke("sign", package, "--key", private)
    sign(package, keys / "mine.key")
    checked = invoke("verify", package, "--public-key", public)

    words = f"holds a key of the kind {kind}; signatures need one on an elliptic curve: secp256r1, secp384r1, secp521r1"
    assert (signed.exit_code, f"{private} {words}" in signed.stderr) == (1, True)
    assert (checked.exit_code, f"{public} {words}" in checked.stdout) == (1, True)


def test_a_public_key_that_is_none_is_said_to_be_none(package: Path, keys: Path) -> None:
    sign(package, keys / "mine.key")
    with pytest.raises(PackageError, match=r"The public key .*mine\.key cannot be read: ValueError"):
        check_signature(package, keys / "mine.key")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_a_private_key_may_come_through_a_pipe(package: Path, keys: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["cp", keys / "mine.key", pipe])  # as `--key <(…)` of a shell
    assert invoke("sign", package, "--key", pipe).exit_code == 0
    assert writer.wait() == 0
    check_signature(package, keys / "mine.pub")


def test_a_signature_of_another_key_is_refused(package: Path, keys: Path) -> None:
    sign(package, keys / "other.key")

    with pytest.raises(PackageError, match=r"is not signed with the key of .*, or was changed since"):
        load(package, public_key=keys / "mine.pub")
    for required in {}, {"EDGELM_REQUIRE_SIGNATURE": str(keys / "other.pub")}:
        result = invoke("verify", package, "--public-key", keys / "mine.pub", **required)
        assert result.exit_code == 1
        assert "FAILED  signature" in result.stdout


@pytest.mark.parametrize("name", ["config.json", "edgelm.json", "model.onnx.data"])
def test_a_signature_covers_every_file(package: Path, keys: Path, name: str) -> None:
    sign(package, keys / "mine.key")
    with (package / name).open("ab") as file:
        file.write(b" ")
    if name != "edgelm.json":  # a forger makes the manifest fit
        (package / "edgelm.sig").rename(package.parent / "edgelm.sig")
        rewrite(package)
        (package.parent / "edgelm.sig").rename(package / "edgelm.sig")

    with pytest.raises(PackageError, match="or was changed since"):
        check_signature(package, keys / "mine.pub")


def test_a_damaged_package_is_not_signed(package: Path, keys: Path) -> None:
    (package / "config.json").unlink()

    with pytest.raises(PackageError, match=r"config\.json is missing"):
        sign(package, keys / "mine.key")


def test_a_signature_on_its_way_to_the_disk_is_no_file_of_the_package(
    package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = set(os.listdir(package)), []
    replace = os.replace

    def look_and_replace(source: Path, target: Path) -> None:
        seen.append(set(os.listdir(package)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    sign(package, keys / "mine.key")
    assert seen == [before]


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EACCES])
def test_a_package_is_signed_where_nothing_can_lie_beside_it(
    package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    (package / f".edgelm-tmp-{2**22 + 1}-0123abcd-edgelm.sig").touch()  # of a kill
    replace = os.replace

    def replace_in_the_package(source: Path, target: Path) -> None:
        if source.parent != package:
            raise OSError(reason, os.strerror(reason))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_in_the_package)
    sign(package, keys / "mine.key")
    load(package, public_key=keys / "mine.pub")
    assert [path.name for path in package.parent.iterdir()] == ["package"]


def test_a_full_disk_names_the_signature_that_it_could_not_take(
    package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = invoke("sign", package, "--key", keys / "mine.key")
    assert (result.exit_code, result.stderr) == (
        1, f"error: Cannot write {package / 'edgelm.sig'}: No space left on device.\n",
    )  # fmt: skip


def test_signing_and_checking_open_no_connection(package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    sign(package, keys / "mine.key")
    check_signature(package, keys / "mine.pub")


def test_the_tool_of_the_format_checks_our_signature(package: Path, keys: Path) -> None:
    sign(package, keys / "mine.key")
    command = [sys.executable, "-m", "model_signing", "verify", "key", package, "--public_key", keys / "mine.pub"]
    command += ["--signature", package / "edgelm.sig", "--ignore-paths", package / "edgelm.sig"]

    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def test_without_the_extra_the_pip_line_is_named(package: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError, match=r'pip install "edgelm\[sign\]"'):
        check_signature(package, keys / "mine.pub")


def test_the_bill_of_materials_fits_the_official_schema(package: Path) -> None:
    rewrite(package, license="apache-2.0")

    result = invoke("show", package, "--bom")

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(result.stdout) is None
    bill = json.loads(result.stdout)
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    files = {component["name"]: component["hashes"][0]["content"] for component in bill["components"]}
    assert files == {entry.path: entry.sha256 for entry in Manifest.load(package).files}


@pytest.mark.parametrize(
    "changes",
    [
        {"license": "gemma", "quality": None},
        {"license": None, "source": {"format": "gguf"}},
        {"source": {"files": [{"path": "a.gguf", "size": 1, "sha256": "0" * 64}, {}]}, "created_by": {}},
        {"source": {"files": [{"path": "a.gguf", "size": 1, "sha256": "unknown"}]}},
    ],
)
def test_a_bill_of_materials_fits_whatever_the_manifest_lacks(changes: dict[str, Any]) -> None:
    manifest = dataclasses.replace(Manifest.load(tiny_model_path()), **changes)
    text = json.dumps(bill_of_materials(manifest))

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == json.dumps(bill_of_materials(manifest))


@pytest.mark.parametrize(
    ("named", "identifier"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("MIT", "MIT"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("lgpl-2.1", "LGPL-2.1-only"),
        ("odc-by", "ODC-By-1.0"),
        ("cdla-permissive-2.0", "CDLA-Permissive-2.0"),
        ("gemma", None),
        ("", None),
    ],
)
def test_licences_have_their_spdx_identifier(named: str, identifier: str | None) -> None:
    assert spdx_identifier(named) == identifier


def test_what_is_called_an_identifier_is_one_of_spdx() -> None:
    assert [name for name in spdx._KNOWN.values() if not is_supported_id(name)] == []
