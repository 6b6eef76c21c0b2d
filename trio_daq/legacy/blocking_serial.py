r"""The everyday face of pyserial's object over a shared port, so that old code and libraries take it for one.

It knows what the calls mean to old code; what they do to the line is `serial_calls`, and for how long the thread has
the line is `implicit_lease`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

from serial import PortNotOpenError, SerialBase, SerialException, SerialTimeoutException

from trio_daq.errors import DaqError, DoorInterruptedError, Sent, StateError
from trio_daq.legacy.hold import Hold
from trio_daq.legacy.host import Job, Verbs
from trio_daq.legacy.implicit_lease import ImplicitLease
from trio_daq.legacy.serial_calls import LONGEST, Came, SerialCalls, one_by_one
from trio_daq.legacy.serial_door import DRIVER_TIMEOUT, SerialDoor
from trio_daq.serialport import ModemLines, SerialGuard
from trio_daq.sharing import checked_timeout

_LINGER = 5.0
"""Seconds for which a reply that is not read keeps the line, at least."""


class BlockingSerial(SerialBase):
    r"""A `serial.Serial` for old code in a thread, over a `SharedSerialPort`.

    Whoever writes something that holds a ``?`` has the line until the reply is read: until a read has brought data that
    ends with the port's ``read_terminator``, or all that was asked for (``size`` bytes, up to ``expected``, a line),
    and nothing more has come; until `reset_input_buffer` or `close`; or until 5 s, or its longer `timeout`, after its
    last write or read. Then the line is made clean, what still comes reaches nobody, and the next call takes the line
    anew. A read, or a look at `in_waiting`, tells that commands without ``?`` are answered too: from then on each
    write keeps the line. What is not kept is given back after 20 ms, in which the next line of a reply may be asked
    for. Sequences that nobody may cut into stand in a ``with port.exclusive():`` block.

    Each call ends. A read without time limit (``timeout = None``) raises after 60 s. A write takes its
    ``write_timeout``, or the port's ``timeout``. The wait for the line comes on top: the port's ``acquire_timeout`` and
    what somebody's forgotten reply may take.

    Errors are `serial.SerialException`, those of writes that took too long `serial.SerialTimeoutException`; the cause
    is our own. A thread that is to stop is told so by one, once, and may clean up after that.

    Args:
        door: The port, as the script's function gets it.
        timeout: Seconds for each read; the port's own if omitted, None for no limit, 0 to take what has come.
        write_timeout: Seconds for each write; None or 0 for the port's own.

    Example::

        def old_script(serial):
            with BlockingSerial(serial, timeout=2) as port:
                port.write(b"*IDN?\r\n")
                print(port.readline())
    """

    def __init__(
        self, door: SerialDoor, timeout: float | Literal["port"] | None = "port", write_timeout: float | None = None
    ) -> None:
        self._shared, self._host = port, host = door._port, door._host
        self._mine = threading.local()
        config = port.config
        patience = config.acquire_timeout + _LINGER

        def verbs(guard: SerialGuard) -> Verbs:
            return SerialCalls(guard, config.read_terminator, config.timeout).verbs()

        # None of these knows this object, so that a thread's last reference to it is the last one, and closes it.
        self._verbs = verbs
        self._lease = ImplicitLease(
            host,
            config.path,
            lambda: port.acquire(host.owner, patience),
            verbs,
            patience=patience,
            linger=_LINGER,
            interruption=_interruption,
        )
        self._fixed: dict[str, object] = {
            "bytesize": config.data_bits,
            "parity": config.parity.value,
            "stopbits": config.stop_bits,
            "xonxoff": config.flow_control == "xonxoff",
            "rtscts": config.flow_control == "rtscts",
            "dsrdtr": config.flow_control == "dsrdtr",
            "inter_byte_timeout": None,
            "rs485_mode": None,
        }
        super().__init__(
            baudrate=port.baud_rate,
            bytesize=config.data_bits,
            parity=config.parity.value,
            stopbits=config.stop_bits,
            timeout=config.timeout if timeout == "port" else timeout,
            xonxoff=config.flow_control == "xonxoff",
            rtscts=config.flow_control == "rtscts",
            write_timeout=write_timeout,
            dsrdtr=config.flow_control == "dsrdtr",
        )
        self._port = self.name = self.portstr = config.path
        self.open()

    # --- reading and writing -----------------------------------------------------------------------------------------

    def write(self, data: Any) -> int:
        """Write all of *data* and return its length. A ``?`` in it says that a reply comes, to this thread alone."""
        data = bytes(data)
        self._check_open()
        if not data:
            return 0
        job = Job("write", (data,), {"timeout": self.write_timeout or None}, self._write_patience)
        # Text without an end is a piece of a command, and the rest must come right behind it.
        questions = sum(b"?" in piece for piece in one_by_one(data))
        goes_on = data.isascii() and data.decode("ascii").isprintable()
        self._do(job, lambda lease: lease.write(job, asks=questions, goes_on=goes_on, beside=True), writes=True)
        return len(data)

    def read(self, size: int = 1) -> bytes:
        """Read *size* bytes, or those that came within `timeout`."""
        return self._read("read", size, empty=size < 1)

    def read_until(self, expected: bytes = b"\n", size: int | None = None) -> bytes:
        """Read up to and including *expected*, or *size* bytes, or what came within `timeout`."""
        return self._read("read_until", bytes(expected), size, empty=size is not None and size < 1)

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line, or *size* bytes of it, or what came until nothing had come for `timeout`."""
        return self._read("read_line", None if size is None or size < 0 else size, empty=size == 0)

    @property
    def in_waiting(self) -> int:
        """How many bytes have come and were not read; 0 while the thread does not have the line, as nothing is its."""
        job = Job("count", patience=DRIVER_TIMEOUT)
        return int(self._do(job, lambda lease: lease.look(job)))

    @property
    def out_waiting(self) -> int:
        """How many bytes wait to be written: none, since `write` waits until they are."""
        self._check_open()
        return 0

    def reset_input_buffer(self) -> None:
        """Throw away what has come. A reply that was not read yet is given up, and with it the line."""
        self._check_open()
        job = Job("clear", patience=DRIVER_TIMEOUT)
        self._do(job, lambda lease: lease.clear(job))
        if self._shared.config.on_acquire == "keep":  # there may be something though the thread does not have the line
            self._do(job, lambda lease: lease.do(job))

    def reset_output_buffer(self) -> None:
        """Do nothing: there is no such buffer here."""
        self._check_open()

    def flush(self) -> None:
        """Do nothing: `write` has handed all to the driver."""
        self._check_open()

    # --- one thread alone --------------------------------------------------------------------------------------------

    @property
    def exclusive(self) -> Any:
        """``with port.exclusive(owner=None, timeout=None):`` has the port for the length of the block.

        As with `SerialDoor.exclusive`, nobody comes between the calls that this thread makes through this object
        inside it. pyserial has a flag by this name, which is true here; setting it changes nothing.
        """
        return self._exclusively

    @exclusive.setter
    def exclusive(self, exclusive: bool | None) -> None:
        """Take no notice."""

    @contextmanager
    def _exclusively(self, owner: str | None = None, timeout: float | None = None) -> Iterator[Self]:
        self._check_open()
        name = self._host.owner if owner is None else owner
        patience = self._shared.config.acquire_timeout if timeout is None else checked_timeout(timeout)
        self._lease.give_back()
        hold = Hold(self._host, self._shared.path, _interruption)
        self._in_its_words(lambda: hold.enter(lambda: self._shared.acquire(name, timeout), self._verbs, patience))
        outer, self._mine.hold = self._hold(), hold
        failed = True
        try:
            yield self
            failed = False
        finally:
            self._mine.hold = outer
            self._in_its_words(lambda: hold.leave(failed=failed))

    # --- open and closed ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the object usable again after `close`. The device itself is opened when it is first needed."""
        if self.is_open:
            raise SerialException("Port is already open.")
        self._reconfigure_port()
        self.is_open = True
        self.baudrate = self._baudrate  # which may have been set while it was closed

    def close(self) -> None:
        """Give up what the thread has, and refuse further calls. The shared port stays open for the others."""
        if getattr(self, "is_open", False):  # Python calls this for an object that was never made, too, in any thread
            self._baudrate = self._shared.baud_rate
            self.is_open = False
            self._lease.give_back()

    @property
    def port(self) -> str | None:
        """Path of the port; it cannot be changed."""
        return self._port

    @port.setter
    def port(self, port: str | None) -> None:
        if port not in (None, self._port):
            raise ValueError(f"this object stands for {self._port}, and cannot become {port!r}")

    # --- settings ----------------------------------------------------------------------------------------------------

    @property
    def baudrate(self) -> int:
        """Bits per second of the shared port. Setting another one changes it for all owners."""
        return self._shared.baud_rate

    @baudrate.setter
    def baudrate(self, baudrate: int) -> None:
        rate = int(baudrate) if isinstance(baudrate, (int, float, str)) else 0
        if rate < 1:
            raise ValueError(f"Not a valid baudrate: {baudrate!r}")
        if self.is_open and rate != self._shared.baud_rate:
            self._drive("set_baud_rate", rate)
        self._baudrate = rate

    def send_break(self, duration: float = 0.25) -> None:
        """Hold the line in the break condition for *duration* seconds, at most 5."""
        self._drive("send_break", duration)

    @property
    def cts(self) -> bool:
        """Clear to send."""
        return self._modem_lines().cts

    @property
    def dsr(self) -> bool:
        """Data set ready."""
        return self._modem_lines().dsr

    @property
    def ri(self) -> bool:
        """Ring indicator."""
        return self._modem_lines().ri

    @property
    def cd(self) -> bool:
        """Carrier detect."""
        return self._modem_lines().cd

    # These four are pyserial's hooks: it calls them when a property was set.

    def _reconfigure_port(self) -> None:
        for name, fixed in self._fixed.items():
            if (wanted := getattr(self, f"_{name}")) != fixed:
                setattr(self, f"_{name}", fixed)
                raise ValueError(
                    f"{self._shared.path}: {name} is {fixed!r} for all who share this port, and cannot be {wanted!r} "
                    "here; set it in the port's SerialPortConfig"
                )
        self._lease.linger = max(_LINGER, self.timeout or 0.0)

    def _update_rts_state(self) -> None:
        self._drive("set_modem_lines", rts=bool(self.rts))

    def _update_dtr_state(self) -> None:
        self._drive("set_modem_lines", dtr=bool(self.dtr))

    def _update_break_state(self) -> None:
        raise SerialException(f"{self._shared.path}: a shared port has no lasting break; use send_break")

    # --- how ---------------------------------------------------------------------------------------------------------

    def _read(self, verb: str, *arguments: Any, empty: bool) -> bytes:
        self._check_open()
        if empty:
            return b""
        timeout = self.timeout
        limit = timeout if timeout is not None and verb != "read_line" else LONGEST + (timeout or 0.0)
        job = Job(verb, (*arguments, timeout), patience=limit)
        came: Came = self._do(job, lambda lease: lease.read(job, lambda got: got.reply))
        return came.data

    def _modem_lines(self) -> ModemLines:
        lines: ModemLines = self._drive("modem_lines")
        return lines

    def _drive(self, verb: str, *arguments: Any, **options: Any) -> Any:
        job = Job(verb, arguments, options, DRIVER_TIMEOUT)
        return self._do(job, lambda lease: lease.do(job))

    def _do(self, job: Job, otherwise: Callable[[ImplicitLease[SerialGuard]], Any], *, writes: bool = False) -> Any:
        """Have *job* done in the block that this thread is in, or as the lease does it."""
        self._check_open()
        hold = self._hold()
        return self._in_its_words(lambda: otherwise(self._lease) if hold is None else hold.call(job), writes=writes)

    def _hold(self) -> Hold | None:
        hold: Hold | None = getattr(self._mine, "hold", None)
        return hold

    def _in_its_words(self, call: Callable[[], Any], *, writes: bool = False) -> Any:
        try:
            return call()
        except StateError:  # a bug of the program: a blocking call in the event loop
            raise
        except DaqError as error:
            kind = SerialTimeoutException if writes and isinstance(error, TimeoutError) else SerialException
            raise kind(str(error)) from error

    def _check_open(self) -> None:
        if not self.is_open:
            raise PortNotOpenError

    @property
    def _write_patience(self) -> float:
        return self.write_timeout or self._shared.config.timeout


def _interruption(*, resource: str, owner: str, sent: Sent) -> SerialException:
    cause = DoorInterruptedError(resource=resource, owner=owner, sent=sent)
    error = SerialException(str(cause))
    error.__cause__ = cause
    return error
