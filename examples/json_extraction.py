"""Read facts out of a text, as JSON of a fixed form: python examples/json_extraction.py [MODEL] [TEXT]"""

import json
import sys

import edgelm

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "city": {"type": ["string", "null"], "maxLength": 40},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog", "bird"]}, "maxItems": 3},
    },
    "required": ["name", "age", "city", "pets"],
    "additionalProperties": False,
}

model = edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct")
text = sys.argv[2] if len(sys.argv) > 2 else "Anna (31) lives in Paris. She walks her dog every morning."

completion = model.chat(
    [{"role": "user", "content": f"Who is this about? Answer with name, age, city and pets.\n\n{text}"}],
    edgelm.GenerationConfig(constraint=edgelm.Constraint.json_schema(PERSON), max_new_tokens=400),
)
if completion.finish_reason == "stop":
    person = json.loads(completion.text)  # it has every key, and each value has its type
    print(f"{person['name']}, {person['age']}, of {person['city']}: {', '.join(person['pets']) or 'no pets'}")
else:
    print(f"The answer was cut off: {completion.text}")
