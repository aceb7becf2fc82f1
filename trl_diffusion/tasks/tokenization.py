# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A tokenizer with one token per character, built locally, for the generated tasks."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


PAD_TOKEN, EOS_TOKEN, MASK_TOKEN = "<|pad|>", "<|eos|>", "<|mask|>"


def character_tokenizer(alphabet: str, *, model_max_length: int = 512) -> PreTrainedTokenizerFast:
    r"""
    Builds a tokenizer that maps each character of `alphabet` to one token.

    Ids: `<|pad|>` 0, `<|eos|>` 1, `<|mask|>` 2, then the characters of `alphabet` in their order from 3 on, so the
    vocabulary has `len(alphabet) + 3` entries. There is no BOS and no unknown token. Padding is on the left, decoding
    inserts no spaces, and `save_pretrained` / `AutoTokenizer.from_pretrained` keep all of it.

    Text is never dropped in silence: a character outside the alphabet makes the encoding call raise the plain
    `Exception` of the tokenizers library ("WordLevel error: Missing [UNK] token from the vocabulary").

    Args:
        alphabet (`str`):
            The characters to encode, each once. Whitespace and newlines are ordinary characters.
        model_max_length (`int`, *optional*, defaults to `512`):
            Longest sequence of the model, in tokens; stored as the tokenizer's `model_max_length`.

    Returns:
        `PreTrainedTokenizerFast`: its calls return `input_ids` and `attention_mask` only.

    Raises:
        `ValueError`: `alphabet` is empty or repeats a character, or `model_max_length` is below 1.

    Example:

    ```python
    >>> tokenizer = character_tokenizer("01234\n")
    >>> tokenizer("10\n").input_ids
    [4, 3, 8]
    ```
    """
    if not alphabet:
        raise ValueError("alphabet is empty: pass the characters of the task, e.g. '01234'.")
    repeated = sorted({character for character in alphabet if alphabet.count(character) > 1})
    if repeated:
        raise ValueError(f"alphabet={alphabet!r} repeats {repeated}: pass each character once.")
    if model_max_length < 1:
        raise ValueError(f"model_max_length={model_max_length} must be at least 1: pass the model's sequence length.")

    vocab = {token: token_id for token_id, token in enumerate([PAD_TOKEN, EOS_TOKEN, MASK_TOKEN, *alphabet])}
    # WordLevel without an unknown token raises on an unknown character; BPE would skip it without a word.
    backend = Tokenizer(models.WordLevel(vocab))
    # "." stops at newlines, which may be in the alphabet.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    # Without a decoder the library joins tokens with spaces.
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        mask_token=MASK_TOKEN,
        padding_side="left",
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
