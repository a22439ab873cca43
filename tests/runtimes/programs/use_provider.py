"""Greedy tokens by each provider, or its error: use_provider.py FOLDER IDS COUNT PROVIDERS, all in JSON."""

import json
import sys

import edgelm
from edgelm import doctor

folder, ids, count, providers = map(json.loads, sys.argv[1:])
answers = {}
for provider in providers:
    try:
        model = edgelm.load(folder, provider=provider)
        config = edgelm.GenerationConfig(max_new_tokens=count, ignore_eos=True)
        answers[provider] = list(model.generate(ids, config).token_ids)
    except edgelm.ProviderError as error:
        answers[provider] = str(error)
print(json.dumps({"answers": answers, "wheels": list(doctor.CHECKS["onnxruntime"]())}))
