"""Open the bytes under a port by whatever its path names: a device, a TCP connection, or a URL that pyserial knows."""

from __future__ import annotations

import os

from trio_daq.serialport.byte_stream import ByteStream
from trio_daq.serialport.settings import SerialPortConfig


async def open_byte_stream(config: SerialPortConfig) -> ByteStream:
    """Open what ``config.path`` names. Cancelled, nothing stays open.

    Raises:
        LineOpenError: If a device cannot be opened; it says why.
        OSError: If what a URL names cannot be opened.
        ValueError: If the URL is none that pyserial knows.
    """
    scheme, is_url, _ = config.path.partition("://")
    if is_url and scheme.lower() == "socket":
        from trio_daq.serialport.socket_stream import open_socket_stream

        return await open_socket_stream(config)
    if is_url or os.name != "posix":
        from trio_daq.serialport.thread_stream import open_thread_stream

        return await open_thread_stream(config)
    from trio_daq.serialport.posix_stream import open_posix_stream

    return await open_posix_stream(config)
