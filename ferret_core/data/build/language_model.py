"""Asking a text-only LLM through any server that speaks OpenAI's chat completions, and keeping what it said.

Nothing goes over the network unless a model is named. What passed the check is cached by the content of the request, so
that a second run asks nothing; what does not pass goes back to the model with the reason, a few times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

TRIES = 4
TIMEOUT = 120.0  # seconds
_PATIENCE = {408, 409, 429, 500, 502, 503, 504}  # HTTP codes of what passes
_REFUSED = {400, 413, 422}  # of what is wrong with the request itself
_T = TypeVar("_T")


class LanguageModelError(ValueError):
    """No usable answer. The message names server, model and reason."""


class RefusedError(LanguageModelError):
    """The server will never answer this request, as one that its filter holds back, but may answer others."""


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A model on a server. The key, if one is needed, is in the environment as OPENAI_API_KEY."""

    url: str
    """Base URL, such as `http://localhost:8000/v1`."""
    model: str
    cache: Path
    """Directory of answers; may be shared by processes."""
    seed: int = 0
    temperature: float = 0.7
    pause: float = 1.0
    """Seconds before the second try at a busy server; doubled for each further one."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--llm-url: must be the http(s) base URL of a chat completions server, got {self.url!r}")

    def ask(self, system: str, question: str, parse: Callable[[str], _T]) -> _T:
        """What `parse` makes of the answer; its `ValueError` tells the model what was wrong with it.

        Raises:
            LanguageModelError: the server refused, or no answer passed in `TRIES` tries.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        request = {"model": self.model, "messages": messages, "temperature": self.temperature, "seed": self.seed}
        path = self.cache / f"{hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()}.json"
        if path.exists():
            try:
                return parse(json.loads(path.read_text())["answer"])
            except (ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)  # written under other rules: ask again
        reason = ""
        for _ in range(TRIES):
            text, usage = self._complete({**request, "messages": messages})
            try:
                value = parse(text)
            except ValueError as error:
                reason = str(error)
                correction = f"That cannot be used: {reason}. Answer again, in full, with JSON only."
                messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": correction}]
                continue
            kept = _keep(path, {"request": request, "answer": text, "usage": usage})
            return value if kept else parse(json.loads(path.read_text())["answer"])
        raise LanguageModelError(f"{self.url}: {self.model}: no usable answer in {TRIES} tries: {reason}")

    def _complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The answer, and the tokens it took as far as the server tells."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
        url = f"{self.url.rstrip('/')}/chat/completions"
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(url, json.dumps(body).encode(), headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    value = json.load(response)
                return str(value["choices"][0]["message"]["content"] or ""), value.get("usage") or {}
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read(500).decode(errors='replace')}"
                if error.code in _REFUSED:
                    raise RefusedError(f"{url}: {self.model}: {reason}") from error
                if error.code not in _PATIENCE:
                    break
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise LanguageModelError(f"{url}: {self.model}: {reason}")


def parse_object(text: str, key: str) -> list[Any]:
    """The list under `key` of a JSON object that is all the text, a code fence aside. Raises `ValueError`."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise ValueError(f'must be a JSON object {{"{key}": [...]}}')
    return value[key]


def _keep(path: Path, value: dict[str, Any]) -> bool:
    """Writes a new file, whole. False if another process that asked the same was first: its answer is everybody's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{uuid4().hex}")
    unfinished.write_text(json.dumps(value))
    try:
        os.link(unfinished, path)
        return True
    except FileExistsError:
        return False
    finally:
        unfinished.unlink()
