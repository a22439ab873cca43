"""Signatures of packages: who made it, for those who have the maker's public key. By model-signing, with no network."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgelm.errors import MissingExtraError, PackageError
from edgelm.files import atomic
from edgelm.files.folder_entries import is_left_by_looking
from edgelm.package.manifest import SIGNATURE_NAME, Manifest, check_hash, check_signature_file

_CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those of the model-signing format
# A public key (PEM) that every package must be signed with to be loaded.
REQUIRE_VARIABLE = "EDGELM_REQUIRE_SIGNATURE"
PASSWORD_VARIABLE = "EDGELM_KEY_PASSWORD"  # of a private key


def required_key() -> Path | None:
    """Return the public key that the environment requires packages to be signed with, or None."""
    value = os.environ.get(REQUIRE_VARIABLE)
    return Path(value) if value else None


def check_required_signature(folder: Path, public_key: Path | None = None) -> None:
    """Check a package as `check_signature` does, if a key is given here or required by the environment."""
    public_key = public_key or required_key()
    if public_key is not None:
        check_signature(folder, public_key)


def sign(folder: Path, private_key: Path, password: str | None = None) -> Path:
    """Sign all files of a package, or of an exported adapter, and return the signature's path (inside of it).

    private_key: an elliptic-curve key in PEM; the signature is a Sigstore bundle in the OpenSSF model-signing format.

    Raises:
        PackageError: the package is not whole, or the key cannot be used.
        MissingExtraError: model-signing is not installed.
    """
    from edgelm.package.adapter import (  # brings numpy, which the command alone does not need
        AdapterManifest,
        is_adapter,
    )

    model_signing = _import_model_signing()
    from cryptography.hazmat.primitives import serialization

    folder = folder.resolve()
    path = folder / SIGNATURE_NAME
    with _writing(path):
        atomic.remove_leftovers(path)
    if is_adapter(folder):
        check_hash(folder, AdapterManifest.load(folder).file)
    else:
        Manifest.load(folder).check_files(folder)
    what = f"Cannot sign {folder} with {private_key} (its password, if it has one, is taken from ${PASSWORD_VARIABLE})"
    with tempfile.TemporaryDirectory() as staging, _errors(what):
        # Its annotation asks for a str, but what it calls takes bytes alone.
        secret = None if password is None else password.encode()
        if private_key.is_file():  # what comes through a pipe can be read once
            _check_kind(serialization.load_pem_private_key(private_key.read_bytes(), secret), private_key)
        config = model_signing.signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
        config.set_hashing_config(_hashing(model_signing, folder)).sign(folder, Path(staging) / SIGNATURE_NAME)
        signature = (Path(staging) / SIGNATURE_NAME).read_text(encoding="utf-8")
    with _writing(path):
        try:
            atomic.write_text(path, signature, beside=folder)  # a kill leaves nothing that the manifest does not list
        except OSError:  # beside is another disk, or nothing that this user may write
            atomic.write_text(path, signature)
    return path


def check_signature(folder: Path, public_key: Path) -> None:
    """Check that the package is signed with the private half of `public_key`, every file of it.

    Raises:
        PackageError: it is not signed, signed with another key, or was changed since; or there is no such key.
        MissingExtraError: model-signing is not installed.
    """
    model_signing = _import_model_signing()
    from cryptography.hazmat.primitives import serialization

    folder = folder.resolve()
    path = folder / SIGNATURE_NAME
    if not os.path.isfile(public_key):
        raise PackageError(
            f"The public key {public_key}, with which packages must be signed, is not a file. Correct its path "
            f"(public_key, --require-signature or ${REQUIRE_VARIABLE})."
        )
    if not path.is_file():
        raise PackageError(
            f"{folder} is not signed (it has no {SIGNATURE_NAME}), and a signature is required. "
            "Take a signed package, or sign this one: edgelm sign"
        )
    check_signature_file(path)
    with _errors(f"The public key {public_key} cannot be read"):
        _check_kind(serialization.load_pem_public_key(public_key.read_bytes()), public_key)
    with _errors(f"{folder} is not signed with the key of {public_key}, or was changed since"):
        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_hashing(model_signing, folder)).verify(folder, path)


def _check_kind(key: object, path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        kind = type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey")
    elif key.curve.name not in _CURVES:
        kind = key.curve.name
    else:
        return
    raise PackageError(
        f"{path} holds a key of the kind {kind}; signatures need one on an elliptic curve: {', '.join(_CURVES)}. "
        "Make one: openssl ecparam -name prime256v1 -genkey -noout -out publisher.key"
    )


def _hashing(model_signing: Any, folder: Path) -> Any:
    left = [folder / name for name in os.listdir(folder) if is_left_by_looking(name)]
    return model_signing.hashing.Config().set_ignored_paths(
        paths=[folder / SIGNATURE_NAME, *left], ignore_git_paths=False
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackageError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except PackageError:
        raise
    except Exception as error:  # of model-signing, sigstore and cryptography, which have no common base
        raise PackageError(f"{what}: {type(error).__name__}: {error}") from error


def _import_model_signing() -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ModuleNotFoundError as error:
        if error.name != "model_signing":
            raise
        raise MissingExtraError("Signatures need 'model-signing': pip install \"edgelm[sign]\"") from error
    return model_signing
