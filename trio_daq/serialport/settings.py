r"""What to know about a serial line before opening it.

Settings are frozen and checked when they are built, so a port never meets a value it cannot use. They open nothing.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

import attrs

from trio_daq.sharing import positive_int, positive_seconds
from trio_daq.wire import SyncQuery, parse_terminator


class SerialParity(enum.Enum):
    """Parity bit, by pyserial's letters."""

    NONE = "N"
    EVEN = "E"
    ODD = "O"
    MARK = "M"
    SPACE = "S"


def _bytes(value: Any) -> Any:
    return parse_terminator(value) if isinstance(value, str) else value


def _parity(value: Any) -> Any:
    if isinstance(value, str):
        for parity in SerialParity:
            if value.upper() in (parity.name, parity.value):
                return parity
        raise ValueError(f"parity must be one of none, even, odd, mark, space, not {value!r}")
    return value


def _path(_: Any, __: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"path must name a serial port, such as '/dev/ttyUSB0', not {value!r}")


def _terminator(_: Any, attribute: attrs.Attribute[Any], value: bytes) -> None:
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"{attribute.name} must be at least one byte, such as '\\n', not {value!r}")


@attrs.frozen(kw_only=True)
class SerialPortConfig:
    r"""Settings of one serial line.

    Attributes:
        path: Device path, for example ``/dev/ttyUSB0`` or a ``/dev/serial/by-id/…`` link.
        baud_rate: Bits per second.
        data_bits: 5, 6, 7 or 8.
        stop_bits: 1, 1.5 or 2.
        parity: A `SerialParity`, or its name as text.
        flow_control: ``"none"``, ``"rtscts"``, ``"dsrdtr"`` or ``"xonxoff"``.
        timeout: Seconds for each read or write of a guard that names none: in which the instrument ought to answer.
        acquire_timeout: Seconds to wait for the line where ``acquire`` names none.
        write_terminator: What `query` adds to a command; text may use ``\r``, ``\n``, ``\xHH`` or ``hex:0D``.
        read_terminator: What ends a reply; `query` strips it.
        quiet_time: Seconds of silence, from the time by which a reply was due, after which the line is taken as clean;
            None for *timeout*. A reply is due after *timeout*, or the longer time that its call named.
            Without a sync query, a reply that is later than this can reach the wrong caller: choose it above the
            longest delay. With one, it is how long its answer is awaited before it is asked again.
        sync_query: A harmless question with a known answer, by which late replies are told apart from the next one
            however late they are; None if the instrument has none.
        on_acquire: ``"discard"`` throws away input that came while nobody had the line, ``"keep"`` leaves it.
        max_hold: Seconds after which the port is taken back from whoever has it, and their block cancelled; None for
            never.
        exclusive: Refuse the port when another program has it, and keep others out.
    """

    path: str = attrs.field(validator=_path)
    baud_rate: int = attrs.field(default=9600, validator=positive_int)
    data_bits: int = attrs.field(default=8, validator=attrs.validators.in_((5, 6, 7, 8)))
    stop_bits: float = attrs.field(default=1.0, validator=attrs.validators.in_((1.0, 1.5, 2.0)))
    parity: SerialParity = attrs.field(
        default=SerialParity.NONE, converter=_parity, validator=attrs.validators.instance_of(SerialParity)
    )
    flow_control: Literal["none", "rtscts", "dsrdtr", "xonxoff"] = attrs.field(
        default="none", validator=attrs.validators.in_(("none", "rtscts", "dsrdtr", "xonxoff"))
    )
    timeout: float = attrs.field(default=1.0, validator=positive_seconds)
    acquire_timeout: float = attrs.field(default=2.0, validator=positive_seconds)
    write_terminator: bytes = attrs.field(default=b"\n", converter=_bytes, validator=_terminator)
    read_terminator: bytes = attrs.field(default=b"\n", converter=_bytes, validator=_terminator)
    quiet_time: float | None = attrs.field(default=None, validator=positive_seconds)
    sync_query: SyncQuery | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(SyncQuery))
    )
    on_acquire: Literal["discard", "keep"] = attrs.field(
        default="discard", validator=attrs.validators.in_(("discard", "keep"))
    )
    max_hold: float | None = attrs.field(default=None, validator=positive_seconds)
    exclusive: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))

    @property
    def quiet(self) -> float:
        """Seconds of silence that make a line clean."""
        return self.timeout if self.quiet_time is None else self.quiet_time
