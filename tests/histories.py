"""Random histories of a log, and the plain list that says what the log must hold after each step."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import NamedTuple

from hypercore.crypto import BLAKE2B
from hypercore.log.engine import Log
from hypercore.log.merkle import append_blocks


@dataclass(frozen=True, slots=True)
class Append:
    """All blocks or none; or, with `together`, one call a block and all calls in flight at once."""

    blocks: tuple[bytes, ...]
    together: bool = False


@dataclass(frozen=True, slots=True)
class Truncate:
    length: int


@dataclass(frozen=True, slots=True)
class Clear:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SetUserData:
    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything into the other files, which nobody sees."""


Action = Append | Truncate | Clear | SetUserData | Flush


class View(NamedTuple):
    """What can be seen of a log. A block is None where it is not stored."""

    fork: int
    blocks: tuple[bytes | None, ...]
    user_data: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Model:
    """A log as a plain list: every block that was appended, also where it was cleared since."""

    blocks: tuple[bytes, ...] = ()
    cleared: frozenset[int] = frozenset()
    fork: int = 0
    user_data: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.blocks)

    @property
    def contiguous_length(self) -> int:
        return min(self.cleared, default=self.length)

    @property
    def view(self) -> View:
        blocks = (None if index in self.cleared else block for index, block in enumerate(self.blocks))
        return View(self.fork, tuple(blocks), dict(self.user_data))

    @property
    def tree_hash(self) -> bytes:
        return BLAKE2B.tree(append_blocks((), 0, self.blocks, BLAKE2B)[0])

    def after(self, action: Action) -> Model:
        match action:
            case Append(blocks):
                return replace(self, blocks=self.blocks + blocks)
            case Truncate(length):
                cleared = frozenset(index for index in self.cleared if index < length)
                return replace(self, blocks=self.blocks[:length], cleared=cleared, fork=self.fork + 1)
            case Clear(start, end):
                return replace(self, cleared=self.cleared | frozenset(range(start, min(end, self.length))))
            case SetUserData(key, value):
                user_data = {**self.user_data, key: value or b""}
                return replace(self, user_data={key: value for key, value in user_data.items() if value})
            case Flush():
                return self

    def within(self, action: Action) -> list[Model]:
        """The states in which a crash within the action may leave the log, the first and the last included."""
        if isinstance(action, Append) and action.together:
            return [
                replace(self, blocks=self.blocks + action.blocks[:count]) for count in range(len(action.blocks) + 1)
            ]
        return [self, self.after(action)]


def random_block(random: Random, *, largest: int) -> bytes:
    """Empty, small, or now and then up to `largest` bytes."""
    match random.randrange(10):
        case 0 | 1:
            return b""
        case 2:
            return random.randbytes(random.randint(1, largest))
        case 3 | 4:
            return random.randbytes(random.randint(1, 4000))
        case _:
            return random.randbytes(random.randint(1, 40))


def random_action(random: Random, model: Model, *, largest_block: int = 10_000) -> Action:
    """Something that can be done to the model's log by anybody. Cuts are mostly near the end."""
    length = model.length
    match random.randrange(20):
        case 0 | 1 if length:
            return Truncate(
                random.randrange(length) if random.random() < 0.3 else length - random.randint(0, length) // 4
            )
        case 2 | 3 | 4 if length:
            start = random.randrange(length)
            return Clear(start, min(length, start + random.choice([1, 1, 2, 5, length])))
        case 5 | 6:
            key = random.choice(["one", "two", "drei ✓"])
            return SetUserData(key, random.choice([None, random.randbytes(random.choice([1, 30, 1500, 4500]))]))
        case 7 | 8 | 9 | 10:
            count = random.choice([2, 3, 10, 40])
            return Append(tuple(random_block(random, largest=largest_block // 4 + 1) for _ in range(count)))
        case _:
            return Append((random_block(random, largest=largest_block),))


def random_engine_action(random: Random, model: Model) -> Action:
    """As above, and what only our engine can be asked for."""
    match random.randrange(8):
        case 0:
            return Flush()
        case 1:
            return Append(tuple(random_block(random, largest=500) for _ in range(random.randint(2, 6))), together=True)
        case _:
            return random_action(random, model)


async def perform(log: Log, action: Action) -> None:
    """Do it, to a log of ours."""
    match action:
        case Append(blocks, together=True):
            calls = [log.append([block]) for block in blocks]
            errors = [
                error for error in await asyncio.gather(*calls, return_exceptions=True) if isinstance(error, Exception)
            ]
            if errors:
                raise errors[0]
        case Append(blocks):
            await log.append(blocks)
        case Truncate(length):
            await log.truncate(length)
        case Clear(start, end):
            await log.clear(start, end)
        case SetUserData(key, value):
            await log.set_user_data(key, value)
        case Flush():
            await log.flush()


async def view_of(log: Log) -> View:
    """Every block is read, and so verified."""
    blocks = [await log.get(index) for index in range(log.length)]
    return View(log.fork, tuple(blocks), dict(log.user_data))


def difference(view: View, model: Model) -> str:
    """In one line what differs, for messages; empty when nothing does."""
    wanted = model.view
    said = []
    if view.fork != wanted.fork:
        said.append(f"fork {view.fork}, not {wanted.fork}")
    if len(view.blocks) != len(wanted.blocks):
        said.append(f"length {len(view.blocks)}, not {len(wanted.blocks)}")
    wrong = [index for index, (got, want) in enumerate(zip(view.blocks, wanted.blocks, strict=False)) if got != want]
    if wrong:
        lost = [index for index in wrong if view.blocks[index] is None]
        said.append(f"blocks {wrong[:10]} differ, of which {lost[:10]} are not stored")
    if view.user_data != wanted.user_data:
        said.append(f"user data {view.user_data}, not {wanted.user_data}")
    return "; ".join(said)
