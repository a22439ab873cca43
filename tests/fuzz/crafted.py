"""What files cost that are written to cost the most, at their readers' bounds: python tests/fuzz/crafted.py [NAME ...]

Each is read once, in a process of its own that has read a small file of its kind before, so that imports count for
none. Prints the file's size, the processor time, the growth of the largest resident size, and how the reading ended.
Nothing is asserted: docs/results/trust.md has the figures.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import string
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

from fuzz.targets import TARGETS

from edgelm.errors import EdgeLMError
from edgelm.files import regular_file, safetensors_header, safetensors_index
from edgelm.files.safetensors_index import INDEX_FILE, read_weight_map
from edgelm.package import manifest, onnx_walk
from edgelm.server import request_body
from edgelm.text import template_environment, template_sandbox
from edgelm_export.gguf import file as gguf
from edgelm_export.sources import checkpoint_folder
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers import byte_level_folder, marian_tokenizer, sentencepiece_model, sentencepiece_tokenizer
from edgelm_export.tokenizers.sentencepiece_model import read_sentencepiece

_BYTES = 2  # the wire type of protobuf's messages and texts


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """One file. `kind` is the row of TARGETS that prepares its folder and reads it, where no other reader is named."""

    kind: str
    make: Callable[[], bytes]
    file: str | None = None
    read: Callable[[Path], object] | None = None
    beside: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)


def manifest_of_files() -> bytes:
    entry = b'{"path":"","size":0,"sha256":""}'
    start, end = b'{"schema_version":1,"files":[', b"]}"
    return start + b",".join([entry] * ((manifest._MAX_BYTES - len(start) - len(end)) // (len(entry) + 1))) + end


def lists(size: int, values: int) -> bytes:
    """Return a JSON list of lists, of at most `size` bytes and `values` commas and brackets."""
    return b"[" + b"[]," * min(size // 3 - 1, values // 2 - 1) + b"0]"


def objects(values: int) -> bytes:
    """Return a JSON object of objects, of at most `values` commas and brackets, all of whose keys differ."""
    return b"{" + b",".join(b'"%x":{}' % i for i in range(values // 2)) + b"}"


def numbers(values: int) -> bytes:
    return b'{"a":[' + b",".join(b"%d.5" % i for i in range(values - 2)) + b"]}"


def request(prompt: bytes) -> bytes:
    return b'/v1/completions\n{"prompt":' + prompt + b"}"


def index() -> bytes:
    """Return an index with as many tensors as are read, and names as long as they can be."""
    count = safetensors_index.MAX_INDEX_VALUES - 2
    room = (safetensors_index.MAX_INDEX_BYTES - 40) // count - 19
    names = (b"%06x" % i + b"x" * (room - 6) for i in range(count))
    return b'{"weight_map":{' + b",".join(b'"%s":"a.safetensors"' % name for name in names) + b"}}"


def toml() -> bytes:
    return b"".join(b"[x.y%x.z.a.b.c]\n" % i for i in range(regular_file.MAX_TOML_BYTES // 20))


def varint(number: int, length: int = 1) -> bytes:
    """Write a number of protobuf's wire format in `length` bytes or more."""
    digits = []
    while number or len(digits) < length:
        digits.append(number & 127)
        number >>= 7
    return bytes(digit | 128 for digit in digits[:-1]) + bytes(digits[-1:])


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | _BYTES) + varint(len(content)) + content


def graph(content: bytes) -> bytes:
    return message(7, content)


def attributes() -> bytes:
    """Return a node whose attributes all differ, so that none is known from another."""
    return message(1, b"".join(message(5, message(1, b"%x" % i)) for i in range(onnx_walk.MAX_FIELDS)))


def safetensors() -> bytes:
    count = safetensors_header.MAX_TENSORS - 1
    header = b",".join(b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(count))
    return struct.pack("<Q", len(header) + 2) + b"{" + header + b"}"


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_file(*, keys: int = 0, tensors: int = 0, content: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + content


def gguf_array(key: bytes, type_id: int, count: int, elements: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<IIQ", 9, type_id, count) + elements


def gguf_numbers(count: int) -> bytes:
    return gguf_array(b"n", 10, count, b"".join(struct.pack("<Q", 1 << 40 | i) for i in range(count)))


def gguf_texts(text: str) -> bytes:
    """Return as many strings as are read, each a number and `text`, and as many numbers."""
    count = gguf._MAX_ELEMENTS["strings"]
    strings = b"".join(gguf_text(f"{i:06x}{text}".encode()) for i in range(count))
    return gguf_file(keys=2, content=gguf_array(b"s", 8, count, strings) + gguf_numbers(gguf._MAX_ELEMENTS["numbers"]))


def gguf_tensors() -> bytes:
    rows = (gguf_text(b"%x" % i) + struct.pack("<IQIQ", 1, 8, 0, 32 * i) for i in range(gguf.MAX_TENSORS))
    return gguf_file(tensors=gguf.MAX_TENSORS, content=b"".join(rows)) + bytes(32 * gguf.MAX_TENSORS + 32)


def gguf_keys() -> bytes:
    rows = (gguf_text(b"%x" % i) + struct.pack("<IB", 0, 1) for i in range(gguf._MAX_KEYS))
    return gguf_file(keys=gguf._MAX_KEYS, content=b"".join(rows))


def pieces(text: str = "", score: bytes = b"\x15\0\0\0\0", odd: int = 0) -> bytes:
    """Return as many pieces as are read, each a number and `text`; the first `odd` ones are without a score."""
    numbers = range(sentencepiece_model._MAX_PIECES)
    return b"".join(message(1, message(1, f"{i:05x}{text}".encode()) + score * (i >= odd)) for i in numbers)


def wide_pieces() -> bytes:
    """Return as many pieces as are read, in as many bytes: each of characters that all take four in memory."""
    room = sentencepiece_model.MAX_BYTES // sentencepiece_model._MAX_PIECES - 20
    return pieces("\U0001f600" + "x" * room)


def merging_pieces(texts: Iterable[str]) -> bytes:
    """Return a BPE of as many of these pieces as are read."""
    control = ((b"<unk>", b"\x18\x02"), (b"<s>", b"\x18\x03"), (b"</s>", b"\x18\x03"))
    scored = (message(1, text.encode()) + b"\x15\0\0\0\0" for text in texts)
    every = itertools.chain((message(1, text) + type_ for text, type_ in control), scored)
    content = bytearray(message(2, b"\x18\x02"))
    for piece in itertools.islice(every, sentencepiece_model._MAX_PIECES):
        if len(content) + 3 + len(piece) > sentencepiece_model.MAX_BYTES:
            break
        content += message(1, piece)
    return bytes(content)


def of_two_letters() -> bytes:
    """Return the pieces with the most pairs that make one."""
    return merging_pieces("".join(letters) for size in range(1, 19) for letters in itertools.product("ab", repeat=size))


def of_one_beginning() -> bytes:
    """Return pieces that begin with many others, each as long as what is read at once."""
    most = 113
    count = (sentencepiece_model.MAX_BYTES - 20_000) // (most + 14)
    return merging_pieces(["x" * size for size in range(1, most)] + [f"{'x' * most}{i:05x}" for i in range(count)])


def of_many_pairs(most: int) -> bytes:
    """Return pieces of five letters, all of whose parts are pieces: as many as make `most` pairs, or as are read."""
    count = most
    texts: list[str] = []
    for letters in itertools.chain.from_iterable(itertools.product("abcde", repeat=size) for size in range(1, 9)):
        count -= len(letters) - 1
        if count < 0 or len(texts) == sentencepiece_model._MAX_PIECES - 3:
            break
        texts.append("".join(letters))
    return merging_pieces(texts)


def vocabulary() -> bytes:
    """Return a Marian vocabulary of as many pieces as are read."""
    names = ["</s>", "<unk>", "<pad>", *(f"{i:x}" for i in range(marian_tokenizer._MAX_PIECES - 3))]
    return json.dumps({name: index for index, name in enumerate(names)}).encode()


def short_tokens() -> Iterable[str]:
    """Count up as many tokens as are read, of up to three letters."""
    letters = string.ascii_letters + string.digits + "!$"
    tokens = ("".join(chosen) for size in (1, 2, 3) for chosen in itertools.product(letters, repeat=size))
    return itertools.islice(tokens, checkpoint_folder._MORE_VALUES["vocab.json"])


def byte_level_vocabulary() -> bytes:
    return json.dumps({token: index for index, token in enumerate(short_tokens())}).encode()


def byte_level_merges() -> bytes:
    merges = (f"{token[:place]} {token[place:]}\n" for token in short_tokens() for place in range(1, len(token)))
    return "".join(itertools.islice(merges, byte_level_folder._MAX_MERGES)).encode()


def tokenizer_of(make: Callable[[], bytes]) -> Crafted:
    return Crafted(kind="sentencepiece-settings", file="tokenizer.model", make=make)


def sentencepiece(make: Callable[[], bytes]) -> Crafted:
    file = "tokenizer.model"
    return Crafted(kind="gguf", make=make, file=file, read=lambda folder: read_sentencepiece(folder / file))


CRAFTED = {
    "manifest of files": Crafted(kind="manifest", make=manifest_of_files),
    "config of lists": Crafted(
        kind="hf-config", make=lambda: lists(regular_file.MAX_JSON_BYTES, regular_file.MAX_JSON_VALUES)
    ),
    "config of objects": Crafted(kind="hf-config", make=lambda: objects(regular_file.MAX_JSON_VALUES)),
    "config of numbers": Crafted(kind="hf-config", make=lambda: numbers(regular_file.MAX_JSON_VALUES)),
    "index of tensors": Crafted(
        kind="safetensors",
        make=index,
        file=INDEX_FILE,
        read=lambda folder: read_weight_map(folder / INDEX_FILE),
    ),
    "settings of tables": Crafted(kind="toml", make=toml),
    "graph of names": Crafted(kind="onnx", make=lambda: graph(message(2, b"") * onnx_walk.MAX_FIELDS)),
    "graph of nodes": Crafted(
        kind="onnx", make=lambda: graph(message(1, message(4, b"Add")) * (onnx_walk.MAX_FIELDS // 2 - 1))
    ),
    "graph of attributes": Crafted(kind="onnx", make=lambda: graph(attributes())),
    "graph of tensors": Crafted(
        kind="onnx", make=lambda: graph(message(5, b"\x08\x00\x10\x01") * (onnx_walk.MAX_FIELDS // 4 - 1))
    ),
    "graph of long numbers": Crafted(
        kind="onnx", make=lambda: (varint(5 << 3, 10) + varint(1 << 63, 10)) * onnx_walk.MAX_FIELDS
    ),
    "safetensors of tensors": Crafted(kind="safetensors", make=safetensors),
    "GGUF of strings": Crafted(kind="gguf", make=lambda: gguf_texts("")),
    "GGUF of wide strings": Crafted(kind="gguf", make=lambda: gguf_texts("\U0001f600xxx")),
    "GGUF of arrays": Crafted(
        kind="gguf",
        make=lambda: gguf_file(
            keys=1, content=gguf_array(b"a", 9, 2 * gguf._MAX_ARRAYS, struct.pack("<IQ", 0, 0) * 2 * gguf._MAX_ARRAYS)
        ),
    ),
    "GGUF of tensors": Crafted(kind="gguf", make=gguf_tensors),
    "GGUF of keys": Crafted(kind="gguf", make=gguf_keys),
    "SentencePiece of pieces": sentencepiece(pieces),
    "SentencePiece of wide pieces": sentencepiece(wide_pieces),
    "SentencePiece of odd pieces": sentencepiece(lambda: pieces(odd=sentencepiece_model._MAX_OTHER_FIELDS // 2)),
    "tokenizer of two letters": tokenizer_of(of_two_letters),
    "tokenizer of one beginning": tokenizer_of(of_one_beginning),
    "tokenizer of too many pairs": tokenizer_of(lambda: of_many_pairs(2 * sentencepiece_tokenizer._MAX_MERGES)),
    "tokenizer of many pairs": tokenizer_of(lambda: of_many_pairs(sentencepiece_tokenizer._MAX_MERGES)),
    "Marian vocabulary": Crafted(kind="marian-vocabulary", make=vocabulary),
    "vocabulary and merges": Crafted(
        kind="byte-level",
        make=byte_level_merges,
        file="merges.txt",
        read=read_text_files,
        beside={"vocab.json": byte_level_vocabulary, "config.json": lambda: b'{"model_type":"qwen2"}'},
    ),
    "template of operators": Crafted(
        kind="template", make=lambda: b"{{x~x~x~x}}" * (template_sandbox.MAX_NODES // 6 - 1)
    ),
    "template of conditions": Crafted(
        kind="template", make=lambda: b"{{x if x}}" * (template_sandbox.MAX_NODES // 4 - 1)
    ),
    "template of comparisons": Crafted(
        kind="template", make=lambda: b"{{x in x}}" * (template_sandbox.MAX_NODES // 6 - 1)
    ),
    "template of outputs": Crafted(kind="template", make=lambda: b"{{-x}}" * (template_environment.MAX_TOKENS // 3)),
    "request of lists": Crafted(kind="http-body", make=lambda: request(lists(1 << 20, request_body._MAX_VALUES - 4))),
    "request of objects": Crafted(kind="http-body", make=lambda: request(objects((1 << 20) // 7))),
    "request of numbers": Crafted(
        kind="http-body", make=lambda: request(b"[" + b"1," * (request_body._MAX_VALUES - 8) + b"1]")
    ),
    "request of texts": Crafted(kind="http-body", make=lambda: request(b"[" + b'"",' * (333 * 1024) + b"1]")),
}


def main() -> None:
    if unknown := set(sys.argv[1:]) - CRAFTED.keys():
        sys.exit(f"There is no file {', '.join(sorted(unknown))}: the files are {', '.join(CRAFTED)}.")
    for name in sys.argv[1:] or CRAFTED:
        with tempfile.TemporaryDirectory() as folder:
            in_a_fork(lambda name=name, folder=Path(folder): measure(name, CRAFTED[name], folder))


def measure(name: str, crafted: Crafted, folder: Path) -> None:
    """Print what one file costs."""
    os.environ["EDGELM_HOME"] = str(folder)
    target = TARGETS[crafted.kind]
    seed = target.prepare(folder)[0]
    path, read = folder / (crafted.file or target.file), crafted.read or target.read
    (folder / target.file).write_bytes(seed)
    if not path.exists():
        path.write_bytes(seed)
    outcome(read, folder)
    in_a_fork(
        lambda: write(folder, {path.name: crafted.make, **crafted.beside})
    )  # what making it takes is not to count
    before, start = largest_kilobytes(), time.process_time()
    ended = outcome(read, folder)
    seconds, grown = time.process_time() - start, largest_kilobytes() - before
    size = path.stat().st_size
    print(f"{name}: {size / 1e6:.1f} MB, {seconds:.2f} s, {grown / 1024:.0f} MB more; {ended[:90]}", flush=True)


def write(folder: Path, files: Mapping[str, Callable[[], bytes]]) -> None:
    for name, make in files.items():
        (folder / name).write_bytes(make())


def in_a_fork(work: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("a reader failed")


def largest_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def outcome(read: Callable[[Path], object], folder: Path) -> str:
    try:
        read(folder)
    except (EdgeLMError, ValueError) as error:  # ValueError: of an index, whose reader's callers name the file
        return str(error).replace(f"{folder}/", "")
    return "read"


if __name__ == "__main__":
    main()
