"""Languages that a translator is asked to read and to write, beside transformers."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from command_line import invoke
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import edgelm
import edgelm.testing
from edgelm.errors import CheckpointError, ConfigError
from edgelm.text.languages import Languages
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.exporter import export_package
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

TEXT = "The sea is blue."
TEXTS = [
    "The sea is blue and the sky is grey.", "In the morning the light comes slowly, and nobody speaks of the night.",
    "La mer est bleue et le ciel est gris.", "Le matin la lumière vient lentement, et personne ne parle de la nuit.",
] * 4  # fmt: skip
GREEDY = edgelm.GenerationConfig(max_new_tokens=8)
SIZES = {
    "vocab_size": 330, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64,
    "eos_token_id": 2, "scale_embedding": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of translator: transformers' classes, and how they call English, German and French."""

    model_type: str
    tokenizer_class: str
    sentences: str  # what SentencePiece makes of them: "bpe" or "unigram"
    names: tuple[str, str, str]
    settings: dict[str, Any]
    begins_with_target: bool = False

    def save_tokenizer(self, folder: Path) -> None:
        (folder / "sentencepiece.bpe.model").write_bytes(train(self.sentences))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": self.tokenizer_class, **self.settings})
        )
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        (folder / "sentencepiece.bpe.model").unlink()


def train(kind: str) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=150,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


MBART_NAMES = ("en_XX", "de_DE", "fr_XX")
KINDS = {
    "NLLB": Kind(
        model_type="m2m_100",
        tokenizer_class="NllbTokenizer",
        sentences="bpe",
        names=("eng_Latn", "deu_Latn", "fra_Latn"),
        settings={"additional_special_tokens": ["deu_Latn", "eng_Latn", "fra_Latn"]},
    ),
    "mBART-50": Kind(
        model_type="mbart", tokenizer_class="MBart50Tokenizer", sentences="unigram", names=MBART_NAMES, settings={}
    ),
    "mBART": Kind(
        model_type="mbart",
        tokenizer_class="MBartTokenizer",
        sentences="unigram",
        names=MBART_NAMES,
        settings={},
        begins_with_target=True,
    ),
}
Exported = Callable[[str], tuple[PreTrainedModel, Any, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return transformers' model and tokenizer, and a folder with their folder `hf` and its `package`."""

    @functools.cache
    def export(name: str) -> tuple[PreTrainedModel, Any, Path]:
        kind, folder = KINDS[name], tmp_path_factory.mktemp("translator")
        (folder / "hf").mkdir()
        kind.save_tokenizer(folder / "hf")
        tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
        begin = tokenizer.convert_tokens_to_ids(kind.names[0]) if kind.begins_with_target else 2
        model = random_model(kind.model_type, decoder_start_token_id=begin)
        model.save_pretrained(folder / "hf")
        export_package(HuggingFaceCheckpoint(folder / "hf"), folder / "package", "fp32")
        return model, tokenizer, folder

    return export


def random_model(model_type: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **SIZES, **settings)).eval()
    for name, parameter in model.named_parameters():  # an answer that hangs on its source
        parameter.data += torch.randn_like(parameter) * (1.0 if "encoder_attn" in name else 0.2)
    model.generation_config.forced_eos_token_id = None
    return model


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_is_transformers_in_each_language(name: str, exported: Exported) -> None:
    model, tokenizer, folder = exported(name)
    kind, loaded = KINDS[name], edgelm.load(folder / "package")
    english, german, french = kind.names
    assert {english, german, french} <= loaded.languages.keys()
    assert not Languages(loaded.tokenizer, replace(loaded.config, encoder=None))
    for place in ("hf", "package"):  # what its class would write is there
        text = (folder / place / "tokenizer.json").read_text()
        assert read_text_files(folder / place)["tokenizer.json"] == text
    answers = []
    for source, target in ((english, french), (german, french), (german, english)):
        tokenizer.src_lang = source
        inputs = tokenizer(TEXT, return_tensors="pt")
        begin = tokenizer.convert_tokens_to_ids(target)
        forced = {"decoder_start_token_id" if kind.begins_with_target else "forced_bos_token_id": begin}
        begun = 1 if kind.begins_with_target else 2
        with torch.no_grad():
            expected = model.generate(**inputs, **forced, max_new_tokens=7 + begun, do_sample=False, num_beams=1)
        config = GREEDY.replace(source_language=source, target_language=target)
        answers.append(loaded.generate(TEXT, config).token_ids)
        assert list(answers[-1]) == expected[0, begun:].tolist()
        assert (
            loaded.generate(inputs.input_ids[0].tolist(), GREEDY.replace(target_language=target)).token_ids
            == (answers[-1])
        )
    assert len(set(answers)) == 3  # so it matters what is asked for
    own = GREEDY.replace(target_language=french)
    batch = loaded.generate_batch([TEXT] * 2, [own, own.replace(source_language=german)])
    assert [one.token_ids for one in batch] == answers[:2]


def test_a_command_translates_and_show_lists_the_languages(exported: Exported) -> None:
    package = exported("NLLB")[2] / "package"
    call = ("run", package, TEXT, "--json", "--max-new-tokens", "8")
    answer = invoke(*call, "--from", "deu_Latn", "--to", "fra_Latn")
    config = GREEDY.replace(source_language="deu_Latn", target_language="fra_Latn")
    assert tuple(json.loads(answer.stdout)["token_ids"]) == edgelm.load(package).generate(TEXT, config).token_ids
    assert answer.stderr == ""
    unasked = invoke(*call)
    assert "No language to translate to was chosen (--to), so the model chooses one." in unasked.stderr
    assert "languages             3: deu_Latn, eng_Latn, fra_Latn" in invoke("show", package).stdout
    facts = json.loads(invoke("show", package, "--json").stdout)
    assert facts["languages"] == ["deu_Latn", "eng_Latn", "fra_Latn"]
    refused = invoke(*call, "--to", "fr")
    assert refused.exit_code == 1
    assert "target_language is 'fr'; near it of the model's 3: fra_Latn" in refused.stderr


def test_a_language_may_be_chosen_in_the_package(exported: Exported, tmp_path: Path) -> None:
    _, tokenizer, folder = exported("mBART-50")
    for path in (folder / "hf").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((tmp_path / "generation_config.json").read_text())
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(values | {"forced_bos_token_id": tokenizer.convert_tokens_to_ids("fr_XX")}))
    export_package(HuggingFaceCheckpoint(tmp_path), tmp_path / "forced", "fp32")
    path.write_text(json.dumps(values | {"target_language": "fr_XX"}))
    export_package(HuggingFaceCheckpoint(tmp_path), tmp_path / "named", "fp32")
    whole = edgelm.load(folder / "package").generate(TEXT, GREEDY.replace(target_language="fr_XX"))
    for name in ("forced", "named"):
        loaded = edgelm.load(tmp_path / name)
        config = loaded.generation_config.replace(max_new_tokens=8, temperature=0.0)
        assert loaded.generate(TEXT, config).token_ids == whole.token_ids
        ran = invoke("run", tmp_path / name, TEXT, "--max-new-tokens", "8")
        assert ran.stderr == ""
    german = edgelm.load(tmp_path / "forced").generate(TEXT, GREEDY.replace(target_language="de_DE"))
    assert german.token_ids == (
        edgelm.load(folder / "package").generate(TEXT, GREEDY.replace(target_language="de_DE")).token_ids
    )


def test_a_target_before_the_source_is_what_a_user_would_write_there(
    tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    """As translators of the Marian kind want it, and T5 of the MADLAD-400."""
    for form in (">>fra<<", "<2fra>"):
        hf, package = tmp_path / f"hf {form[0]}", tmp_path / f"package {form[0]}"
        model = random_model("marian", pad_token_id=0, decoder_start_token_id=0)
        model.save_pretrained(hf)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe_tokenizer.backend_tokenizer.from_str(bpe_tokenizer.backend_tokenizer.to_str())
        )
        tokenizer.backend_tokenizer.add_tokens([AddedToken(form, normalized=False)])
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)]
        )
        tokenizer.save_pretrained(hf)
        export_package(HuggingFaceCheckpoint(hf), package, "fp32")
        loaded = edgelm.load(package)
        assert list(loaded.languages) == ["fra"]
        assert repr(loaded.languages) == "<Languages: fra>"
        source = tokenizer(f"{form} {TEXT}").input_ids
        assert loaded.languages.source_ids(TEXT, None, "fra") == source
        assert loaded.languages.is_chosen  # by who writes the text, perhaps
        asked, written = loaded.generate(TEXT, GREEDY.replace(target_language="fra")), loaded.generate(source, GREEDY)
        assert (asked.token_ids, asked.usage) == (written.token_ids, written.usage)
        for config, prompt, message in (
            (GREEDY.replace(source_language="fra"), TEXT, "source_language is 'fra'; the model takes none. Leave it"),
            (GREEDY.replace(target_language="fra"), [5, 6], "target_language is 'fra'; the source is token ids, which"),
            (GREEDY.replace(target_language="deu"), TEXT, "target_language is 'deu'; near it of the model's 1: fra"),
        ):
            with pytest.raises(ConfigError, match=message):
                loaded.generate(prompt, config)


@pytest.mark.parametrize("single", ["$A {}", "{} $A </s>"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("NLLB", {}),
        ("NLLB", {"legacy_behaviour": True}),
        ("NLLB", {"tokenizer_class": "NllbTokenizerFast", "src_lang": "deu_Latn"}),
        ("mBART-50", {"src_lang": "fr_XX"}),
        ("mBART", {"src_lang": "fr_XX"}),
    ],
)
def test_a_source_is_marked_as_its_class_does_it_whatever_tokenizer_json_says(
    name: str, settings: dict[str, Any], single: str, exported: Exported, tmp_path: Path
) -> None:
    """As older versions of transformers wrote it, and with other ids."""
    kind, hf = KINDS[name], exported(name)[2] / "hf"
    spec = json.loads((hf / "tokenizer.json").read_text())
    english = kind.names[0]
    processor = TemplateProcessing(single=single.format(english), special_tokens=[(english, 7), ("</s>", 8)])
    spec["post_processor"] = json.loads(processor.__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    config = json.loads((hf / "tokenizer_config.json").read_text())
    config = {key: value for key, value in config.items() if key != "src_lang"} | settings
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    original = AutoTokenizer.from_pretrained(tmp_path)
    for file, content in read_text_files(tmp_path).items():
        (tmp_path / file).write_text(content)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.as_source(tokenizer.encode(TEXT)) == original(TEXT).input_ids
    assert read_text_files(tmp_path)["tokenizer.json"] == (tmp_path / "tokenizer.json").read_text()


def test_a_source_language_that_a_tokenizer_lacks_is_refused_where_somebody_chose_it(
    exported: Exported, tmp_path: Path
) -> None:
    text = (exported("NLLB")[2] / "hf/tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "MBartTokenizer"}))
    assert read_text_files(tmp_path)["tokenizer.json"] == text
    path.write_text(json.dumps({"tokenizer_class": "NllbTokenizer", "src_lang": "spa_Latn"}))
    with pytest.raises(CheckpointError, match="src_lang is 'spa_Latn', and tokenizer"):
        read_text_files(tmp_path)


def test_names_that_begin_alike_are_the_nearest(exported: Exported) -> None:
    loaded = edgelm.load(exported("mBART-50")[2] / "package")
    for name, near in (
        ("fr", "fr_XX, "),
        ("fr_FR", "fr_XX, "),
        ("EN", "en_XX, "),
        ("s", "si_LK, sv_SE, sw_KE, sl_SI, "),
    ):
        with pytest.raises(ConfigError, match=f"target_language is '{name}'; near it of the model's 52: {near}"):
            loaded.generate(TEXT, GREEDY.replace(target_language=name))


def test_what_no_translator_is_asked_for_is_refused(exported: Exported) -> None:
    loaded = edgelm.load(exported("NLLB")[2] / "package")
    with pytest.raises(ConfigError, match="source_language is 'deu_Latn'; the source is token ids, which are taken"):
        loaded.generate([5, 6], GREEDY.replace(source_language="deu_Latn"))
    with pytest.raises(ConfigError, match="target_language is 7; it must be the name of a language, or None"):
        edgelm.GenerationConfig(target_language=7)  # type: ignore[arg-type]
    continuing = edgelm.testing.scripted_model("The sea")
    assert not continuing.languages
    with pytest.raises(ConfigError, match=r"target_language is 'fra_Latn'; .* has no encoder. Leave it out"):
        continuing.generate(TEXT, GREEDY.replace(target_language="fra_Latn"))
