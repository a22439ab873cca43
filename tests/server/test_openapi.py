"""/openapi.json describes what the server does: schemathesis sends what the description allows, and what it forbids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from edgelm_server import CHAT, TINY, EdgelmServer

from edgelm.server.routes import ROUTES
from edgelm.server.sampling_fields import HARMLESS, REFUSED, SAMPLING

BRIEF = (TINY, "--timeout", "0.1")  # most of what is sent has no limit of tokens


@pytest.fixture(scope="module")
def described(serving):
    return serving.get("/openapi.json").json


def test_every_route_is_described(described):
    assert described["openapi"] == "3.1.0"
    operations = {(method.upper(), path) for path, rows in described["paths"].items() for method in rows}
    assert operations == {(row.method, row.path.replace(":path", "")) for row in ROUTES}


def test_what_is_refused_and_what_is_ignored_is_in_the_description(described):
    chat = described["paths"][CHAT]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert "functions: use tools." in schema["description"]
    assert schema["properties"]["user"] == {}
    assert schema["required"] == ["messages"]
    assert schema["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


def test_no_field_that_chooses_tokens_is_refused_or_passed_over_too():
    assert [name for name in (*HARMLESS, *REFUSED) if name in SAMPLING] == []
    bodies = {row.path: row.body for row in ROUTES if row.body is not None}
    both = {path: body["properties"].keys() & body["x-refused"].keys() for path, body in bodies.items()}
    assert {path: fields for path, fields in both.items() if fields} == {}


def test_refusals_are_described_in_the_form_of_each_protocol(described):
    for path, fields in ((CHAT, ["error"]), ("/v1/messages", ["type", "error"])):
        refusal = described["paths"][path]["post"]["responses"]["400"]["content"]["application/json"]["schema"]
        assert refusal["required"] == fields
    assert described["paths"]["/v1/messages"]["post"]["security"] == [{}, {"key": []}, {"x-api-key": []}]


def test_schemathesis_finds_nothing(tmp_path):
    with EdgelmServer(BRIEF) as serving:
        result = run_schemathesis(serving.url, tmp_path)
        assert result.returncode == 0, result.stdout[-6000:]
        assert serving.get("/health").status == 200


def run_schemathesis(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--phases", "examples,fuzzing", "--max-examples", "3", "--generation-deterministic",
        "--request-timeout", "60", "--exclude-path-regex", "^/page/", "--suppress-health-check", "all",
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
