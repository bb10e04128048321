"""Conversations in Redis, for the replicas of all machines, that go on while Redis is away.

Then a conversation continues on this machine's disk, from the copy of a replica that has met it, and what happened to it
there is written to Redis when that is back. It survives the replicas of this machine, and two machines that both went on with
the same conversation: it keeps the turns of both.

    ferret:conversation:ID      the conversation; goes when nobody used it for long
    ferret:conversations:IMAGE  ids of the conversations about an image, kept as long as the last of them
    ferret:deleted:ID           somebody removed it: a copy that comes late is not written
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ferret.v1 import ferret_pb2 as pb
from google.protobuf.message import DecodeError

from services.errors import UnavailableError
from services.stores.caches import local_copies
from services.stores.circuit_breaker import CircuitBreaker
from services.stores.conversations import ConversationStore, Result, check_id, not_found
from services.stores.directory import Spool

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline


class SharedConversations(ConversationStore):
    """Conversations in Redis."""

    def __init__(self, client: Redis, breaker: CircuitBreaker, seconds: float, spool: Spool, origins: Spool) -> None:
        """
        Args:
            client: of Redis.
            breaker: of that client.
            seconds: conversations that nobody used for so long go.
            spool: conversations that went on on this machine while Redis was away.
            origins: the same as they were before.
        """
        self.client, self.breaker, self.seconds = client, breaker, max(1, round(seconds))
        self.spool, self.origins = spool, origins
        self._copies = local_copies()
        breaker.write_backs.append(self.write_back)

    def _add(self, conversation: pb.Conversation) -> None:
        try:
            with self.breaker.call(), self.client.pipeline() as pipe:
                self._write(pipe, conversation)
                pipe.execute()
            self._copy(conversation)
        except UnavailableError:
            self.spool.add(conversation.id, conversation.SerializeToString())

    def get(self, conversation_id: str) -> pb.Conversation:
        check_id(conversation_id)
        try:
            with self.breaker.call():
                self._bring_back(conversation_id)
                data = self.client.getex(_key(conversation_id), ex=self.seconds)
                if data is None:
                    self._copies.remove([conversation_id])
                    raise not_found(conversation_id)
                conversation = pb.Conversation.FromString(data)
                self.client.expire(_index(conversation), self.seconds)
        except UnavailableError:
            return self._update_here(conversation_id, lambda conversation: conversation)
        self._copy(conversation)
        return conversation

    def update(self, conversation_id: str, change: Callable[[pb.Conversation], Result]) -> Result:
        check_id(conversation_id)

        def transact(pipe: Pipeline) -> tuple[pb.Conversation, Result]:
            conversation = self._read(pipe, conversation_id)
            if conversation is None:
                raise not_found(conversation_id)
            result = change(conversation)
            pipe.multi()
            self._write(pipe, conversation)
            return conversation, result

        try:
            with self.breaker.call():
                self._bring_back(conversation_id)
                conversation, result = self._transaction(transact, conversation_id)
        except UnavailableError:
            return self._update_here(conversation_id, change)
        self._copy(conversation)
        return result

    def remove(self, conversation_id: str) -> None:
        check_id(conversation_id)

        def transact(pipe: Pipeline) -> None:
            conversation = self._read(pipe, conversation_id)
            pipe.multi()
            if conversation is not None:
                pipe.srem(_index(conversation), conversation_id)
            pipe.delete(_key(conversation_id))
            pipe.set(_tombstone(conversation_id), b"", ex=self.seconds)

        with self.spool.locked(conversation_id):  # or it might just be on its way back to Redis
            with self.breaker.call():
                self._transaction(transact, conversation_id)
            self._forget(conversation_id)
        self._copies.remove([conversation_id])

    def uses(self, image_id: str, besides: str) -> bool:
        """By the index; its members that are gone do not count."""
        index = _index(pb.Conversation(image=pb.ImageInfo(id=image_id)))
        with self.breaker.call():
            others = [member.decode() for member in self.client.smembers(index)]
            return any(self.client.exists(_key(other)) for other in others if other != besides)

    def write_back(self) -> None:
        """Writes to Redis what went on without it. Raises `RedisError` if it is away."""
        for conversation_id in self.spool.all_names():
            try:
                self._bring_back(conversation_id)
            except TimeoutError:  # of Redis
                raise
            except (DecodeError, OSError) as error:
                self.spool.set_aside(conversation_id, error)

    def _bring_back(self, conversation_id: str) -> None:
        """The same for one conversation, if it is in the spool: before anything else happens to it in Redis."""
        with self.spool.locked(conversation_id) as data:
            if data is not None:
                ours = pb.Conversation.FromString(data)
                origin = pb.Conversation.FromString(self.origins.get(conversation_id) or b"")
                self._transaction(lambda pipe: self._settle(pipe, origin, ours), conversation_id)
                self._forget(conversation_id)

    def _settle(self, pipe: Pipeline, origin: pb.Conversation, ours: pb.Conversation) -> None:
        theirs, deleted = self._read(pipe, ours.id), pipe.exists(_tombstone(ours.id))
        pipe.multi()
        if deleted:
            self._copies.remove([ours.id])
        else:
            conversation = ours if theirs is None or theirs == origin else merged(origin, theirs, ours)
            self._write(pipe, conversation)
            self._copy(conversation)

    def _update_here(self, conversation_id: str, change: Callable[[pb.Conversation], Result]) -> Result:
        """Redis is away: from now on the conversation is the one in the spool.

        Raises `UnavailableError` if this replica has not met it.
        """
        while True:
            if not self.spool.has(conversation_id):
                (copy,) = self._copies.get([conversation_id])
                if copy is None:
                    raise UnavailableError("conversation_id: it cannot be reached at the moment; try again in a minute")
                self.origins.add(conversation_id, copy)
                self.spool.add(conversation_id, copy)
            with self.spool.locked(conversation_id) as data:
                if data is None:  # brought back meanwhile
                    continue
                conversation = pb.Conversation.FromString(data)
                result = change(conversation)
                self.spool.replace(conversation_id, conversation.SerializeToString())
                return result

    def _forget(self, conversation_id: str) -> None:
        self.spool.remove(conversation_id)
        self.origins.remove(conversation_id)

    def _read(self, pipe: Pipeline, conversation_id: str) -> pb.Conversation | None:
        data = pipe.get(_key(conversation_id))
        return None if data is None else pb.Conversation.FromString(data)

    def _write(self, pipe: Pipeline, conversation: pb.Conversation) -> None:
        pipe.set(_key(conversation.id), conversation.SerializeToString(), ex=self.seconds)
        pipe.sadd(_index(conversation), conversation.id)
        pipe.expire(_index(conversation), self.seconds)

    def _transaction(self, transact: Callable[[Pipeline], Any], conversation_id: str) -> Any:
        """Runs `transact` again until nobody changed the conversation meanwhile."""
        watched = _key(conversation_id), _tombstone(conversation_id)
        return self.client.transaction(transact, *watched, value_from_callable=True)

    def _copy(self, conversation: pb.Conversation) -> None:
        self._copies.put({conversation.id: conversation.SerializeToString()})


def merged(origin: pb.Conversation, theirs: pb.Conversation, ours: pb.Conversation) -> pb.Conversation:
    """Two continuations of one conversation as one: theirs, with the answers, turns and regions that came to ours."""
    result = pb.Conversation()
    result.CopyFrom(theirs)
    our_turns = {turn.id: turn for turn in ours.turns}
    for turn in result.turns:
        if not turn.answer and turn.id in our_turns:
            turn.CopyFrom(our_turns[turn.id])
    known = {turn.id for turn in (*origin.turns, *theirs.turns)}
    result.turns.extend(turn for turn in ours.turns if turn.id not in known)
    for number, region in ours.regions.items():
        if number not in origin.regions or origin.regions[number] != region:
            result.regions[number].CopyFrom(region)
    return result


def _key(conversation_id: str) -> str:
    return f"ferret:conversation:{conversation_id}"


def _index(conversation: pb.Conversation) -> str:
    return f"ferret:conversations:{conversation.image.id}"


def _tombstone(conversation_id: str) -> str:
    return f"ferret:deleted:{conversation_id}"
