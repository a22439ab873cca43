"""A hub on the loopback interface that takes uploads: it makes repositories, and commits of small and LFS files.

Its answers are those that huggingface_hub's client reads; LFS is git-lfs's batch protocol with the basic transfer.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from loopback_server import LFS_SUFFIXES, LoopbackServer


@dataclass
class LoopbackHub(LoopbackServer):
    """Take uploads of those who have the token."""

    token: str = "may_write"
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS: SHA-256 -> content
    uploads: list[str] = field(default_factory=list)  # the SHA-256 of each LFS file that was sent
    commits: list[str] = field(default_factory=list)  # their summaries
    broken: str = ""  # what is posted to a path that contains it is refused with 500

    def receive(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        if path.startswith("/lfs/"):  # the address itself is the permission
            return self._store(path.removeprefix("/lfs/"), body)
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials"}
        if self.broken and self.broken in path:
            return 400, {"error": "This hub is broken."}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [self._upload_mode(file) for file in json.loads(body)["files"]]}
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self._wanted(wanted) for wanted in json.loads(body)["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return 404, {}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        repo = f"{wanted['organization']}/{wanted['name']}"
        self.repositories[repo] = {}
        self.private[repo] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return 200, {"url": f"{self.url}/{repo}", "name": repo, "id": "1"}

    def _upload_mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _wanted(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}

    def _store(self, oid: str, content: bytes) -> tuple[int, dict[str, Any]]:
        if hashlib.sha256(content).hexdigest() != oid:
            return 422, {"error": "The content does not match its SHA-256."}
        self.objects[oid] = content
        self.uploads.append(oid)
        return 200, {}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        files = dict(self.repositories[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.objects[value["oid"]]
        self.repositories[repo] = files
        commit = hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()
        self.add_repository(repo, files, commit=commit, private=self.private[repo])
        return 200, {"success": True, "commitOid": commit, "commitUrl": f"{self.url}/{repo}/commit/{commit}"}
