"""Who holds which block of the key-value cache, and which blocks hold what is already known."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from hashlib import blake2b

BlockKey = bytes
"""Of a full block: a hash of all positions up to its end."""
ROOT: BlockKey = b""
"""What the first block's key goes on from."""


def block_key(before: BlockKey, content: bytes) -> BlockKey:
    """The key of the block that holds `content` and follows the one with the key `before`."""
    return blake2b(content, digest_size=16, key=before).digest()


def blocks_for(positions: int, size: int) -> int:
    """How many blocks of `size` positions so many positions need."""
    return -(-positions // size)


class BlockPool:
    """`count` blocks of `size` positions each.

    A block is held by as many sequences as have it in their tables. When the last one lets go, a block with a key stays
    known until it is the one that was of no use for longest and a new block is wanted.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._holders = [0] * count
        self._unused = deque(range(count))
        self._kept: OrderedDict[int, None] = OrderedDict()  # known and held by nobody, the next to be given up first
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}

    @property
    def available(self) -> int:
        """How many blocks `take` can give."""
        return len(self._unused) + len(self._kept)

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """Takes hold of the blocks with these keys, as far as they are known without a gap."""
        found: list[int] = []
        for key in keys:
            if (block := self._block_of.get(key)) is None:
                break
            self._kept.pop(block, None)
            self._holders[block] += 1
            found.append(block)
        return found

    def take(self, count: int) -> list[int]:
        """Takes hold of new blocks. Raises `IndexError` if there are fewer."""
        if count > self.available:
            raise IndexError(f"{count} blocks of {self.available}")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._unused:
            block = self._unused.popleft()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._holders[block] = 1
        return block

    def name(self, block: int, key: BlockKey) -> None:
        """Makes a full block known. If another one with this content is known, that one stays."""
        if key not in self._block_of:
            self._block_of[key], self._key_of[block] = block, key

    def release(self, blocks: Sequence[int]) -> None:
        """Lets go of a sequence's blocks. Its last ones are given up before its first, which others are likelier to share."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self._key_of:
                    self._kept[block] = None
                else:
                    self._unused.append(block)
