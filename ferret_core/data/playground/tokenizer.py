"""The bundled checkpoint's tokenizer: byte-level BPE over the playground's language.

The text format is every Ferret's; only the pieces differ: each number of the 1000 x 1000 grid is one token, so a box
takes nine tokens and 45 is never the beginning of 450.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ferret_core.data.playground import playground_example
from ferret_core.data.playground.objects import THINGS
from ferret_core.geometry import BINS
from ferret_core.prompt import REGION_TOKEN, build_prompt, write_boxes

_PIECES = r", (?=\d)| ?\p{L}+| ?\d+| ?[^\s\p{L}\d]+|\s+"


def build_tokenizer(vocab_size: int = 1400, examples: int = 3000) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the text of playground conversations.

    Args:
        vocab_size: pieces to learn, the 256 bytes included; the separator, 1001 numbers and `<region_fea>` come on top.
        examples: conversations to learn from.
    """
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(examples), trainer)

    spec = json.loads(tokenizer.to_str())
    vocabulary = spec["model"]["vocab"]
    for piece in (",Ġ", *map(str, range(BINS + 1))):  # Ġ is a space, byte-level
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    fast.add_tokens([AddedToken(REGION_TOKEN, lstrip=True, normalized=False)])
    return fast


def _texts(examples: int) -> Iterator[str]:
    """Conversations, without numbers: those have tokens anyway."""
    for thing in THINGS:
        yield f" {thing.name} {thing.plural} the {thing.name}."
    for i in range(examples):
        example = playground_example("train", i)
        record = example.record
        prompt, _ = build_prompt(record.turns, example.regions, record.size)
        text = write_boxes(prompt, record.boxes, record.size)
        yield "".join(c for c in text if not c.isdigit())
