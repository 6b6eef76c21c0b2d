"""What became of each part of a lab when it was stopped. Frozen records that print as a table."""

from __future__ import annotations

from typing import Literal

import attrs

from trio_daq.sharing import SafeStateResult

EXIT_STUCK = 3
"""Exit code of a process that had to be ended around a stuck member."""

EXIT_UNSAFE = 4
"""Exit code of a process that may have left a line in another state than its safe one."""

Outcome = Literal["running", "restarting", "ended", "drained", "cancelled", "stuck", "failed"]
"""``restarting`` between two lives, ``ended`` by itself before the stop, ``drained`` within its grace, ``cancelled``
after it, ``stuck`` despite that."""


@attrs.frozen(kw_only=True)
class MemberReport:
    """How one member ended.

    Attributes:
        name: Its id.
        outcome: How it ended.
        seconds: From the request to stop to its end; 0 if it had ended before.
        error: What it failed with last.
        restarts: How often it was started again.
        frames: Where a stuck member is, innermost first.
        abandoned_threads: Threads of its own that it left behind, still inside a call.
        dropped_messages: Messages to an actor that nobody handled any more.
    """

    name: str
    outcome: Outcome
    seconds: float = 0.0
    error: BaseException | None = None
    restarts: int = 0
    frames: tuple[str, ...] = ()
    abandoned_threads: tuple[str, ...] = ()
    dropped_messages: int = 0


@attrs.frozen(kw_only=True)
class StageReport:
    """How one stage of a shutdown went."""

    name: str
    seconds: float
    members: tuple[MemberReport, ...]

    @property
    def stuck(self) -> tuple[MemberReport, ...]:
        """Members that still run."""
        return tuple(member for member in self.members if member.outcome == "stuck")


@attrs.frozen(kw_only=True)
class SafeStateReport:
    """What became of one line when it was made safe.

    Attributes:
        name: Its name in the lab, such as ``"serial.stage"``.
        result: What became of it.
    """

    name: str
    result: SafeStateResult

    def __str__(self) -> str:
        if self.result.outcome == "failed":
            return f"NOT SAFE: {self.name}: {self.result.reason}"
        return f"{self.name:<24} safe state {self.result}"


@attrs.frozen(kw_only=True)
class ShutdownReport:
    """How a whole shutdown went, stage after stage.

    Attributes:
        reason: Why it happened.
        seconds: How long it took.
        timeout: How long it was allowed to take.
        stages: The stages in the order in which they were stopped.
        safe_states: What became of each line that has a safe state.
    """

    reason: str
    seconds: float
    timeout: float
    stages: tuple[StageReport, ...]
    safe_states: tuple[SafeStateReport, ...] = ()

    @property
    def unsafe(self) -> tuple[SafeStateReport, ...]:
        """Lines that may not be in their safe state."""
        return tuple(report for report in self.safe_states if report.result.outcome == "failed")

    @property
    def stuck(self) -> tuple[MemberReport, ...]:
        """Members that still run."""
        return tuple(member for stage in self.stages for member in stage.stuck)

    @property
    def failed(self) -> tuple[MemberReport, ...]:
        """Members that ended with an error."""
        return tuple(member for stage in self.stages for member in stage.members if member.outcome == "failed")

    @property
    def exit_code(self) -> int:
        """What a program that ended so tells its parent, unless a signal had stopped it: 0, 1, 3 or 4."""
        return EXIT_UNSAFE if self.unsafe else EXIT_STUCK if self.stuck else 1 if self.failed else 0

    def __str__(self) -> str:
        lines = [f"stopped in {self.seconds:.2f} s of {self.timeout:g} s: {self.reason}"]
        for stage in self.stages:
            lines.append(f"  {stage.name:<12} {stage.seconds:6.2f} s")
            lines += [f"    {_line(member)}" for member in stage.members]
        lines += [f"  {report}" for report in self.safe_states if report not in self.unsafe]
        lines += [str(report) for report in self.unsafe]  # last, where it is seen
        return "\n".join(lines)


def _line(member: MemberReport) -> str:
    text = f"{member.name:<24} {member.outcome:<9} {member.seconds:6.2f} s"
    if member.error is not None:
        text += f"  {type(member.error).__name__}: {member.error}"
    if member.restarts:
        text += f"  started again {member.restarts} times"
    if member.abandoned_threads:
        text += f"  left threads: {', '.join(member.abandoned_threads)}"
    if member.dropped_messages:
        text += f"  {member.dropped_messages} messages dropped"
    return text + "".join(f"\n      at {frame}" for frame in member.frames)
