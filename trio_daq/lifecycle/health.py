"""Whether a lab is well, and if not, what is wrong with it."""

from __future__ import annotations

import attrs


@attrs.frozen
class HealthReport:
    """What a health check found.

    Attributes:
        problems: One sentence for each thing that is wrong; none if all is well.
    """

    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        return "all is well" if self.healthy else "; ".join(self.problems)
