"""Taking away: truncations, forks, cleared blocks, user data.

Each function is one mutation, run while no other one runs (disk spec, sections 6.4 to 6.6 and 6.9). They must not
know who asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypercore.errors import BlockIndexError, BlockNotAvailableError, OptionError, StaleProofError
from hypercore.log import oplog
from hypercore.log.commits import Commits
from hypercore.log.oplog import BitRange, Entry, TreeUpgrade
from hypercore.log.reorg import Reorg
from hypercore.log.state import DATA, LogState
from hypercore.proofs import Node
from hypercore.storage import Delete

#: User data is written again with every header, so it should stay small.
MAX_USER_DATA_SIZE: Final = 1024 * 1024


async def roots_at(state: LogState, length: int) -> list[Node]:
    """The roots that the tree had at `length`. Raises `BlockIndexError`, `BlockNotAvailableError`."""
    if not 0 <= length <= state.length:
        raise BlockIndexError(f"length {length} is outside of the log, which has {state.length} blocks")
    roots = await state.tree.roots_at(length)
    if roots is None:
        raise BlockNotAvailableError(f"the roots of length {length} are not all here")
    return roots


async def truncate(commits: Commits, length: int, fork: int | None) -> None:
    """Cut to `length` blocks and sign that on a new fork."""
    await commits.certain()
    commits.check_writable()
    state = commits.state
    if fork is None:
        fork = state.fork + 1
    elif fork <= state.fork:
        raise OptionError(f"the log is on fork {state.fork}; a truncation needs a newer one, not {fork}")
    roots = await roots_at(state, length)
    signature = b""
    if length:
        assert state.key_pair is not None
        tree_hash = state.authority.tree_hash.tree(roots)
        signature = state.authority.sign(tree_hash, length, fork, state.key_pair)
    await _change_tree(commits, TreeUpgrade(fork, length, length, signature), roots, ())


async def follow(commits: Commits, reorg: Reorg) -> None:
    """Go over to the fork that `reorg` found: the common blocks stay, the rest goes."""
    await commits.certain()
    state, verified, upgrade = commits.state, reorg.verified, reorg.upgrade
    if reorg.generation != commits.generation or verified.fork <= state.fork:
        raise StaleProofError(f"the log went to fork {state.fork} while fork {verified.fork} was looked at")
    nodes = await reorg.nodes(state.tree)
    state.learn(verified.authority)
    entry = TreeUpgrade(verified.fork, reorg.ancestors, upgrade.length, upgrade.signature)
    await _change_tree(commits, entry, upgrade.roots, nodes)


async def _change_tree(commits: Commits, upgrade: TreeUpgrade, roots: Sequence[Node], nodes: Sequence[Node]) -> None:
    """Go over to another tree, which has the first `upgrade.ancestors` blocks in common with this one."""
    state = commits.state
    fork, ancestors, length, signature = upgrade
    old_length = state.length
    dropped = BitRange(True, ancestors, old_length - ancestors)
    entry = Entry(None, nodes, upgrade, dropped, empty_nodes=not nodes)
    await commits.commit_entries([state.framed(entry)])
    commits.generation += 1
    if old_length:
        state.reorg_hints = oplog.add_reorg_hint(
            state.reorg_hints, from_fork=state.fork, to_fork=fork, ancestors=ancestors
        )
    if ancestors < old_length:
        state.tree.cut(ancestors)
    state.tree.add(nodes)
    state.tree.set_roots(roots, length)
    state.fork, state.roots, state.length, state.signature = fork, tuple(roots), length, signature
    state.byte_length = sum(root.size for root in roots)
    state.note_dropped(ancestors, old_length)
    state.blocks.forget()
    commits.notify("truncate", ancestors, old_length)
    if length > ancestors:
        commits.notify("upgrade", ancestors, length)
    await commits.checkpoint_if_due(now=True)


async def clear(commits: Commits, start: int, end: int) -> None:
    """Drop the bytes of the blocks from `start` to `end`, and of neighbours that are not here anyway."""
    await commits.certain()
    state = commits.state
    if start < 0:
        raise BlockIndexError(f"block {start} is outside of the log")
    end = min(end, state.length)
    if start >= end or state.bitfield.first_set(start, end) is None:
        return
    low, high = await _hole(state, start, end)
    entry = Entry(None, (), None, BitRange(True, start, end - start))
    await commits.commit_entries([state.framed(entry)], then=[Delete(DATA, low, high - low)] if low < high else [])
    state.note_dropped(start, end)
    if low < high:
        state.blocks.deleted(low, high - low)
    commits.notify("clear", start, end)
    await commits.checkpoint_if_due()


async def _hole(state: LogState, start: int, end: int) -> tuple[int, int]:
    """The byte range between the nearest blocks that stay; empty when the tree does not tell where they are."""
    low, high = 0, state.byte_length
    before = state.bitfield.last_set_before(start)
    behind = state.bitfield.first_set(end, state.length)
    if before is not None:
        placed = await state.tree.locate(2 * before)
        if placed is None:
            return 0, 0
        low = placed[0] + placed[1].size
    if behind is not None:
        placed = await state.tree.locate(2 * behind)
        if placed is None:
            return 0, 0
        high = placed[0]
    return low, high


async def set_user_data(commits: Commits, key: str, value: bytes | None) -> None:
    """Store `value` under `key`; None removes the key."""
    if value is not None and not 0 < len(value) <= MAX_USER_DATA_SIZE:
        raise OptionError(f"a value of user data has 1 to {MAX_USER_DATA_SIZE} bytes, not {len(value)}")
    await commits.certain()
    state = commits.state
    if state.user_data.get(key) == value:
        return
    await commits.commit_entries([state.framed(Entry((key, value)))])
    if value is None:
        del state.user_data[key]
    else:
        state.user_data[key] = value
    await commits.checkpoint_if_due()
