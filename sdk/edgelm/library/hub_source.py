"""A model on the Hugging Face hub, or on a server of the user's that speaks its protocol (HF_ENDPOINT)."""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgelm.errors import ConfigError, DownloadError
from edgelm.files.gguf_part_names import name_of_whole, names_of_parts, one_of_each_model
from edgelm.library.download import download, missing_bytes
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.hub_listing import listing
from edgelm.library.hub_token import hub_token
from edgelm.library.remote_file import RemoteFile
from edgelm.package.manifest import FILE_NAME, SIGNATURE_NAME, Manifest, is_plain_name
from edgelm.package.spdx import stated_license
from edgelm.shell_word import shell_word

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

HUB_PREFIX = "hf:"

_REFERENCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>.+))?", re.ASCII)
# Everything that the importer reads, and nothing else: no pickle ever comes onto the disk.
_TEXT_FILES = (
    "config.json", "hf_quant_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json", "*.safetensors.index.json",
)  # fmt: skip
# The only folder of which the importer reads files, too: templates with names, such as tool_use.jinja.
_NAMED_TEMPLATES = "additional_chat_templates"
# What a tokenizer is rebuilt from, where there is no tokenizer.json.
_TOKENIZER_FILES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm", "tekken.json", "tiktoken.model",
    "*.tiktoken", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip
_GGUF_MAGIC = b"GGUF"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MOST_BYTES = 1 << 50  # of one file: a petabyte


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository of the hub: its safetensors model, or one GGUF model of it (`file`: its first part)."""

    repo: str
    file: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, reference: str) -> HubSource:
        """Read hf:ORG/REPO or hf:ORG/REPO/FILE.gguf, each with @REVISION behind it or without.

        Where the file is a part of a model, any of them stands for all.

        Raises:
            ConfigError: the reference has another form.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None:
            raise ConfigError(
                f"{reference!r} is not a model of the hub: write hf:ORG/REPO or hf:ORG/REPO/FILE.gguf, "
                "with @REVISION behind it for another branch, tag or commit than main."
            )
        file = names_of_parts(match["file"])[0] if match["file"] else None
        return cls(repo=match["repo"], file=file, revision=match["revision"])

    @classmethod
    def parse_repository(cls, reference: str) -> HubSource:
        """Read hf:ORG/REPO alone: what a package is uploaded to.

        Raises:
            ConfigError: the reference has another form.
        """
        match = _REFERENCE.fullmatch(reference)
        if match is None or match["file"] or match["revision"]:
            raise ConfigError(f"{reference!r} is not a repository to upload to: write {HUB_PREFIX}ORG/REPO.")
        return cls(repo=match["repo"])

    @property
    def reference(self) -> str:
        """What a user types for it."""
        file = f"/{self.file}" if self.file else ""
        return f"{HUB_PREFIX}{self.repo}{file}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """The repository's name, or the GGUF file's, in lower case."""
        return (PurePosixPath(name_of_whole(self.file)).stem if self.file else self.repo.partition("/")[2]).lower()

    def fetch(self, staging: Path, options: FetchOptions) -> tuple[Path, dict[str, Any]]:
        """Download what the importer needs, or all of a package of edgelm.

        Raises:
            DownloadError: the hub cannot be reached or refuses, the disk is too full, or the repository has no model
                that can be imported.
            ConfigError: the file with the token cannot be read, or a package has another precision than is wanted, or
                a name that is taken.
        """
        token = hub_token(options.token_file)
        info = listing(self.repo, self.revision, token, self._advice()[403], options.say)
        self._refuse_odd_listing(info)
        # Its import takes a quarter of a second, and most commands never need it.
        from huggingface_hub import ModelCardData, hf_hub_url

        files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        # A folder for each commit: files of two never mix, whatever happened to the repository between two attempts.
        folder = staging / str(info.sha)
        for other in staging.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        arrived: set[Path] = set()

        def bring(paths: Sequence[str], package_of: int) -> None:
            self._refuse_odd_names(paths)
            remotes = {
                folder / _place(path): RemoteFile(
                    url=hf_hub_url(self.repo, path, revision=info.sha),
                    size=files[path].size,
                    sha256=_sha256_of(files[path]),
                    headers={"Authorization": f"Bearer {token}"} if token else {},
                    advice=self._advice(),
                )
                for path in paths
            }
            missing = sum(missing_bytes(remote, target) for target, remote in remotes.items())
            options.require_room(folder, missing, package_of, self.reference)
            for target, remote in remotes.items():
                if not target.exists():
                    download(remote, target, options.progress, connections=options.connections)
            arrived.update(remotes)

        if self.file is None and FILE_NAME in files:  # it is a package already
            if options.taken_name is not None:
                shutil.rmtree(folder)
                raise ConfigError(
                    f"The library has a package {options.taken_name!r}. Choose another name for this one: --name NAME"
                )
            bring([FILE_NAME], 0)
            manifest = Manifest.load(folder)
            self._refuse_other_precision(manifest, options.precision)
            bring(self._listed(manifest, files), 0)
        else:
            chosen = self._choose(sorted(files))
            bring(chosen, sum(files[path].size or 0 for path in chosen))
            if self.file is not None:
                _refuse_no_gguf(folder, self.file, self.reference)
        for path in [*folder.rglob("*")]:  # of another model of this repository, or what a kill has left
            if path.is_file() and path not in arrived:
                path.unlink()
        card = info.card_data if isinstance(info.card_data, ModelCardData) else ModelCardData()
        return folder, {
            "license": stated_license(card.get("license"), card.get("license_name")),
            "repository": self.repo,
            "revision": info.sha,
        }

    def _refuse_odd_listing(self, info: ModelInfo) -> None:
        """Refuse what is no commit and no file: the listing is whatever came."""
        if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):  # it becomes the name of a folder
            raise DownloadError(f"The hub gives {self.repo} the revision {info.sha!r:.80}, which is not a commit.")
        for sibling in info.siblings or ():
            size, sha256 = sibling.size, _sha256_of(sibling)
            if (
                not isinstance(sibling.rfilename, str)
                or not (size is None or (type(size) is int and 0 <= size <= _MOST_BYTES))
                or not (sha256 is None or re.fullmatch("[0-9a-f]{64}", str(sha256)))
            ):
                raise DownloadError(
                    f"The hub lists {sibling.rfilename!r:.80} of {self.repo} with the size {size!r:.40} and the "
                    f"SHA-256 {sha256!r:.80}, which is no file. Try again later; if it stays so, do not trust this hub."
                )

    def _advice(self) -> Mapping[int, str]:
        gated = (
            f"{self.repo} is gated or private: accept its terms on its page, then set HF_TOKEN "
            "to a token that may read it (or log in: hf auth login)."
        )
        return {401: gated, 403: gated, 404: "The repository changed meanwhile: run the same command again."}

    def _refuse_odd_names(self, paths: Iterable[str]) -> None:
        """Refuse what Windows would put elsewhere: it parts folders by `\\`, and `C:` is a drive."""
        for path in paths:
            if not all(map(is_plain_name, _place(path).split("/"))):
                raise DownloadError(
                    f"{path!r:.80} of {self.repo} is not a plain file name; do not trust this repository."
                )

    def _refuse_other_precision(self, manifest: Manifest, wanted: str | None) -> None:
        if wanted not in (None, manifest.precision):
            raise ConfigError(
                f"{self.reference} is a package of precision {manifest.precision} already, which --precision {wanted} "
                "cannot change. Leave the option out, or pull what the package was made of."
            )

    def _listed(self, manifest: Manifest, there: Collection[str]) -> list[str]:
        """Name the files that the package's manifest lists; whatever else is there, such as its card, is no part."""
        listed = [entry.path for entry in manifest.files]
        missing = [path for path in listed if path not in there or PurePosixPath(path).name != path]
        if missing:
            raise DownloadError(f"{self.repo} is not a whole package: its {FILE_NAME} lists {', '.join(missing)}.")
        return [*listed, SIGNATURE_NAME] if SIGNATURE_NAME in there else listed

    def _choose(self, paths: Sequence[str]) -> list[str]:
        """Pick the files to download; those in other folders of the repository belong to other programs."""
        if self.file is not None:
            parts = names_of_parts(self.file)
            if missing := [part for part in parts if part not in paths]:
                listed = ", ".join(map(repr, missing))
                raise DownloadError(f"{self.repo} has no file {listed}. {_what_else(self.repo, paths)}")
            return parts
        top = [path for path in paths if "/" not in path and "\\" not in path]
        weights = fnmatch.filter(top, "*.safetensors")
        # Some repositories hold the same weights twice, the second time under their maker's own names.
        weights = [path for path in weights if path.startswith("model")] or weights
        self._refuse_no_model(paths, top, weights)
        texts = _TEXT_FILES if "tokenizer.json" in top else _TEXT_FILES + _TOKENIZER_FILES
        named = [path for path in paths if "/" in path and _place(path) == path]
        return _matching(top, texts) + named + weights

    def _refuse_no_model(self, paths: Sequence[str], top: Sequence[str], weights: Sequence[str]) -> None:
        """Refuse a repository without weights that can be read, and a config. top: the files that are in no folder."""
        if not weights:
            pickles = _matching(top, _PICKLES)
            reason = f"only pickles ({', '.join(pickles)}), which can run any code when opened" if pickles else "none"
            raise DownloadError(f"{self.repo} has no safetensors weights: {reason}. {_what_else(self.repo, paths)}")
        if all(path.startswith("consolidated") for path in weights):
            ggufs = f" {_what_else(self.repo, paths)}" if fnmatch.filter(paths, "*.gguf") else ""
            raise DownloadError(
                f"{self.repo} has its weights in {weights[0]} alone, in the format of their author's own program. Take "
                "the same model in Hugging Face's: config.json, model.safetensors (or its shards) and tokenizer.json "
                f"or tekken.json. Or take a GGUF file of it.{ggufs}"
            )
        if "config.json" not in top:
            raise DownloadError(f"{self.repo} has no config.json: it is not a whole model (an adapter, perhaps).")


def _place(path: str) -> str:
    """Return where a file of the repository lies in the folder of its source: in it, but for templates with names."""
    folder, _, name = path.rpartition("/")
    return path if folder == _NAMED_TEMPLATES and name.endswith(".jinja") and "\\" not in name else name


def _matching(paths: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in paths if any(fnmatch.fnmatch(path, pattern) for pattern in patterns)]


def _sha256_of(sibling: RepoSibling) -> str | None:
    return None if sibling.lfs is None else sibling.lfs.sha256


def _what_else(repo: str, paths: Sequence[str]) -> str:
    ggufs = one_of_each_model(fnmatch.filter(paths, "*.gguf"))
    top = [path for path in paths if "/" not in path]
    if not ggufs and (FILE_NAME in top or fnmatch.filter(top, "*.safetensors")):
        return f"It comes as a whole: edgelm pull {HUB_PREFIX}{repo}"
    if not ggufs and fnmatch.filter(paths, "*.onnx"):
        return (
            f"Its graphs of ONNX run as they are: hf download {repo} --local-dir FOLDER, and then: edgelm run FOLDER/"
        )
    if not ggufs:
        return "Pick a repository with safetensors or GGUF files."
    return f"Its GGUF files: {', '.join(shell_word(f'{HUB_PREFIX}{repo}/{path}') for path in ggufs)}."


def _refuse_no_gguf(folder: Path, file: str, reference: str) -> None:
    """Delete what came under the name of a GGUF file and is none: no package can be made of it."""
    with (folder / _place(file)).open("rb") as opened:
        beginning = opened.read(len(_GGUF_MAGIC))
    if beginning != _GGUF_MAGIC:
        shutil.rmtree(folder, ignore_errors=True)
        raise DownloadError(
            f"{reference} is not a GGUF file (it begins with {beginning!r}), so it was not kept. Take another file of "
            "the repository."
        )
