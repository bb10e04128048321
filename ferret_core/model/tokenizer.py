"""LLaMA's slow tokenizer, exactly, on the fast backend: what checkpoints in the original layout were trained with.

Checkpoints of our own bring a `tokenizer.json` and need nothing from here.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from ferret_core.prompt import REGION_TOKEN


class FerretLlamaTokenizer(PreTrainedTokenizerFast):
    """Every run of text between added tokens is encoded and decoded on its own; `<region_fea>` swallows white space."""

    @classmethod
    def from_original(cls, directory: str | Path) -> FerretLlamaTokenizer:
        """From the `tokenizer.model` (sentencepiece) of a directory in the original layout."""
        directory = Path(directory)
        spec = json.loads(LlamaTokenizer.from_pretrained(directory).backend_tokenizer.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["special"]]  # <region_fea> comes below
        backend = Tokenizer.from_str(json.dumps(spec))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        tokenizer = cls(
            tokenizer_object=backend,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<unk>",
            model_max_length=settings.get("model_max_length", 2048),
        )
        tokenizer.add_tokens([AddedToken(REGION_TOKEN, lstrip=True, rstrip=True, normalized=False)])
        return tokenizer

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        special = set(self.all_special_ids)
        if skip_special_tokens:
            ids = [i for i in ids if i not in special]
        alone = set(self.added_tokens_decoder) - special  # <region_fea>: a space on either side
        parts: list[str] = []
        for is_alone, group in groupby(ids, key=alone.__contains__):
            tokens = self.convert_ids_to_tokens(list(group))
            parts += tokens if is_alone else [self._decode_run(tokens)]
        return " ".join(parts)

    def _decode_run(self, tokens: list[str]) -> str:
        """Text between special tokens loses one leading space, and gains one where a special token follows."""
        special = set(self.all_special_tokens)
        runs = [(is_special, list(run)) for is_special, run in groupby(tokens, key=special.__contains__)]
        text = ""
        for i, (is_special, run) in enumerate(runs):
            if is_special:
                text += "".join(run)
            else:
                text += " " * (i + 1 < len(runs)) + self.backend_tokenizer.decoder.decode(run)
        return text
