"""What the hub says of a repository: its commit, its files and its card, read within bounds."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from edgelm.errors import DownloadError
from edgelm.files.regular_file import bounded_json
from edgelm.library.remote_file import RemoteFile, is_passing, open_range, retry_waits, wait_after

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

# A file of a repository takes up to 300 bytes and eight values: room for more than 50,000 of them.
_MOST_BYTES = 1 << 24
_MOST_VALUES = 1 << 19
_WAY_OUT = "Check the network, and HF_ENDPOINT where it is set."


Say = Callable[[str], None]


def listing(repo: str, revision: str | None, token: str | None, gated_advice: str, say: Say | None = None) -> ModelInfo:
    """Ask the hub about a model's repository; what comes is not checked but for its size.

    It is not asked by the hub's own client, which reads an answer as long as it is. say: called before a wait.

    Raises:
        DownloadError: the hub cannot be reached, refuses, has no such repository or revision, or answers too much or
            what is no JSON; or HF_HUB_OFFLINE forbids to ask it.
    """
    # Its import takes a quarter of a second, and most commands never need it.
    from huggingface_hub import constants, errors
    from huggingface_hub.hf_api import ModelInfo
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repo)
    except errors.HFValidationError as error:
        raise DownloadError(f"{repo} cannot be the name of a repository: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"hf:{repo} is not in the library, and HF_HUB_OFFLINE forbids to fetch it. Unset HF_HUB_OFFLINE."
        )
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    url = f"{constants.ENDPOINT.rstrip('/')}/api/models/{repo}{at}?blobs=true"
    try:
        return ModelInfo(**_read(url, token, say))  # type: ignore[no-untyped-call]
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(_explained(error, repo, revision, gated_advice)) from error
    except Exception as error:  # also from ModelInfo, which checks nothing
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DownloadError(f"Cannot ask the hub about {repo} at {url}: {reason}. {_WAY_OUT}") from error


def _read(url: str, token: str | None, say: Say | None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _opened(RemoteFile(url=url, headers=headers), say) as response:
        data: bytes = response.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"its answer has more than {_MOST_BYTES} bytes")
    try:
        return bounded_json(data.decode(), _MOST_VALUES)
    except ValueError as error:
        raise ValueError(f"its answer is no JSON that can be read ({error})") from error


def _opened(remote: RemoteFile, say: Say | None) -> Any:
    """Ask again where the hub is busy, as for a file."""
    waits = retry_waits()
    while True:
        try:
            return open_range(remote)
        except urllib.error.HTTPError as error:
            wait = next(waits, None)
            if not is_passing(error) or wait is None:
                raise
            with error:
                seconds = wait_after(error, wait)
                if say is not None and seconds >= 1:
                    say(f"The hub is busy (it answers {error.code}); asking again in {seconds:.0f} s.")
                time.sleep(seconds)


def _explained(error: urllib.error.HTTPError, repo: str, revision: str | None, gated_advice: str) -> str:
    """Say what a refusal means: the hub names its reason in headers."""
    code, message = error.headers.get("X-Error-Code"), error.headers.get("X-Error-Message")
    if code == "GatedRepo":
        return f"Cannot read hf:{repo}. {gated_advice}"
    if code == "RevisionNotFound":
        return f"{repo} has no revision {revision!r}; see its branches and tags."
    # Without a token, the hub answers 401 also for what is not there.
    if code == "RepoNotFound" or (error.code == 401 and message != "Invalid credentials in Authorization header"):
        return (
            f"There is no model {repo!r} on the hub, or it is private. Check the spelling; for a private one set "
            "HF_TOKEN."
        )
    reason, way_out = message or error.reason, "Try again later." if is_passing(error) else _WAY_OUT
    return f"Cannot ask the hub about {repo} at {error.url}: it answers {error.code} {reason}. {way_out}"
