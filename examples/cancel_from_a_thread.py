"""Stop an answer from another thread, as a Stop button does: python examples/cancel_from_a_thread.py [MODEL]"""

import sys
import threading

import edgelm

model = edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
stop_pressed = threading.Event()
threading.Timer(1.0, stop_pressed.set).start()

config = edgelm.GenerationConfig(max_new_tokens=1000, ignore_eos=True)
for chunk in model.stream("Once upon a time", config, cancel=stop_pressed):
    print(chunk.text, end="", flush=True)
print(f"\n[{chunk.finish_reason}]")
