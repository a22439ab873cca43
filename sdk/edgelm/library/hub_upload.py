"""A package goes to the hub, or to a server of the user's that speaks its protocol (HF_ENDPOINT)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelm._version import __version__
from edgelm.errors import UploadError
from edgelm.library.hub_token import hub_token
from edgelm.package.manifest import FILE_NAME, SIGNATURE_NAME, Manifest
from edgelm.package.model_card import model_card

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_CARD_NAME = "README.md"


@dataclass(frozen=True, kw_only=True)
class UploadOptions:
    """Choose where a package goes and who may see it.

    private: of a repository that is made; one that is there stays as it is, and is refused where everybody can read it.
    replace_card: write the card anew where the repository has one. token_file: has the token; None takes HF_TOKEN or
    what `hf auth login` left. show_progress: draw it on standard error.
    """

    private: bool = False
    replace_card: bool = False
    token_file: Path | None = None
    show_progress: bool = False


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What was uploaded: the commit's address, and whether the card that was there is still there."""

    url: str
    kept_card: bool


def upload(folder: Path, repo: str, options: UploadOptions) -> Upload:
    """Upload the package at `folder` to ORG/REPO as one commit, with a card; the repository is made if it is missing.

    Raises:
        PackageError: the package is not whole.
        UploadError: there is no token, the repository has files of something else that would go, or the hub cannot be
            reached or refuses.
        ConfigError: the file with the token cannot be read.
    """
    manifest = Manifest.load(folder)
    manifest.check_files(folder)
    token = hub_token(options.token_file)
    if token is None:
        raise UploadError(
            "The hub takes uploads only from those it knows: set HF_TOKEN to a token that may write, name a file with "
            "one (--token-file FILE), or log in: hf auth login"
        )
    # Its import takes a quarter of a second, and most commands never need it.
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="edgelm", library_version=__version__, token=token)
    with _errors(repo), _progress(options.show_progress):
        there = _make_repository(api, repo, options.private)
        names = [entry.path for entry in manifest.files] + [FILE_NAME]
        if (folder / SIGNATURE_NAME).is_file():
            names.append(SIGNATURE_NAME)
        if FILE_NAME not in there and (lost := sorted(there & set(names))):
            raise UploadError(
                f"{repo} holds something else than a package of edgelm, whose {', '.join(lost)} would be replaced. "
                "Choose another repository; one that is missing is made. Nothing was uploaded."
            )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, folder / name) for name in names
        ]
        if SIGNATURE_NAME in there and SIGNATURE_NAME not in names:  # of the package that this one replaces
            operations.append(CommitOperationDelete(SIGNATURE_NAME))
        keeps_card = _CARD_NAME in there and not options.replace_card
        if not keeps_card:
            operations.append(CommitOperationAdd(_CARD_NAME, model_card(manifest, repo).encode()))
        message = f"Upload {manifest.name} in {manifest.precision} with edgelm {__version__}"
        commit = api.create_commit(repo, operations, commit_message=message)
    return Upload(url=commit.commit_url, kept_card=keeps_card)


def _make_repository(api: HfApi, repo: str, private: bool) -> set[str]:
    """Make the repository if it is missing, and name the files that it has."""
    from huggingface_hub import errors

    try:
        info = api.model_info(repo)
    except errors.RepositoryNotFoundError:
        api.create_repo(repo, private=private or None, exist_ok=True)
        return set()
    if private and not info.private:
        raise UploadError(
            f"{repo} is there already, and everybody can read it: make it private in its settings, or leave out "
            "--private. Nothing was uploaded."
        )
    return {sibling.rfilename for sibling in info.siblings or ()}


@contextlib.contextmanager
def _errors(repo: str) -> Iterator[None]:
    """Say of a failure what to do about it."""
    from huggingface_hub import errors

    try:
        yield
    except UploadError:
        raise
    except errors.HFValidationError as error:
        raise UploadError(f"{repo} cannot be the name of a repository: {error}") from error
    except errors.OfflineModeIsEnabled as error:
        raise UploadError("HF_HUB_OFFLINE forbids to upload. Unset HF_HUB_OFFLINE.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = "Check HF_ENDPOINT where it is set, and try again later."
        if status in (401, 403, 404):
            advice = f"The token must be one that may write to {repo}; gated and foreign repositories refuse others."
        raise UploadError(f"The hub refuses the upload to {repo}: {error}. {advice}") from error
    except Exception as error:  # the hub's client has changed its HTTP library twice; its errors share no base
        raise UploadError(
            f"Cannot upload to {repo}: {error}. Check the network, and HF_ENDPOINT where it is set, and run the same "
            "command again: a file that arrived is not sent twice."
        ) from error


@contextlib.contextmanager
def _progress(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
