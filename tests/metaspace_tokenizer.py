"""A BPE with `▁` and byte tokens, as Llama 2 has it, in which merges spell the literal of a control token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers


def write_metaspace(folder: Path) -> Path:
    """Write its tokenizer.json into a folder, and return that."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("▁", "h"), ("▁h", "i"), ("i", "▁"), ("<", "s"), ("<s", ">"), ("s", "e"), ("se", "a")]
    names += [*"▁hiseaut<>/k", *("".join(pair) for pair in merges if "".join(pair) not in names)]
    tokenizer = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
