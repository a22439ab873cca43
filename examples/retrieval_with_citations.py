"""Answer from local files, and say which: python examples/retrieval_with_citations.py [MODEL] [FOLDER] [QUESTION]"""

import re
import sqlite3
import sys
from pathlib import Path

import edgelm

arguments = dict(enumerate(sys.argv))
model = edgelm.load(arguments.get(1, "smollm2-135m-instruct"))
folder = Path(arguments.get(2, Path(__file__).parent.parent / "docs"))
question = arguments.get(3, "How does the KV cache grow?")

# SQLite's full-text index ranks by BM25: enough for a folder of notes, and nothing to install.
index = sqlite3.connect(":memory:")
index.execute("CREATE VIRTUAL TABLE passages USING fts5(source, text, tokenize = 'porter')")
for path in sorted(folder.rglob("*.md")):
    for passage in path.read_text(encoding="utf-8").split("\n\n"):
        index.execute("INSERT INTO passages VALUES (?, ?)", (str(path.relative_to(folder)), passage[:1000]))

words = " OR ".join(f'"{word}"' for word in re.findall(r"\w{4,}", question)) or '""'
found = index.execute("SELECT source, text FROM passages(?) ORDER BY rank LIMIT 3", (words,)).fetchall()
notes = "\n".join(f"[{number}] {text}" for number, (_, text) in enumerate(found, 1))

messages = [
    {"role": "system", "content": "Answer in one sentence from the notes, and cite them as [1]."},
    {"role": "user", "content": f"Notes:\n{notes}\n\n{question}"},
]
config = edgelm.GenerationConfig(max_new_tokens=120, stop=("\n\n",))  # small models repeat themselves after that
for chunk in model.stream_chat(messages, config):
    print(chunk.text, end="", flush=True)

print("\n\nFrom:")
for number, (source, _) in enumerate(found, 1):
    print(f"[{number}] {source}")
