"""A model with an adapter that no answer has to have: the tokens without it, and with it."""

import json
import sys

import edgelm

package, adapter, prompt_ids, count = map(json.loads, sys.argv[1:])
model = edgelm.load(package)
model.load_adapter(adapter)
config = edgelm.GenerationConfig(max_new_tokens=count, ignore_eos=True)
answers = [list(model.generate(prompt_ids, config.replace(adapter=chosen)).token_ids) for chosen in (None, "mine")]
print(json.dumps({"answers": answers}))
