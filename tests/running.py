"""Runs one test's coroutine, and fails it instead of hanging."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: Generous for a slow shared machine; a test that needs it all is stuck.
TEST_TIMEOUT_SECONDS = 60.0


def run(coroutine: Coroutine[Any, Any, T], *, timeout_seconds: float = TEST_TIMEOUT_SECONDS) -> T:
    """The coroutine's result. Tasks that it leaves behind are a failure of the test."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_seconds):
            result = await coroutine
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            await asyncio.wait(left, timeout=1.0)
        stuck = [task for task in left if not task.done()]
        assert not stuck, f"the test left tasks running: {stuck}"
        return result

    return asyncio.run(bounded())
