"""What to know about a VISA session before opening it.

Settings are frozen and checked when they are built. They open nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import attrs

from trio_daq.sharing import checked_timeout, positive_int, positive_seconds, whole_number
from trio_daq.wire import Exchange, SyncQuery, reply_rule

CheckErrors = Literal["never", "after_write", "after_batch", "on_timeout"]
Dialect = str | Callable[[str], bool]
"""``"scpi"``, ``"tsp"``, ``"echo"``, or a function that is told a command and returns whether it is answered."""


def _resource(_: Any, __: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or "::" not in value:
        raise ValueError(
            f"resource must be a VISA resource name, such as 'TCPIP0::192.168.1.100::INSTR', not {value!r}"
        )


def _text(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{attribute.name} must be text of at least one character, such as '\\n', not {value!r}")


def _bytes_in(encoding: str) -> Callable[[Any, attrs.Attribute[Any], str], None]:
    """Return a validator of text that goes over the wire in *encoding*."""

    def check(_: Any, attribute: attrs.Attribute[Any], value: str) -> None:
        _text(_, attribute, value)
        try:
            value.encode(encoding)
        except UnicodeEncodeError:
            raise ValueError(f"{attribute.name} must be text in {encoding}, not {value!r}") from None

    return check


def _optional_seconds(_: Any, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None:
        checked_timeout(value, attribute.name, zero=False)


def _is_bool(_: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{attribute.name} is true or false, not {value!r}")


def _dialect(_: Any, __: attrs.Attribute[Any], value: Any) -> None:
    reply_rule(value)


def _steps(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen(kw_only=True)
class VisaSessionConfig:
    r"""Settings of one VISA session.

    Attributes:
        resource: VISA resource name, for example ``TCPIP0::192.168.1.100::INSTR`` or ``TCPIP::host::5025::SOCKET``.
        timeout: Seconds for each command that names no deadline of its own; also for opening.
        backend: PyVISA library: ``"@py"`` (pyvisa-py), ``"@ivi"``, ``"@sim"`` or a path, as in
            ``pyvisa.ResourceManager(backend)``.
        transport: ``"native"`` speaks to a ``TCPIP::…::SOCKET`` resource from Trio itself; ``"pyvisa"`` uses
            *backend*; ``"auto"`` is native where that is possible and *backend* is ``"@py"``.
        dialect: Which commands are answered: in ``"scpi"`` those whose header ends in ``?``, in ``"tsp"`` those that
            print, in ``"echo"`` all; or a function that is told the command.
        write_termination: What ends a command.
        read_termination: What ends a reply.
        queue_size: Commands of one priority that may wait.
        queue_warning: Commands that wait from which on a warning is logged, once until the queue is short again.
        bus: Sessions of one bus have one command under way among them at any time. None: the GPIB board of a GPIB
            resource, no other session for others.
        max_open: How many sessions of the bus may be open at once; the one not used for longest is closed for the
            next. None: all.
        max_block: Bytes that a block may have.
        max_hold: Seconds after which a transaction is ended and its block cancelled; None: never.
        check_errors: When the error queue of the instrument is read: ``"never"``, ``"after_write"``,
            ``"after_batch"`` or ``"on_timeout"``.
        error_query: What reads one error of it.
        resync_timeout: Seconds for making the connection trustworthy again after an unfinished exchange.
        quiet_time: Where there is neither device clear, nor reopening, nor a sync query that helps (serial lines): this
            many seconds of silence end what may still come. None: *timeout*.
        sync_query: A harmless question with a known answer, by which late replies are told apart from the next one. It
            is asked where reopening does not help, and whenever the connection has been opened.
        reopen: Whether the connection may be closed and opened to get rid of what may still come.
        reconnect: After the connection was lost, open it again, with growing pauses; commands wait for it within their
            deadlines. False: only `VisaSessionManager.reconnect` does.
        identify: Asked whenever the connection has been opened; another reply than the expected one means another
            instrument, which gets nothing more.
        on_reconnect: Steps to take whenever the connection has been opened again, before anybody's command.
        safe_state: Steps that make the instrument safe, such as ``{write = "OUTP OFF"}`` and ``{query = "OUTP?", expect
            = "0"}``: taken by `VisaSessionManager.make_safe`, after the connection was lost and came back, and as the
            last thing before it closes.
        safe_order: Lines of a lower number are made safe before those of a higher one; equal ones at once.
        trace: Whether every message is also logged, by ``trio_daq.trace``.
    """

    resource: str = attrs.field(validator=_resource)
    timeout: float = attrs.field(default=2.0, validator=positive_seconds)
    backend: str = attrs.field(default="@py", validator=_text)
    transport: Literal["auto", "native", "pyvisa"] = attrs.field(
        default="auto", validator=attrs.validators.in_(("auto", "native", "pyvisa"))
    )
    dialect: Dialect = attrs.field(default="scpi", validator=_dialect)
    write_termination: str = attrs.field(default="\n", validator=_bytes_in("ASCII"))
    read_termination: str = attrs.field(default="\n", validator=_bytes_in("Latin-1"))
    queue_size: int = attrs.field(default=100, validator=positive_int)
    queue_warning: int = attrs.field(default=10, validator=positive_int)
    bus: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    max_open: int | None = attrs.field(default=None, validator=attrs.validators.optional(positive_int))
    max_block: int = attrs.field(default=64 * 1024 * 1024, validator=positive_int)
    max_hold: float | None = attrs.field(default=None, validator=_optional_seconds)
    check_errors: CheckErrors = attrs.field(
        default="never", validator=attrs.validators.in_(("never", "after_write", "after_batch", "on_timeout"))
    )
    error_query: str = attrs.field(default="SYST:ERR?", validator=_bytes_in("ASCII"))
    resync_timeout: float = attrs.field(default=2.0, validator=positive_seconds)
    quiet_time: float | None = attrs.field(default=None, validator=_optional_seconds)
    sync_query: SyncQuery | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(SyncQuery))
    )
    reopen: bool = attrs.field(default=True, validator=_is_bool)
    reconnect: bool = attrs.field(default=True, validator=_is_bool)
    identify: Exchange | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Exchange))
    )
    on_reconnect: tuple[Exchange, ...] = attrs.field(
        default=(),
        converter=_steps,
        validator=attrs.validators.deep_iterable(
            attrs.validators.instance_of(Exchange), attrs.validators.instance_of(tuple)
        ),
    )
    safe_state: tuple[Exchange, ...] = attrs.field(
        default=(),
        converter=_steps,
        validator=attrs.validators.deep_iterable(
            attrs.validators.instance_of(Exchange), attrs.validators.instance_of(tuple)
        ),
    )
    safe_order: int = attrs.field(default=0, validator=whole_number)
    trace: bool = attrs.field(default=False, validator=_is_bool)

    def __attrs_post_init__(self) -> None:
        if self.transport == "native" and not self._is_socket:
            raise ValueError(
                f"transport 'native' is for TCPIP::HOST::PORT::SOCKET resources, not for {self.resource!r}"
            )
        if self.max_open is not None and self.bus is None:
            raise ValueError("max_open is about a bus: give bus too, the same name in each session of it")
        if self.identify is not None and not self.identify.query:
            raise ValueError("identify must be a query, such as Exchange(query='*IDN?', expect='ACME,.*')")

    @property
    def is_native(self) -> bool:
        """Whether Trio itself speaks to the instrument, without PyVISA."""
        return self.transport == "native" or (self.transport == "auto" and self._is_socket and self.backend == "@py")

    @property
    def _is_socket(self) -> bool:
        name = self.resource.upper()
        return name.startswith("TCPIP") and name.endswith("::SOCKET")
