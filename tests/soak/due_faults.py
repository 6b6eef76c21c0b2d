"""Which fault an owner is to commit, and when: by counting exchanges, so that a run can be repeated."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs


@attrs.define
class DueFaults:
    """Faults that owners are to commit: each of *kinds* once in *every* exchanges."""

    every: int
    kinds: Sequence[str]
    _due: list[str] = attrs.field(factory=list)
    _count: int = 0

    def next(self, possible: Collection[str] | None = None) -> str | None:
        """Count an exchange, and return the fault it is to have among those that its owner can commit, None for all."""
        self._count += 1
        for place, kind in enumerate(self.kinds):
            if (self._count + place * self.every // len(self.kinds)) % self.every == 0:
                self._due.append(kind)
        for kind in self._due:
            if possible is None or kind in possible:
                self._due.remove(kind)
                return kind
        return None

    def put_back(self, kind: str) -> None:
        """Have *kind* again, since it came to nothing."""
        self._due.append(kind)
