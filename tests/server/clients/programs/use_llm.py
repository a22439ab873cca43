"""The command `llm`, with a model of this server in its configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def llm(*arguments):
    command = [str(Path(sys.executable).with_name("llm")), *arguments]
    environment = os.environ | {"LLM_USER_PATH": str(home)}
    result = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
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
