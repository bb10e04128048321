"""A tokenizer of any token: each is a letter."""


class Letters:
    """Every token has one, and the one that ends an answer is special."""

    eos_token_id = 2
    all_special_ids = (eos_token_id,)

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(self.convert_ids_to_tokens, tokens))

    def convert_ids_to_tokens(self, token):
        return chr(0x4E00 + token)
