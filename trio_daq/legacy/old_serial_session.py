"""A VISA session of old code on a shared serial port: ``ASRL/dev/ttyUSB0::INSTR``, where that is a port of the lab.

What VISA's calls mean is said in pyserial's, and for how long the thread has the line is theirs to know.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from trio_daq.errors import CommandTimeoutError, LineFeatureError
from trio_daq.legacy.blocking_serial import BlockingSerial
from trio_daq.legacy.host import DoorHost
from trio_daq.legacy.serial_door import SerialDoor
from trio_daq.serialport import SharedSerialPort


class OldSerialSession:
    """A session of old code on a shared port, with the calls of `OldVisaSession`.

    They raise `serial.SerialException`, caused by our error, and `CommandTimeoutError`.

    Args:
        port: The shared port.
        host: Serves it.

    Attributes:
        timeout: Seconds that a call waits for the instrument.
    """

    def __init__(self, port: SharedSerialPort, host: DoorHost) -> None:
        self.timeout = 2.0
        self._owner = host.owner
        self._config = port.config
        self._port = BlockingSerial(SerialDoor(host, port))
        self._lock: AbstractContextManager[Any] | None = None

    def write(self, data: bytes) -> None:
        """Write *data*."""
        self._port.write_timeout = self.timeout
        self._port.write(data)

    def trigger(self) -> None:
        """Write ``*TRG``."""
        self.write(b"*TRG" + self._config.write_terminator)

    def read_stb(self) -> int:
        """Refuse: a serial port has no status byte.

        Raises:
            LineFeatureError: Always.
        """
        reason = "a serial port carries messages only; ask *STB?"
        raise LineFeatureError(resource=self._config.path, owner=self._owner, action="a serial poll", reason=reason)

    def read(self, count: int, termination: bytes | None) -> tuple[bytes, bool]:
        """Return at most *count* bytes, and whether all that was to come has; see `OldVisaSession.read`."""
        self._port.timeout = self.timeout
        data = self._port.read(count) if termination is None else self._port.read_until(termination, count)
        ended = termination is not None and data.endswith(termination)
        if len(data) < count and not ended:
            raise CommandTimeoutError(
                resource=self._config.path,
                command="(a read)",
                owner=self._owner,
                phase="in_flight",
                sent="yes",
                waited=self.timeout,
                trouble=f"only {data[:60]!r} came",
            )
        return data, ended

    def clear(self) -> None:
        """Throw away what has come."""
        self._port.reset_input_buffer()

    def lock(self, timeout: float) -> None:
        """Have the port until `unlock`. Both are for the same thread."""
        lock = self._port.exclusive(timeout=timeout)
        lock.__enter__()
        self._lock = lock

    def unlock(self) -> None:
        """Give the port back, if it was locked."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.__exit__(None, None, None)

    @property
    def is_locked(self) -> bool:
        """Whether it was locked."""
        return self._lock is not None

    def close(self) -> None:
        """Give up whatever it has."""
        self.unlock()
        self._port.close()
