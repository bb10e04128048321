"""The platform in OpenAI's terms: chat completions over HTTP, in front of the gateway's `FerretService`.

`requests` and `answers` translate, `errors` says what went wrong, `app` serves. `docs/openai.md` tells users which of it is
ours and not OpenAI's: `regions` and `top_k` in requests, `grounding`, `image_id` and `dropped_turns` in answers.
"""
