"""A mirror whose sources are found on the local network: in code as on the command line, `lan:` is a source."""

from __future__ import annotations

import pytest

from hypercore import Hypercore, Mirror, Swarm
from hypercore.mirrors import mirror as mirror_module
from tests.replication.links import eventually
from tests.running import run

LAN = "lan:?interfaces=127.0.0.1"


@pytest.mark.parametrize("option", ["sources", "listen"])
def test_a_mirror_finds_its_sources_and_is_found_by_its_readers(option: str) -> None:
    async def scene() -> None:
        async with Hypercore("memory:") as core, Swarm(LAN) as writer:
            writer.join(core)
            await core.append(["one", "two"])
            async with Mirror("memory:", [core.key], **{option: [LAN]}) as mirror:  # type: ignore[arg-type]
                await mirror.synced()
                assert mirror.status().have == 2
                await eventually(lambda: mirror.status().sources_gone_seconds is None)
                await writer.destroy()
                async with Hypercore("memory:", core.key) as clone, Swarm(LAN) as reader:
                    reader.join(clone)
                    await eventually(lambda: len(clone.peers) == 1)
                    assert await clone.get(1) == b"two"

    run(scene())


def test_a_mirror_that_finds_nobody_is_not_well_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        monkeypatch.setattr(mirror_module, "PATIENCE_SECONDS", 0.1)
        monkeypatch.setattr(mirror_module, "LOOK_SECONDS", 0.05)
        async with Mirror("memory:", [bytes(range(32))], sources=[LAN]) as mirror:
            await eventually(lambda: bool(mirror.status().problems))
            (problem,) = mirror.status().problems
            assert "nobody on this network has announced a log of this mirror" in problem
            assert mirror.status().sources[LAN] is not None

    run(scene())
