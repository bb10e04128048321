"""What the next step computes, and who waits for memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ferret_core.engine.blocks import BlockKey, BlockPool, blocks_for
from ferret_core.engine.sequence import Sequence


class QueueFullError(Exception):
    """Too many requests wait already."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next positions of a sequence: one while it is being answered, and its draft; more while its prompt is read."""

    sequence: Sequence
    length: int
    draft: tuple[int, ...] = ()
    """Tokens that may follow, the last of its positions."""

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.sequence.computed + self.length

    @property
    def chooses(self) -> bool:
        """Whether it reaches the sequence's end, where the next token is chosen."""
        return self.length - len(self.draft) == self.sequence.remaining

    @property
    def choices(self) -> int:
        """Positions, its last ones, after each of which a token is chosen."""
        return 1 + len(self.draft) if self.chooses else 0

    @property
    def token_ids(self) -> list[int]:
        """Of its positions."""
        return [*self.sequence.token_ids[self.sequence.computed : self.end - len(self.draft)], *self.draft]


class Scheduler:
    """First come, first served, and all who are served go on in every step.

    Each running answer gets its one position first, so that no long prompt holds it up; prompts share what is left of the
    step, the oldest first. When the blocks run out, the youngest sequence gives its own back and waits at the head of the
    queue; what it had computed is computed again, or found again in the cache. The oldest always goes on: alone it fits, or it
    was not admitted.
    """

    def __init__(self, pool: BlockPool, step_tokens: int, max_running: int, max_waiting: int, free_positions: int = 1) -> None:
        self.pool, self.step_tokens, self.free_positions = pool, step_tokens, free_positions
        self.max_running, self.max_waiting = max_running, max_waiting
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of all sequences that were let in."""
        self.cached_tokens = 0
        """Of these, what was found in the cache."""
        self.drafted_tokens = 0
        """That were guessed."""
        self.accepted_tokens = 0
        """Of these, what was right."""

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence at the end of the queue.

        Raises:
            QueueFullError: there is no room in it.
            ValueError: the sequence would never fit into the cache.
        """
        if (needed := blocks_for(sequence.most_positions, self.pool.size)) > self.pool.count:
            raise ValueError(
                f"prompt and answer: up to {sequence.most_positions} tokens, {needed} blocks, but the cache has "
                f"{self.pool.count} blocks of {self.pool.size}; ask for fewer new tokens or give the engine a larger cache"
            )
        if sum(not each.cancelled for each in self.waiting) >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} requests wait already")
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence that has ended, in whatever state."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def next_step(self) -> list[Chunk]:
        """The chunks of the next step, with blocks for all their positions; those of one position come first."""
        preempted, chunks, left = self.preemptions, [], self.step_tokens
        free = min(self.free_positions, left) - len(self.running)
        for sequence in sorted(self.running, key=lambda each: each.remaining > 1):
            length = min(sequence.remaining, left)
            if length and sequence in self.running and self._reserve(sequence, length):
                draft = self._draft(sequence, free) if free > 0 and sequence.remaining == 1 else ()
                chunks.append(Chunk(sequence, length + len(draft), draft))
                left -= length + len(draft)
                free -= len(draft)
        chunks = [chunk for chunk in chunks if chunk.sequence in self.running]  # not preempted since
        if self.waiting and self.preemptions == preempted:  # else memory is short
            chunks += self._let_in(chunks, left)
        return sorted(chunks, key=lambda chunk: chunk.length > 1)  # the last piece of a prompt may be one position, too

    def finish(self, chunk: Chunk) -> None:
        """Notes that a chunk was computed: blocks that became full are known from now on."""
        for block in self._filled(chunk):
            self.pool.name(chunk.sequence.blocks[block], chunk.sequence.key(block, self.pool.size))
        chunk.sequence.computed += chunk.length

    def _let_in(self, chunks: list[Chunk], left: int) -> list[Chunk]:
        """Chunks of sequences that begin with this step, as far as there is room."""
        new: list[Chunk] = []
        computing = self._keys(chunks)
        for sequence in list(self.waiting):
            if left <= 0 or len(self.running) >= self.max_running:
                break
            self._find(sequence)
            if self._next_key(sequence) in computing:  # another computes what this one will find after the step
                self._release(sequence)
                continue
            chunk = Chunk(sequence, min(sequence.remaining, left))
            if self._missing(chunk) + len(self.running) > self.pool.available:  # one to spare for each that runs
                self._release(sequence)
                break
            sequence.blocks += self.pool.take(self._missing(chunk))
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._count(sequence)
            computing |= self._keys([chunk])
            new.append(chunk)
            left -= chunk.length
        return new

    def _find(self, sequence: Sequence) -> None:
        """Gives the sequence the blocks of its beginning that are known."""
        sequence.blocks = self.pool.find(sequence.reusable_keys(self.pool.size))
        sequence.computed = len(sequence.blocks) * self.pool.size

    def _count(self, sequence: Sequence) -> None:
        if sequence.cached is None:
            sequence.cached = min(sequence.computed, len(sequence.prompt.token_ids))
            self.prompt_tokens += len(sequence.prompt.token_ids)
            self.cached_tokens += sequence.cached

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        """Gets blocks for the next positions, from the youngest if there are no others; False if it is the youngest itself."""
        while (missing := self._missing(Chunk(sequence, length))) > self.pool.available:
            youngest = self.running.pop()
            self._release(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is sequence:
                return False
        sequence.blocks += self.pool.take(missing)
        return True

    def _draft(self, sequence: Sequence, most: int) -> tuple[int, ...]:
        """What may follow, with blocks for it, as far as nobody else may want them."""
        draft = sequence.draft(most)
        missing = self._missing(Chunk(sequence, 1 + len(draft)))
        if missing > max(0, self.pool.available - len(self.running)):
            return ()
        sequence.blocks += self.pool.take(missing)
        self.drafted_tokens += len(draft)
        return draft

    def _missing(self, chunk: Chunk) -> int:
        return max(0, blocks_for(chunk.end, self.pool.size) - len(chunk.sequence.blocks))

    def _filled(self, chunk: Chunk) -> range:
        """Which of the sequence's blocks the chunk fills, whatever becomes of its draft."""
        return range(chunk.sequence.computed // self.pool.size, (chunk.end - len(chunk.draft)) // self.pool.size)

    def _keys(self, chunks: list[Chunk]) -> set[BlockKey]:
        """Of all blocks that the chunks fill."""
        return {chunk.sequence.key(block, self.pool.size) for chunk in chunks for block in self._filled(chunk)}

    def _next_key(self, sequence: Sequence) -> BlockKey | None:
        """Of the first block that it did not find."""
        block = len(sequence.blocks)
        return sequence.key(block, self.pool.size) if block < (len(sequence) - 1) // self.pool.size else None

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0
