"""The command `llm`, with a model of this server in its configuration."""

import json
import os
from pathlib import Path

from click.testing import CliRunner
from llm.cli import cli

home = Path(os.environ["HOME"]) / "llm"
home.mkdir()
model = os.environ["MODEL"]
entry = {
    "model_id": model,
    "model_name": model,
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key_name": "edgelm",
    "supports_schema": True,
    "supports_tools": True,
}
(home / "extra-openai-models.yaml").write_text(json.dumps([entry]))
(home / "keys.json").write_text(json.dumps({"edgelm": os.environ["OPENAI_API_KEY"]}))


os.environ["LLM_USER_PATH"] = str(home)


def llm(*arguments):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


question = "What is the capital of Japan?"
settings = ("-m", model, "-o", "temperature", "0", "-o", "max_tokens", "24")
told = {
    "streamed": llm(*settings, question),
    "whole": llm(*settings, "--no-stream", question),
    "structured": sorted(
        json.loads(llm("-m", model, "-o", "temperature", "0", "--schema", "name, age int", "Ada is 36."))
    ),
    "continued": bool(llm(*settings, "-c", "And of Italy?")),
}
print(json.dumps(told))
