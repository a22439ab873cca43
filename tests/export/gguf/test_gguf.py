from __future__ import annotations

import struct
import tracemalloc
from array import array
from collections.abc import Sequence
from os import SEEK_CUR
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import gguf
import numpy as np
import pytest

from edgelm import CheckpointError
from edgelm_export.gguf.file import GGUFFile, GGUFStrings

UINT8, UINT32, BOOL, STRING, ARRAY = 0, 4, 7, 8, 9
F32, Q4_0, Q8_K, Q2_0 = 0, 2, 15, 42


def string(text: str | bytes) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content


def key(name: str | bytes, type_id: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", type_id) + value


def array_of(element_type: int, length: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", element_type, length) + content


def tensor(name: str, sizes: Sequence[int], type_id: int = F32, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type_id, offset)


def header(keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), version: int = 3) -> bytes:
    counts = struct.pack("<QQ", len(tensors), len(keys))
    return b"GGUF" + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)


def whole(keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), version: int = 3) -> bytes:
    start = header(keys, tensors, version)
    return start + bytes(-len(start) % 32 + 256)


def write_valid(path: Path, alignment: int | None = None) -> Path:
    """Write one key of each kind and one tensor of several types."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("an.uint8", 255)
    writer.add_int8("an.int8", -128)
    writer.add_uint16("an.uint16", 65535)
    writer.add_int16("an.int16", -32768)
    writer.add_uint32("an.uint32", 2**32 - 1)
    writer.add_int32("an.int32", -(2**31))
    writer.add_uint64("an.uint64", 2**64 - 1)
    writer.add_int64("an.int64", -(2**63))
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 1e-300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Größe 🌊")
    writer.add_array("an.array.of.strings", ["", "a", "Ġthe", "🌊"])
    writer.add_array("an.array.of.numbers", [1, -2, 3])
    writer.add_array("an.array.of.floats", [0.5, -1.25])
    writer.add_array("an.array.of.bools", [True, False])
    random = np.random.default_rng(0)
    writer.add_tensor("a.matrix", random.standard_normal((3, 5)).astype(np.float32))
    writer.add_tensor("a.vector", random.standard_normal(7).astype(np.float16))
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.BF16):
        weights = random.standard_normal((2, 4, 64)).astype(np.float32)
        writer.add_tensor(f"a.{kind.name}", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain(value: Any) -> Any:
    """Return a metadata value with its arrays and strings as lists."""
    if isinstance(value, list):
        return [plain(element) for element in value]
    return list(value) if isinstance(value, (GGUFStrings, array)) else value


def assert_same_as_the_gguf_package(file: GGUFFile) -> None:
    memmap = np.memmap
    # Each of 50,000 strings is several views, and those of a memmap take three times as long as those of an array.
    with patch.object(np, "memmap", lambda path, **options: np.asarray(memmap(path, **options))):
        oracle = gguf.GGUFReader(file.path)
    fields = {name: field.contents() for name, field in oracle.fields.items() if not name.startswith("GGUF.")}
    assert {name: plain(value) for name, value in file.metadata.items()} == fields
    assert list(file.tensors) == [expected.name for expected in oracle.tensors]
    for expected in oracle.tensors:
        found = file.tensors[expected.name]
        assert (found.offset, found.nbytes) == (expected.data_offset, expected.n_bytes)
        assert (found.type, found.shape) == (expected.tensor_type.name, tuple(reversed(expected.shape.tolist())))
        assert file.data(expected.name).tobytes() == expected.data.tobytes()


@pytest.mark.parametrize("alignment", [None, 256])
def test_a_file_reads_as_the_gguf_package_reads_it(tmp_path: Path, alignment: int | None) -> None:
    with GGUFFile.open(write_valid(tmp_path / "model.gguf", alignment)) as file:
        assert file.metadata["a.string"] == "Größe 🌊"
        assert list(file.metadata["an.array.of.strings"]) == ["", "a", "Ġthe", "🌊"]
        assert file.metadata["an.array.of.bools"] == [True, False]
        assert_same_as_the_gguf_package(file)


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    path = write_valid(tmp_path / "model.gguf")
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    with GGUFFile.open(path) as file:
        assert_same_as_the_gguf_package(file)


def test_arrays_of_arrays_become_lists_of_lists(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    rows = array_of(UINT8, 2, b"\1\2") + array_of(STRING, 1, string("x"))
    path.write_bytes(header([key("nested", ARRAY, array_of(ARRAY, 2, rows))]))
    assert plain(GGUFFile.open(path).metadata["nested"]) == [[1, 2], ["x"]]


def test_a_string_of_an_array_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(whole([key("a", ARRAY, array_of(STRING, 2, string("ok") + string(b"\xc3(")))]))
    strings = GGUFFile.open(path).metadata["a"]
    assert (len(strings), repr(strings), next(iter(strings))) == (2, "2 strings", "ok")

    with pytest.raises(CheckpointError, match=r"model\.gguf: a: element 1 is not UTF-8: invalid continuation byte"):
        list(strings)


def test_tensor_data_is_a_read_only_view_that_outlives_the_file_object(tmp_path: Path) -> None:
    with GGUFFile.open(write_valid(tmp_path / "model.gguf")) as file:
        view = file.data("a.matrix")
        assert np.shares_memory(view, file.data("a.matrix"))
        assert not view.flags.writeable
    expected = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(view.view(np.float32).reshape(3, 5), expected)


def test_a_tensor_that_is_not_there_and_a_closed_file_are_errors(tmp_path: Path) -> None:
    file = GGUFFile.open(write_valid(tmp_path / "model.gguf"))
    with pytest.raises(CheckpointError, match=r"model\.gguf has no tensor 'a\.tensor'"):
        file.data("a.tensor")
    file.close()
    with pytest.raises(CheckpointError, match=r"model\.gguf is closed"):
        file.data("a.matrix")


def test_a_missing_file_a_folder_and_an_empty_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    for path, message in (
        (tmp_path / "missing.gguf", "Cannot read .*missing.gguf"),
        (tmp_path, "Cannot read"),
        (tmp_path / "empty.gguf", r"empty\.gguf: magic is b'', not b'GGUF'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            GGUFFile.open(path)


NESTED = b"".join(array_of(ARRAY, 1) for _ in range(4)) + array_of(UINT8, 1, b"\0")
HOSTILE = {
    "another magic": (b"GGML" + whole()[4:], "magic is b'GGML', not b'GGUF'"),
    "version 1": (whole(version=1), "version is 1; versions 2 and 3 are supported"),
    "version 4": (whole(version=4), "version is 4; versions 2 and 3 are supported"),
    "big-endian": (whole(version=3 << 24), "version is 0x3000000: big-endian files are not supported"),
    "cut in the counts": (whole()[:20], "metadata count needs 8 bytes; 4 remain"),
    "more tensors than bytes": (header(tensors=[b""] * 3), "tensor count is 3, but 8 bytes remain"),
    "more keys than bytes": (header(keys=[b""] * 3), "metadata count is 3, but 0 bytes remain"),
    "a key twice": (whole([key("a", UINT8, b"\1")] * 2), "key 'a' appears twice"),
    "a key that is too long": (whole([key("a" * 65536, UINT8, b"\1")]), "key 0 has 65536 bytes; at most 65535"),
    "a key that is not UTF-8": (whole([key(b"\xff", UINT8, b"\1")]), "key 0 is not UTF-8: invalid start byte"),
    "a key that wraps around": (header([struct.pack("<Q", 2**64 - 1) + bytes(9)]), "at most 65535 are allowed"),
    "a string past the end": (header([key("a", STRING, struct.pack("<Q", 9))]), "value of 'a' needs 9 bytes; 0 remain"),
    "an unknown value type": (whole([key("a", 13, bytes(8))]), "key 'a' has the unknown value type 13"),
    "an unknown element type": (
        whole([key("a", ARRAY, array_of(13, 1, bytes(8)))]),
        "key 'a' has elements of the unknown value type 13",
    ),
    "a long array": (header([key("a", ARRAY, array_of(UINT32, 2, bytes(7)))]), "array length of 'a' is 2, but 7 bytes"),
    "a huge array": (header([key("a", ARRAY, array_of(UINT8, 2**40))]), "array length of 'a' is 1099511627776"),
    "a huge array of arrays": (
        whole([key("a", ARRAY, array_of(ARRAY, 2**63))]),
        "array length of 'a' is 9223372036854775808",
    ),
    "more numbers than any model has": (
        header([key("a", ARRAY, array_of(UINT8, 600_001, bytes(600_001)))]),
        "array length of 'a' is 600001; all arrays may have 600000 numbers together",
    ),
    "more strings than any model has": (
        header([key("a", ARRAY, array_of(STRING, 786_433, bytes(8 * 786_433)))]),
        "array length of 'a' is 786433; all arrays may have 786432 strings together",
    ),
    "a text that is longer than any model's": (
        header([key("a", STRING, string("a" * ((1 << 20) + 1)))]),
        "value of 'a' has 1048577 bytes; at most 1048576 are allowed",
    ),
    "more arrays than any model has": (
        header([key("a", ARRAY, array_of(ARRAY, 4096, array_of(UINT8, 0) * 4096))]),
        "key 'a' has more arrays than 4096, which all keys may have together",
    ),
    "more tensors than any model has": (header(tensors=[bytes(32)] * 4097), "tensor count is 4097; at most 4096"),
    "more keys than any model has": (header(keys=[bytes(13)] * 4097), "metadata count is 4097; at most 4096"),
    "a long string in an array": (
        header([key("a", ARRAY, array_of(STRING, 2, string("ok") + struct.pack("<Q", 2**63)))]),
        r"value of 'a' has a string of 9223372036854775808 bytes \(element 1\); in an array each may have 65535",
    ),
    "a string in an array past the end": (
        header([key("a", ARRAY, array_of(STRING, 2, string("ok") + struct.pack("<Q", 65535)))]),
        "value of 'a' goes past the end of the header",
    ),
    "an array cut behind a string": (
        header([key("a", ARRAY, array_of(STRING, 2, string("as long.")))]),
        "value of 'a' goes past the end of the header",
    ),
    "an array cut in a length": (
        header([key("a", ARRAY, array_of(STRING, 2, string("long enough") + bytes(3)))]),
        "value of 'a' goes past the end of the header",
    ),
    "arrays nested too deep": (whole([key("a", ARRAY, NESTED)]), "key 'a' nests arrays more than 4 deep"),
    "no boolean": (whole([key("a", BOOL, b"\2")]), "value of 'a' is 2, which is no boolean"),
    "no alignment": (
        whole([key("general.alignment", UINT32, bytes(4))]),
        "general.alignment is 0; it must be a power of two",
    ),
    "a boolean alignment": (
        whole([key("general.alignment", BOOL, b"\1")]),
        "general.alignment is True; it must be a power of two",
    ),
    "an odd alignment": (
        whole([key("general.alignment", UINT32, struct.pack("<I", 48))]),
        "general.alignment is 48; it must be a power of two",
    ),
    "an alignment in words": (
        whole([key("general.alignment", STRING, string("32"))]),
        "general.alignment is '32'; it must be a power of two",
    ),
    "an alignment of many words": (
        whole([key("general.alignment", STRING, string("32" * 1000))]),
        f"general.alignment is '{'32' * 39}3; it must be a power of two",
    ),
    "a tensor twice": (whole(tensors=[tensor("t", [8])] * 2), "tensor 't' appears twice"),
    "a long tensor name": (whole(tensors=[tensor("t" * 65, [8])]), "name of tensor 0 has 65 bytes; at most 64"),
    "no dimensions": (whole(tensors=[tensor("t", [])]), "tensor 't' has 0 dimensions; 1 to 4 are supported"),
    "five dimensions": (whole(tensors=[tensor("t", [1] * 5)]), "tensor 't' has 5 dimensions; 1 to 4 are supported"),
    "an empty dimension": (whole(tensors=[tensor("t", [8, 0])]), r"tensor 't' has the impossible dimensions \[8, 0\]"),
    "dimensions that overflow": (
        whole(tensors=[tensor("t", [2**32, 2**32])]),
        r"tensor 't' has the impossible dimensions \[4294967296, 4294967296\]",
    ),
    "an unsupported type": (
        whole(tensors=[tensor("t", [256], Q8_K)]),
        r"tensor 't' has type 15 \(Q8_K\), which is not supported; supported: F32, F16, Q4_0, .*BF16",
    ),
    "a type that was dropped": (whole(tensors=[tensor("t", [32], 31)]), r"tensor 't' has type 31 \(Q4_0_4_4\)"),
    "an unknown type": (whole(tensors=[tensor("t", [8], 95)]), r"tensor 't' has type 95 \(unknown\)"),
    "a type of a fork": (
        whole(tensors=[tensor("t", [256], 139)]),
        r"tensor 't' has type 139 \(unknown, or one of ik_llama\.cpp's own\), which is not supported",
    ),
    "rows that are no whole blocks": (
        whole(tensors=[tensor("t", [48, 2], Q4_0)]),
        "tensor 't' has rows of 48 weights, not a multiple of Q4_0's 32",
    ),
    "an unaligned offset": (
        whole(tensors=[tensor("t", [8], offset=4)]),
        "tensor 't' has offset 4, which is not aligned",
    ),
    "an offset past the end": (
        whole(tensors=[tensor("t", [8], offset=256)]),
        r"tensor 't' of shape \(8,\) at offset 320 needs 32 bytes, and the file ends at 320\. It was cut off",
    ),
    "an offset that wraps around": (whole(tensors=[tensor("t", [8], offset=2**64 - 32)]), "tensor 't' of shape"),
    "more weights than bytes": (whole(tensors=[tensor("t", [2**61])]), "tensor 't' of shape .* needs 92233720368547"),
    "tensors that overlap": (
        whole(tensors=[tensor("t", [8], offset=32), tensor("u", [16])]),
        "tensor 't' at offset 128 overlaps 'u' at 96",
    ),
    "tensors in the blocks of a fork": (
        whole(tensors=[tensor("t", [4096], Q2_0), tensor("u", [8], offset=4096 // 128 * 34)]) + bytes(1024),
        "tensor 'u' at offset 1184 overlaps 't' at 96. Or PrismML's fork of llama.cpp wrote it",
    ),
    "a last tensor in the blocks of a fork": (
        whole(tensors=[tensor("t", [1024], Q2_0)]),
        "It was cut off or damaged: download it again. Or PrismML's fork",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_header_is_an_error_that_names_file_field_and_value(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"model\.gguf: .*{message}"):
            GGUFFile.open(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20, "a refused file must not have cost memory first"


def test_what_all_arrays_have_together_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    numbers = [key(name, ARRAY, array_of(UINT8, 300_001, bytes(300_001))) for name in "ab"]
    path.write_bytes(header(numbers))
    with pytest.raises(CheckpointError, match="length of 'b' is 300001; all arrays may have 600000 numbers together"):
        GGUFFile.open(path)

    texts = [key(name, ARRAY, array_of(STRING, 81, string("a" * 65535) * 80 + string("a" * 80))) for name in "ab"]
    path.write_bytes(header([*texts, key("c", ARRAY, array_of(STRING, 2, string("") + string("a")))]))
    with pytest.raises(CheckpointError, match="value of 'c' goes past the 10485760 bytes that all strings may have"):
        GGUFFile.open(path)


def test_a_header_larger_than_any_model_has_is_refused_though_each_of_its_texts_is_not(tmp_path: Path) -> None:
    path, longest = tmp_path / "model.gguf", 1 << 20
    with path.open("wb") as file:
        file.write(header(keys=[b""] * 33)[:24])
        for number in range(33):
            file.write(key(f"a{number}", STRING, struct.pack("<Q", longest)))
            file.seek(longest, SEEK_CUR)  # zeros
        file.truncate()
    with pytest.raises(
        CheckpointError, match=r"value of 'a31' needs 1048576 bytes; 10478[0-9][0-9] remain for the head"
    ):
        GGUFFile.open(path)


def test_hundreds_of_damaged_files_open_or_are_a_checkpoint_error(tmp_path: Path) -> None:
    original = write_valid(tmp_path / "model.gguf").read_bytes()
    header_end = GGUFFile.open(tmp_path / "model.gguf").tensors["a.matrix"].offset
    random = Random(0)
    path = tmp_path / "damaged.gguf"
    opened, refused = 0, 0
    tracemalloc.start()
    # One handle for all: opening a file to overwrite it took three quarters of the time.
    with path.open("wb", buffering=0) as output:
        for _ in range(350):
            damaged = bytearray(original)
            for _ in range(random.randint(1, 3)):
                # The extremes of a byte make huge counts and lengths, the other values the rest.
                damaged[random.randrange(header_end)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
            if random.random() < 0.1:
                del damaged[random.randrange(len(damaged)) :]
            output.seek(0)
            output.write(damaged)
            output.truncate()
            try:
                with GGUFFile.open(path) as file:
                    opened += all(file.data(name).size == found.nbytes for name, found in file.tensors.items())
            except CheckpointError:
                refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened + refused == 350
    assert min(opened, refused) > 50
    assert peak < 2 << 20


@pytest.mark.real_model
def test_the_real_file_reads_as_the_gguf_package_reads_it(smollm2_gguf: Path) -> None:
    with GGUFFile.open(smollm2_gguf) as file:
        assert_same_as_the_gguf_package(file)
