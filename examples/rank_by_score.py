"""Let the model say which of some sentences is the likeliest: python examples/rank_by_score.py [MODEL]"""

import sys

import edgelm

SENTENCES = ["The cat sat on the mat.", "The cat sat on the moon.", "Mat the on sat cat the."]

model = edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
for sentence in sorted(SENTENCES, key=lambda sentence: model.score(sentence).perplexity):
    print(f"{model.score(sentence).perplexity:10.1f}  {sentence}")
