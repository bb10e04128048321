"""How the engine's tests ask transformers' `generate`."""

MOST = 24
"""Tokens of an answer."""
GREEDY = {"max_new_tokens": MOST, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
