"""Offline means offline: importing, loading and generating open no socket, and ONNX Runtime's telemetry is off."""

from __future__ import annotations

import subprocess
import sys

from edgelm.testing import tiny_model_path

# Watches from the first line on. Sockets that native code opens pass no audit hook: on Linux they show among the
# process's open files. A thread looks for them all the time, since one that reports and closes may be short.
PROGRAM = """
import os, sys, threading
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith("socket.") else None)
done = threading.Event()
def look():
    while not done.is_set():
        for descriptor in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                continue
            if target.startswith("socket:"):
                seen.append(target)
        done.wait(0.001)
if sys.platform.startswith("linux"):
    threading.Thread(target=look).start()
telemetry = []
def on_import(event, arguments):
    if event == "import" and arguments[0] == "onnxruntime":
        telemetry.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.addaudithook(on_import)

import edgelm
model = edgelm.load(sys.argv[1])
chat = edgelm.ChatSession(model)
config = edgelm.GenerationConfig(max_new_tokens=8, ignore_eos=True)
assert "".join(chunk.text for chunk in chat.send("Hello", config))
model.score("The sea is blue.")
done.set()
assert telemetry == ["1"], telemetry
assert seen == [], seen
print("offline")
"""


def test_loading_and_chatting_open_no_socket_and_send_no_telemetry() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_model_path())],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )

    assert (result.returncode, result.stdout) == (0, "offline\n"), result.stderr
