"""How many bytes the copies of one mirror may take together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Budget:
    """`used_bytes` of at most `most_bytes`; None is no limit. `on_full` is called whenever it is found used up."""

    most_bytes: int | None
    on_full: Callable[[], None]
    used_bytes: int = field(default=0)

    @property
    def is_full(self) -> bool:
        return self.most_bytes is not None and self.used_bytes >= self.most_bytes

    def use(self, size: int) -> None:
        """`size` bytes more are stored; fewer when it is negative."""
        self.used_bytes += size
        if size > 0 and self.is_full:
            self.on_full()
