r"""What to know about a serial line before opening it.

Settings are frozen and checked when they are built, so a port never meets a value it cannot use. They open nothing.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs

from trio_daq.sharing import checked_timeout, positive_int, positive_seconds, whole_number
from trio_daq.wire import Exchange, SyncQuery, check_pattern, parse_terminator


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
    if value.lower().startswith("usb:"):
        from trio_daq.serialport.device_path import parse_usb_path  # late: it brings in pyserial

        parse_usb_path(value)


def _terminator(_: Any, attribute: attrs.Attribute[Any], value: bytes) -> None:
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"{attribute.name} must be at least one byte, such as '\\n', not {value!r}")


def _pause(_: Any, attribute: attrs.Attribute[Any], value: float) -> None:
    checked_timeout(value, attribute.name)


def _pattern(_: Any, attribute: attrs.Attribute[Any], value: bytes) -> None:
    check_pattern(attribute.name, value)


def _as_bytes(value: Any) -> Any:
    if isinstance(value, str):
        if not value.isascii():
            raise ValueError(f"{value!r} is no ASCII text; give bytes")
        return value.encode("ascii")
    return value


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _station_names(_: Any, __: attrs.Attribute[Any], value: Mapping[str, SyncQuery]) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"stations must give each station's sync query by its name, not {value!r}")
    for name, query in value.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"stations must have names, not {name!r}")
        if not isinstance(query, SyncQuery):
            raise TypeError(f"stations must each have a sync query, and that of {name!r} is {query!r}")


def _steps(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _one_of(*choices: object) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name} must be one of {', '.join(map(repr, choices))}, not {value!r}")

    return check


def _made_of(kind: type, example: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"{attribute.name} must be {example}, not {value!r}")

    return check


def _each_a_step(_: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(step, Exchange) for step in value):
        raise TypeError(f"{attribute.name} must be a list of steps, such as [Exchange(write='RST')], not {value!r}")


_optional = attrs.validators.optional
_is_bool = _made_of(bool, "True or False")


@attrs.frozen(kw_only=True)
class SerialPortConfig:
    r"""Settings of one serial line.

    Attributes:
        path: Device path, for example ``/dev/ttyUSB0`` or a ``/dev/serial/by-id/…`` link; ``usb:VID:PID`` or
            ``usb:VID:PID:SERIAL``, wherever the device is plugged in; a COM name; or a URL that pyserial knows, such as
            ``socket://HOST:PORT``.
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
        sync_every: Seconds of use after which the sync query is asked again though nothing was odd. A line that the
            instrument sent unasked, and that was taken for a reply, shifts all that follow; this ends it and says so.
        stations: On a bus with several instruments, the sync query of each by its name: ``acquire`` then names the
            station, and the one that owes a reply has to answer before anybody else gets the line.
        min_gap: Seconds of silence between the last byte on the line and the next command.
        char_delay: Seconds between the bytes of a command, for instruments that lose them otherwise.
        echo: The instrument sends each command back before its reply: it is read and compared.
        unsolicited: A regular expression for whole lines that the instrument sends by itself. They go to
            `SharedSerialPort.unsolicited` instead of being taken as replies; empty for none.
        on_acquire: ``"discard"`` throws away input that came while nobody had the line, ``"keep"`` leaves it to who
            reads next. A query starts on an empty line in any case.
        max_hold: Seconds after which the port is taken back from whoever has it, and their block cancelled; None for
            never.
        exclusive: Refuse the port when another program has it, and keep others out.
        reconnect: After the device went away, wait for it to come back, within the deadline of whoever is in line;
            False gives the first error.
        identify: Asked whenever the port has been opened; another reply than the expected one means another device.
        on_reconnect: Steps to take when the device has come back, before anybody gets the port.
        safe_state: Steps that make the instrument safe, such as ``{write = "SHUT 0"}`` and ``{query = "SHUT?", expect =
            "0"}``: taken by `SharedSerialPort.make_safe`, after the device went away and came back, and as the last
            thing before the port closes.
        safe_order: Lines of a lower number are made safe before those of a higher one; equal ones at once.
        trace: Log every message to ``trio_daq.trace``. The last 200 exchanges are kept in any case.
    """

    path: str = attrs.field(converter=_as_text, validator=_path)
    baud_rate: int = attrs.field(default=9600, validator=positive_int)
    data_bits: int = attrs.field(default=8, validator=_one_of(5, 6, 7, 8))
    stop_bits: float = attrs.field(default=1.0, validator=_one_of(1.0, 1.5, 2.0))
    parity: SerialParity = attrs.field(
        default=SerialParity.NONE, converter=_parity, validator=_made_of(SerialParity, "a SerialParity, or its name")
    )
    flow_control: Literal["none", "rtscts", "dsrdtr", "xonxoff"] = attrs.field(
        default="none", validator=_one_of("none", "rtscts", "dsrdtr", "xonxoff")
    )
    timeout: float = attrs.field(default=1.0, validator=positive_seconds)
    acquire_timeout: float = attrs.field(default=2.0, validator=positive_seconds)
    write_terminator: bytes = attrs.field(default=b"\n", converter=_bytes, validator=_terminator)
    read_terminator: bytes = attrs.field(default=b"\n", converter=_bytes, validator=_terminator)
    quiet_time: float | None = attrs.field(default=None, validator=_optional(positive_seconds))
    sync_query: SyncQuery | None = attrs.field(
        default=None,
        validator=_optional(_made_of(SyncQuery, "a SyncQuery('ECHO {nonce}', '{nonce}')")),
    )
    sync_every: float = attrs.field(default=10.0, validator=positive_seconds)
    stations: Mapping[str, SyncQuery] = attrs.field(factory=dict, validator=_station_names, hash=False)
    min_gap: float = attrs.field(default=0.0, validator=_pause)
    char_delay: float = attrs.field(default=0.0, validator=_pause)
    echo: bool = attrs.field(default=False, validator=_is_bool)
    unsolicited: bytes = attrs.field(default=b"", converter=_as_bytes, validator=_pattern)
    on_acquire: Literal["discard", "keep"] = attrs.field(default="discard", validator=_one_of("discard", "keep"))
    max_hold: float | None = attrs.field(default=None, validator=_optional(positive_seconds))
    exclusive: bool = attrs.field(default=True, validator=_is_bool)
    reconnect: bool = attrs.field(default=True, validator=_is_bool)
    identify: Exchange | None = attrs.field(
        default=None,
        validator=_optional(_made_of(Exchange, "an Exchange(query='*IDN?', expect='ACME,.*')")),
    )
    on_reconnect: tuple[Exchange, ...] = attrs.field(
        default=(),
        converter=_steps,
        validator=_each_a_step,
    )
    safe_state: tuple[Exchange, ...] = attrs.field(default=(), converter=_steps, validator=_each_a_step)
    safe_order: int = attrs.field(default=0, validator=whole_number)
    trace: bool = attrs.field(default=False, validator=_is_bool)

    def __attrs_post_init__(self) -> None:
        if self.stations and self.sync_query is not None:
            raise ValueError("a port has either stations, each with its own sync query, or one sync_query")
        if len(set(self.stations.values())) < len(self.stations):
            raise ValueError("stations must each have a sync query of their own: two of them have the same")
        for query in (self.sync_query, *self.stations.values()):
            if query is not None and any(end in part for end, part in self._ends_in(query)):
                raise ValueError("a sync query and its answer stand without the port's terminators: query adds them")
        if self.identify is not None and not self.identify.query:
            raise ValueError("identify must be a query, such as Exchange(query='*IDN?', expect='ACME,.*')")

    @property
    def quiet(self) -> float:
        """Seconds of silence that make a line clean."""
        return self.timeout if self.quiet_time is None else self.quiet_time

    def _ends_in(self, query: SyncQuery) -> list[tuple[bytes, bytes]]:
        pairs = [(query.query, query.answer), *([query.other] if query.other is not None else [])]
        ends = (self.write_terminator, self.read_terminator)
        return [(end, part) for pair in pairs for end, part in zip(ends, pair, strict=True)]
