"""Stream an answer: python examples/stream.py [MODEL] [PROMPT]"""

import sys

import edgelm

model = edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
prompt = sys.argv[2] if len(sys.argv) > 2 else "The sea"

for chunk in model.stream(prompt, edgelm.GenerationConfig(max_new_tokens=64, temperature=0.7, seed=1)):
    print(chunk.text, end="", flush=True)
    if chunk.timings:
        print(f"\n[{chunk.finish_reason}, {chunk.timings.decode_tokens_per_second:.0f} tokens/s]", file=sys.stderr)
