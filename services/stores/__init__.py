"""What is kept between questions: images, conversations, logs of them, and what need not be computed twice.

Four small interfaces (`ImageStore`, `ConversationStore`, `DailyLog`, `Cache`): embedded in this machine's disk and this
process's memory by default, in S3 and Redis where the settings name them. While such a server is away its stores make do
with this machine, and no call waits for it (`CircuitBreaker`); what cannot be done without it is an `UnavailableError`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ferret_core import s3
from services.errors import NotFoundError
from services.settings import StoreSettings
from services.stores.bucket import Bucket
from services.stores.caches import Cache, MemoryCache, RedisCache
from services.stores.circuit_breaker import CircuitBreaker
from services.stores.conversations import ConversationStore, DirectoryConversations
from services.stores.daily_log import DailyLog
from services.stores.directory import Directory, Spool
from services.stores.images import ImageStore
from services.stores.objects import ObjectStore
from services.stores.redis_server import RedisServer, connect
from services.stores.shared_conversations import SharedConversations

__all__ = ["Cache", "ConversationStore", "DailyLog", "ImageStore", "Stores", "check_servers", "open_stores"]

_SECONDS_PER_DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Stores:
    """All that a replica keeps."""

    images: ImageStore
    conversations: ConversationStore
    feedback: DailyLog
    """Ratings."""
    answers: DailyLog
    """Finished answers and their questions, where the settings want them written down."""
    cache: Cache
    redis: RedisServer | None
    """Where some of it is, and others may ask as well."""
    breakers: dict[str, CircuitBreaker]
    """By the name of the server: redis, s3."""

    def write_down(self, log: DailyLog, conversation_id: str, entry: dict[str, Any]) -> None:
        """Puts an entry of a conversation into a log, unless the conversation is deleted meanwhile."""
        log.append(conversation_id, entry)
        try:
            self.conversations.get(conversation_id)
        except NotFoundError:
            log.remove(conversation_id)

    def close(self) -> None:
        """Stops looking for servers."""
        for breaker in self.breakers.values():
            breaker.close()


def open_stores(settings: StoreSettings) -> Stores:
    """The stores that the settings describe. A server that is away is no error: it is looked for.

    Raises:
        ValueError: a variable of the environment that S3 needs is missing or malformed.
        RuntimeError: the client of a server is not installed.
    """
    breakers: dict[str, CircuitBreaker] = {}
    spool = settings.directory / "spool"
    seconds = settings.conversation_days * _SECONDS_PER_DAY

    conversations: ConversationStore
    cache: Cache
    redis = RedisServer(settings.redis_url) if settings.redis_url else None
    if redis:
        breakers["redis"] = redis.breaker
        waiting = [Spool(spool / name, settings.spool_bytes) for name in ("conversations", "origins")]
        conversations = SharedConversations(redis.client, redis.breaker, seconds, *waiting)
        cache = RedisCache(redis.client, redis.breaker, settings.cache_seconds)
    else:
        directory = Directory(settings.directory / "conversations", settings.conversation_bytes, seconds)
        conversations = DirectoryConversations(directory)
        cache = MemoryCache(settings.cache_bytes, settings.cache_seconds)

    images: ObjectStore
    feedback: ObjectStore
    answers: ObjectStore
    if settings.s3_url:
        url = settings.s3_url.rstrip("/")
        s3.connect(s3.HASTY)  # or raises
        # It warns of each request that it makes again, by its address; of a bucket that is away the breaker tells.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        breakers["s3"] = breaker = CircuitBreaker(
            "s3", lambda: _find_bucket(url), (OSError,), "images and logs wait on this machine's disk"
        )
        images, feedback, answers = (
            Bucket(f"{url}/{name}", Spool(spool / name, settings.spool_bytes), breaker)
            for name in ("images", "feedback", "answers")
        )
    else:
        images = Directory(settings.directory / "images", settings.image_bytes)
        feedback, answers = (Directory(settings.directory / name) for name in ("feedback", "answers"))

    for breaker in breakers.values():
        breaker.start()
    return Stores(ImageStore(images), conversations, DailyLog(feedback), DailyLog(answers), cache, redis, breakers)


def check_servers(settings: StoreSettings) -> None:
    """Asks the servers that the settings name, as somebody starts the platform who can mend them.

    Raises `RuntimeError` naming the setting if one does not answer, and what `open_stores` raises.
    """
    if settings.redis_url:
        client = connect(settings.redis_url)
        from redis.exceptions import AuthenticationError, RedisError, ResponseError

        try:
            client.ping()
        except (AuthenticationError, ResponseError) as error:
            hint = "the password is read from FERRET_REDIS_PASSWORD"
            raise RuntimeError(f"stores.redis_url: {settings.redis_url} refuses us ({error}); {hint}") from error
        except RedisError as error:
            raise RuntimeError(f"stores.redis_url: no server answers at {settings.redis_url} ({error})") from error
        finally:
            client.close()
    if settings.s3_url:
        try:
            _find_bucket(settings.s3_url)
        except OSError as error:
            raise RuntimeError(f"stores.s3_url: {error}") from error


def _find_bucket(url: str) -> None:
    """Raises `OSError` if the bucket is not there or cannot be asked for."""
    if not s3.has_bucket(url, s3.HASTY):
        raise FileNotFoundError(f"{url}: no such bucket; make it first")
