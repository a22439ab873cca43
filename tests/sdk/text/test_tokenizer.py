import _thread
import functools
import json
import operator
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from edgelm.errors import ConfigError, TokenizerError
from edgelm.text.token_bytes import TokenBytes
from edgelm.text.tokenizer import Tokenizer

SAMPLES = (
    "The sea is blue.",
    "  odd   spaces\t\n\n and\r\nlines \u00a0 here    ",
    "def f(x):\n    return x['a'] + 12345  # 😀 👨‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "漢字かな交じり文, हिन्दी, עברית, e\u0301, \x00\x7f\ufffd",
    "<b>bold</b> <table> < think> <|im|> <0x41>",
    "",
)
CONTROL_SAMPLES = (
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "a<think>b</think> c <|endoftext|><|endoftext|>  <|im_start|>",
    "<|im_<|im_start|>start|> <<think>>",
)


@pytest.fixture
def tokenizer(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.load(byte_level_folder)


@pytest.fixture
def original(byte_level_folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))


@pytest.mark.parametrize("text", SAMPLES)
def test_ordinary_text_gets_the_ids_of_the_original(
    tokenizer: Tokenizer, original: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert ids == tokenizer.encode(text, control_tokens=True)
    assert tokenizer.decode(ids) == original.decode(ids) == text


def test_others_run_while_a_long_text_is_encoded_which_has_the_ids_of_the_original(
    tokenizer: Tokenizer, original: tokenizers.Tokenizer
) -> None:
    text = "The sea, 1984:  wide and blue. 漢字\n" * 1500
    begins, has_run = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: begins.wait() and has_run.set())
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # seconds: who holds Python's lock keeps it unless it is given away
    try:
        begins.set()
        for _ in range(100):  # of a busy machine's cores one may be free for the other only by and by
            ids = tokenizer.encode(text)
            if has_run.is_set():
                break
        assert has_run.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()
    assert ids == original.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", CONTROL_SAMPLES)
def test_control_tokens_get_the_ids_of_the_original_where_they_are_asked_for(
    tokenizer: Tokenizer, original: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, control_tokens=True)
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_control_tokens=False) == text


@pytest.mark.parametrize("text", CONTROL_SAMPLES)
def test_control_tokens_in_ordinary_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not tokenizer.control_token_ids & set(ids)
    assert tokenizer.decode(ids) == text


def test_control_tokens_are_the_special_ones_and_those_that_look_like_markup(tokenizer: Tokenizer) -> None:
    assert "<think>" in tokenizer.control_tokens
    assert "<|im_start|>" in tokenizer.control_tokens
    assert "<table>" not in tokenizer.control_tokens
    assert "    " not in tokenizer.control_tokens
    assert tokenizer.control_token_ids == set(tokenizer.control_tokens.values())


def test_decode_leaves_control_tokens_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<think>sea</think><|im_end|>", control_tokens=True)
    assert tokenizer.decode(ids) == "sea"


def test_tokens_have_the_ids_and_the_number_of_the_original(
    tokenizer: Tokenizer, original: tokenizers.Tokenizer
) -> None:
    vocab = original.get_vocab()
    assert tokenizer.vocab_size == len(vocab)
    assert {name: tokenizer.id_of(name) for name in vocab} == vocab
    assert tokenizer.id_of("no such token") is None


def test_a_vocabulary_with_gaps_has_as_many_ids_as_its_largest_says(byte_level_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    spec = json.loads((byte_level_folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = Tokenizer.load(byte_level_folder).vocab_size
    for id_ in (70_000, (1 << 24) - 1):
        spec["model"]["vocab"]["far"] = id_
        path.write_text(json.dumps(spec), encoding="utf-8")
        gappy = Tokenizer.load(tmp_path)
        assert gappy.vocab_size == id_ + 1
        assert (gappy.token_bytes(id_), gappy.token_bytes(known + 1)) == (b"far", b"")
    spec["model"]["vocab"]["far"] = 1 << 24
    path.write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(TokenizerError, match="has a token with id 16777216; at most 16777215 can be"):
        Tokenizer.load(tmp_path)


def test_token_bytes_of_a_byte_level_vocabulary_are_exact(tokenizer: Tokenizer) -> None:
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert b"".join(tokenizer.token_bytes(id_) for id_ in ids) == text.encode()
    first_of_emoji = tokenizer.encode("😂")[0]
    assert tokenizer.token_bytes(first_of_emoji)[:1] == b"\xf0"
    assert tokenizer.token_text(tokenizer.encode("\x85")[0]) == "\ufffd"


def test_every_byte_has_its_token(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.id_of(name) for name in pre_tokenizers.ByteLevel.alphabet()]
    assert {tokenizer.token_bytes(id_) for id_ in ids if id_ is not None} == {bytes([byte]) for byte in range(256)}


def test_an_id_above_the_vocabulary_has_no_text_and_one_below_zero_is_an_error(tokenizer: Tokenizer) -> None:
    for id_ in (tokenizer.vocab_size + 7, 2**32 - 1, 2**32, 2**70):
        assert tokenizer.token_bytes(id_) == b""
    with pytest.raises(TokenizerError, match="no token -1"):
        tokenizer.token_bytes(-1)


@pytest.mark.parametrize("text", ["hi sea", " hi", "sea hi ", "aé漢😀", "hi<s>hi</s> sea", "<s", "<unk>"])
def test_a_metaspace_vocabulary_encodes_and_decodes_as_the_original(metaspace_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(metaspace_folder)
    original = tokenizers.Tokenizer.from_file(str(metaspace_folder / "tokenizer.json"))
    ids = original.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text, control_tokens=True) == ids
    assert tokenizer.decode(ids) == original.decode(ids)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_token_bytes_of_a_metaspace_vocabulary_are_exact(metaspace_folder: Path) -> None:
    tokenizer = Tokenizer.load(metaspace_folder)
    for name, data in (("▁hi", b" hi"), ("<0x0A>", b"\n"), ("<0xF0>", b"\xf0"), ("<s>", b"<s>")):
        id_ = tokenizer.id_of(name)
        assert id_ is not None
        assert tokenizer.token_bytes(id_) == data


def test_merges_that_spell_a_control_token_do_not_make_one(metaspace_folder: Path) -> None:
    unguarded = json.loads((metaspace_folder / "tokenizer.json").read_text())
    unguarded["added_tokens"] = []
    tokenizer = Tokenizer.load(metaspace_folder)
    control_id = tokenizer.id_of("<s>")
    assert control_id in tokenizers.Tokenizer.from_str(json.dumps(unguarded)).encode("hi<s>").ids
    assert control_id not in tokenizer.encode("hi<s>")


def save(folder: Path, rust: tokenizers.Tokenizer) -> Path:
    rust.decoder = decoders.Metaspace()
    rust.save(str(folder / "tokenizer.json"))
    return folder


def test_a_vocabulary_read_before_its_merges_does_not_make_a_control_token(tmp_path: Path) -> None:
    vocab = {name: i for i, name in enumerate(["<", "e", ">", "<e", "<e>"])}
    rust = tokenizers.Tokenizer(models.BPE(vocab, [("<", "e"), ("<e", ">")], ignore_merges=True))
    rust.add_special_tokens(["<e>"])
    assert Tokenizer.load(save(tmp_path, rust)).encode("<e>") == [vocab["<e"], vocab[">"]]


def test_a_unigram_vocabulary_does_not_make_a_control_token(tmp_path: Path) -> None:
    names = ["<unk>", "<s>", "<", "s", ">", "▁"]
    rust = tokenizers.Tokenizer(models.Unigram([(name, -float(i)) for i, name in enumerate(names)], unk_id=0))
    assert rust.encode("<s>").tokens == ["<s>"]
    rust.add_special_tokens(["<unk>", "<s>"])
    tokenizer = Tokenizer.load(save(tmp_path, rust))
    assert tokenizer.encode("<s>") == [2, 3, 4]
    assert tokenizer.encode("<s>", control_tokens=True) == [1]
    assert tokenizer.encode("é") == [0]  # an unknown character is the unknown token, by nobody's spelling


def test_added_tokens_that_are_text_keep_their_ids_beside_hidden_ones(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    rust.add_special_tokens(["<x>"])
    rust.add_tokens(["  "])
    tokenizer = Tokenizer.load(save(tmp_path, rust))
    assert tokenizer.encode("a  b") == [0, 3, 1]
    assert tokenizer.encode_parts(["a", 2, "b"]) == [0, 2, 1]


def test_a_page_of_html_is_text_where_its_tags_are_added_tokens(tmp_path: Path) -> None:
    page = "<html><body>a<iframe></iframe><footer>a</footer></body></html>"
    rust = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    rust.add_tokens([f"<{end}{name}>" for name in ("html", "body", "iframe", "footer") for end in ("", "/")])
    tokenizer = Tokenizer.load(save(tmp_path, rust))
    assert tokenizer.control_tokens == {}
    assert tokenizer.encode(page) == rust.encode(page).ids
    assert tokenizer.decode(tokenizer.encode(page)) == page


def test_runs_of_spaces_among_the_added_tokens_are_spaces(tmp_path: Path) -> None:
    vocab = {name: i for i, name in enumerate(["a", "▁", "▁▁", "<▁>"])}
    rust = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "▁")]))
    rust.add_special_tokens(["<▁>"])
    rust.add_tokens(["▁▁"])
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Replace("▁", " ")
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("a   a")
    assert ids == rust.encode("a   a").ids == [0, 2, 1, 0]
    assert tokenizer.decode(ids) == rust.decode(ids) == "a   a"
    assert tokenizer.token_text(3) == "<▁>"  # a control token's literal stays as it is


def test_a_padding_or_truncation_in_the_file_is_not_applied(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    rust.enable_truncation(3)
    rust.enable_padding(length=16)
    assert Tokenizer.load(save(tmp_path, rust)).encode("abababab") == [0, 1] * 4


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", "[" * 100_000, '{"added_tokens": [], "model": {"type": "BPE"}}', "\xff"],
)
def test_a_broken_file_is_a_tokenizer_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_a_tokenizer_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"There is no tokenizer\.json in .*\. Name a folder that has one"):
        Tokenizer.load(tmp_path)


def test_a_panic_of_the_library_is_a_tokenizer_error(byte_level_folder: Path, tmp_path: Path) -> None:
    spec = json.loads((byte_level_folder / "tokenizer.json").read_text())
    # The prefix is longer than the second half of a merge, so the library slices past its end.
    spec["model"]["continuing_subword_prefix"] = "#" * 50
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match="the tokenizers library gave up"):
        Tokenizer.load(tmp_path)


def test_texts_are_encoded_where_the_library_can_start_no_threads(byte_level_folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgelm.text.tokenizer import Tokenizer\n"
        "tokenizer = Tokenizer.load(Path(sys.argv[1]))\n"
        "print([len(tokenizer.encode('a' * 20_000)), tokenizer.encode_batch(['The sea', 'is']) == "
        "[tokenizer.encode('The sea'), tokenizer.encode('is')]])"
    )
    command = [sys.executable, "-c", program, str(byte_level_folder)]
    ended = subprocess.run(command, env=os.environ | {"RUST_MIN_STACK": str(1 << 46)}, capture_output=True, text=True)
    assert "ThreadPoolBuildError" in ended.stderr  # its threads get stacks that no system has
    expected = len(Tokenizer.load(byte_level_folder).encode("a" * 20_000))
    assert ended.stdout == f"[{expected}, True]\n"


def test_an_interrupt_passes_through(byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "loads", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.load(byte_level_folder)


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_while_the_library_reads_the_merges_passes_through(
    end: BaseException, byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(merges: list[Any]) -> Any:
        raise end

    monkeypatch.setattr("edgelm.text.tokenizer._Merges.pop", interrupt)
    with pytest.raises(type(end)) as raised:
        Tokenizer.load(byte_level_folder)
    assert raised.value is end


def test_an_interrupt_while_the_library_reads_the_vocabulary_passes_through(
    byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        """The number 1, in C alone: the interrupt is raised where Python code runs next."""

        __index__ = functools.partial(operator.countOf, map(_thread.interrupt_main, [signal.SIGINT]), None)

    real = tokenizers.models.BPE

    def build(vocabulary: dict[str, Any], *rest: Any, **options: Any) -> Any:
        return real(vocabulary | {"interrupt": Interrupting()}, *rest, **options)

    monkeypatch.setattr(tokenizers.models, "BPE", build)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.load(byte_level_folder)


def test_an_unknown_decoder_is_an_error_that_names_it(byte_level_folder: Path, tmp_path: Path) -> None:
    spec = json.loads((byte_level_folder / "tokenizer.json").read_text())
    for decoder, name in (({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"), (None, "none")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec | {"decoder": decoder}))
        with pytest.raises(TokenizerError, match=name):
            Tokenizer.load(tmp_path)


def test_an_unknown_step_of_a_decoder_is_an_error_that_shows_it(metaspace_folder: Path, tmp_path: Path) -> None:
    spec = json.loads((metaspace_folder / "tokenizer.json").read_text())
    spec["decoder"]["decoders"][0]["pattern"] = {"Regex": "x+"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match=r"has the step .*'Regex': 'x\+'"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", [None, 5, b"sea", ["sea"]])
def test_what_is_no_text_is_not_encoded(tokenizer: Tokenizer, text: Any) -> None:
    with pytest.raises(TokenizerError, match=r"encode takes one text; this is .*\. encode_batch takes several\."):
        tokenizer.encode(text)


def test_what_is_no_list_of_texts_is_not_encoded(tokenizer: Tokenizer) -> None:
    for texts in ("The sea", b"The sea", None):
        with pytest.raises(ConfigError, match="encode_batch takes a list of texts"):
            tokenizer.encode_batch(texts)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match=r"encode_batch takes texts; the one at 1 is b'b'\."):
        tokenizer.encode_batch(["a", b"b"])  # type: ignore[list-item]
    assert tokenizer.encode_batch(text for text in ("a", "b")) == [tokenizer.encode("a"), tokenizer.encode("b")]  # type: ignore[arg-type]


def test_what_is_no_list_of_token_ids_is_not_decoded(tokenizer: Tokenizer) -> None:
    for ids in ("sea", b"sea", bytearray(b"sea"), None, 5):
        with pytest.raises(TokenizerError, match=r"decode takes a list of token ids; this is ('sea'|b|None|5)"):
            tokenizer.decode(ids)  # type: ignore[arg-type]
    for ids in ([1.5], ["sea"]):
        with pytest.raises(TokenizerError, match=r"is neither a text nor a list of token ids\."):
            tokenizer.decode(ids)  # type: ignore[arg-type]


def test_half_of_a_surrogate_pair_is_a_tokenizer_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"Cannot encode the text 'sea .ud83d': half of a surrogate pair"):
        tokenizer.encode("sea \ud83d")


def test_an_error_of_encoding_never_names_the_secret_of_a_control_token(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = min(tokenizer.control_token_ids)
    with pytest.raises(TokenizerError) as caught:
        tokenizer.encode_parts([control, "\ud800", control])
    assert "ue000" not in str(caught.value)

    class PanicException(BaseException):
        pass

    for kind, reason in ((ValueError, "ValueError"), (PanicException, "the tokenizers library gave up")):

        class Echo:
            def encode(self, text: str, *, add_special_tokens: bool) -> None:
                raise kind(text)  # noqa: B023

        monkeypatch.setattr(tokenizer, "_rust", Echo())
        with pytest.raises(TokenizerError) as caught:
            tokenizer.encode_parts(["a", control, "b"])
        assert str(caught.value) == f"Cannot encode the text 'ab': {reason}."


def test_import_edgelm_does_not_import_the_tokenizers_library() -> None:
    code = "import edgelm, sys; sys.exit(int('tokenizers' in sys.modules or 'jinja2' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("single", "leading"), [("<|im_start|> $A", True), ("$A <|im_end|>", False), ("<|im_start|> $A <|im_end|>", True)]
)
def test_a_prompt_begins_with_what_the_author_puts_before_every_text(
    byte_level_folder: Path, tmp_path: Path, single: str, leading: bool
) -> None:
    original = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    specials = [(name, original.token_to_id(name)) for name in ("<|im_start|>", "<|im_end|>")]
    original.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    original.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    start = [specials[0][1]] if leading else []
    assert tokenizer.encode_prompt("The sea") == [*start, *tokenizer.encode("The sea")]
    assert tokenizer.encode_prompt("") == start
    end = [specials[1][1]] if single.endswith("<|im_end|>") else []
    assert tokenizer.as_source(tokenizer.encode("The sea")) == [*start, *tokenizer.encode("The sea"), *end]
    # The text itself still cannot spell a control token.
    assert specials[0][1] not in tokenizer.encode_prompt("<|im_start|>")[len(start) :]


def test_a_tokenizer_without_leading_tokens_adds_none(tokenizer: Tokenizer) -> None:
    assert tokenizer.leading_ids == ()
    assert tokenizer.encode_prompt("The sea") == tokenizer.encode("The sea")


@pytest.mark.parametrize(
    ("step", "strips"),
    [
        ({"type": "Metaspace", "replacement": "▁"}, True),
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}, False),  # as older files say it
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "prepend_scheme": "never"}, False),
        ({"type": "Strip", "content": " ", "start": 1, "stop": 0}, True),
        ({"type": "Strip", "content": " ", "start": 0, "stop": 0}, False),
    ],
)
def test_a_decoder_says_whether_a_leading_space_is_dropped(step: dict[str, Any], strips: bool) -> None:
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    assert TokenBytes({"type": "Sequence", "decoders": [replace, step]}).strips_leading_space == strips


def test_a_decoder_that_strips_at_the_end_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"has the step .*'stop': 1"):
        TokenBytes({"type": "Strip", "content": " ", "start": 0, "stop": 1})


def test_a_name_is_bytes_only_where_the_decoder_says_so() -> None:
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    assert TokenBytes(replace).of("<0x41>") == b"<0x41>"
    assert TokenBytes({"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}]}).of("<0x41>") == b"A"
    assert TokenBytes({"type": "ByteLevel"}).of("Ġ漢") == "Ġ漢".encode()  # an added token's letter is no byte's


def test_a_control_token_that_is_a_word_of_its_own_stands_between_letters_too(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    rust.add_special_tokens([tokenizers.AddedToken("<x>", single_word=True)])
    assert Tokenizer.load(save(tmp_path, rust)).encode_parts(["a", 2, "b"]) == [0, 2, 1]


def test_the_unknown_token_and_merges_of_a_hidden_one_stay_in_order(tmp_path: Path) -> None:
    vocab = {name: i for i, name in enumerate(["<unk>", "<", "s", ">", "a", "<s", "<s>", "<s>a"])}
    merges = [("<", "s"), ("<s", ">"), ("<s>", "a")]
    rust = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    assert rust.encode("<s>a").tokens == ["<s>a"]
    rust.add_special_tokens(["<unk>", "<s>"])
    tokenizer = Tokenizer.load(save(tmp_path, rust))
    assert tokenizer.encode("<s>a") == [vocab["<s"], vocab[">"], vocab["a"]]
    assert tokenizer.encode("é") == [vocab["<unk>"]]


def test_of_two_control_tokens_that_begin_alike_the_longer_one_counts(tmp_path: Path) -> None:
    rust = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    rust.add_special_tokens(["ab", "abc", "^", "]-", "abbb"])
    assert Tokenizer.load(save(tmp_path, rust)).split("cabca^]-]abb") == ["c", 4, "a", 5, "", 6, "]", 3, "b"]


@pytest.mark.parametrize(
    ("names", "merges", "options"),
    [
        (["a", "##b", "ab"], [("a", "##b")], {"continuing_subword_prefix": "##"}),
        (["a", "b", "b</w>", "ab</w>"], [("a", "b</w>")], {"end_of_word_suffix": "</w>"}),
        (["a", "b", "<0xC3>", "<0xA9>", "?"], [], {"byte_fallback": True, "unk_token": "?"}),
        (["a", "b", "?"], [], {"fuse_unk": True, "unk_token": "?"}),
        (["a", "b", "?"], [], {"unk_token": "?"}),
        (["a", "b", "ab", "aab"], [("a", "b")], {"ignore_merges": True}),
        (["a", " ", "b", "a ", "a b", "#version", "#versiona"], [("a", " "), ("a ", "b"), ("#version", "a")], {}),
    ],
)
def test_every_setting_of_byte_pairs_counts_as_in_the_original(
    names: list[str], merges: list[tuple[str, str]], options: dict[str, Any], tmp_path: Path
) -> None:
    rust = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, **options))
    rust.add_tokens([tokenizers.AddedToken("#version", lstrip=True)])
    tokenizer = Tokenizer.load(save(tmp_path, rust))
    for text in ("ab", "aab", "a b", "aéé日b", "a  #versiona"):
        assert tokenizer.encode(text) == rust.encode(text).ids


def test_merges_as_lines_of_an_old_file_are_those_of_the_original(tmp_path: Path) -> None:
    spec = json.loads(tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str())
    spec["model"]["merges"] = ["#version: 0.2", "a b"]
    spec["decoder"] = json.loads(decoders.Metaspace().__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.load(tmp_path).encode("ab") == tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("ab").ids
