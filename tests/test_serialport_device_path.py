"""A port may be named by its USB adapter, which is found wherever it is plugged in."""

import pytest
from serial.tools.list_ports_common import ListPortInfo

from trio_daq.errors import LineOpenError
from trio_daq.serialport.device_path import UsbAdapter, choose_device, find_device, parse_usb_path


def port(
    device: str, vid: int | None = None, pid: int | None = None, serial: str | None = None, at: str = ""
) -> object:
    found = ListPortInfo(device)
    found.vid, found.pid, found.serial_number, found.location = vid, pid, serial, at or None
    return found


STAGE = port("/dev/ttyUSB0", 0x0403, 0x6001, "A50285BI", "1-2")
PUMP = port("/dev/ttyUSB1", 0x0403, 0x6001, "A9007UX1", "1-3")
OVEN = port("/dev/ttyACM0", 0x2341, 0x0043, None, "1-4")
BOARD = port("/dev/ttyS0")
"""A port of the mainboard, which has no USB ids."""


@pytest.mark.parametrize(
    "path",
    [
        "/dev/ttyUSB0",
        "/dev/serial/by-id/usb-FTDI_FT232R-if00-port0",
        "COM3",
        r"\\.\COM12",
        "socket://10.0.0.7:4001",
        "usb",
    ],
)
def test_other_paths_pass_as_they_are(path: str) -> None:
    """A device, a link, a COM name and a URL are no USB adapters."""
    assert find_device(path) == path
    assert parse_usb_path(path) is None


@pytest.mark.parametrize(
    ("path", "device"),
    [
        ("usb:0403:6001:A50285BI", "/dev/ttyUSB0"),
        ("usb:0403:6001:A9007UX1", "/dev/ttyUSB1"),
        ("usb:403:6001:a9007ux1", "/dev/ttyUSB1"),
        ("USB:2341:0043", "/dev/ttyACM0"),
        ("usb:2341:43", "/dev/ttyACM0"),
    ],
)
def test_an_adapter_is_found(path: str, device: str) -> None:
    """By its ids, and its serial number where that is given; leading zeros and letter case do not count."""
    assert choose_device(path, [BOARD, STAGE, PUMP, OVEN]) == device


def test_a_moved_adapter_is_found_under_its_new_name() -> None:
    """The same path leads to wherever the adapter is now."""
    moved = port("/dev/ttyUSB7", 0x0403, 0x6001, "A50285BI", "1-9")
    assert choose_device("usb:0403:6001:A50285BI", [STAGE, PUMP]) == "/dev/ttyUSB0"
    assert choose_device("usb:0403:6001:A50285BI", [PUMP, moved]) == "/dev/ttyUSB7"


def test_a_serial_number_may_hold_colons() -> None:
    """As the MAC addresses do that some boards have for one."""
    assert parse_usb_path("usb:303a:1001:84:F7:03:A0") == UsbAdapter(0x303A, 0x1001, "84:F7:03:A0")


@pytest.mark.parametrize(
    ("path", "ports", "said"),
    [
        (
            "usb:0403:6001",
            [PUMP, STAGE, OVEN],
            (
                "2 serial ports match. Write which one: usb:0403:6001:A50285BI (now /dev/ttyUSB0), "
                "usb:0403:6001:A9007UX1 (now /dev/ttyUSB1)."
            ),
        ),
        (
            "usb:0403:6001:A1",
            [PUMP, OVEN, BOARD],
            (
                "no such USB adapter is plugged in. Found here: usb:2341:0043 (now /dev/ttyACM0), "
                "usb:0403:6001:A9007UX1 (now /dev/ttyUSB1)."
            ),
        ),
        ("usb:0403:6001", [BOARD], "no such USB adapter is plugged in. No USB serial ports were found."),
        (  # two channels of one adapter: no usb: path tells them apart
            "usb:0403:6010:FT1",
            [port("/dev/ttyUSB4", 0x0403, 0x6010, "FT1", "1-5:1.0"), port("/dev/ttyUSB5", 0x0403, 0x6010, "FT1")],
            (
                "2 serial ports match. Write which one: /dev/ttyUSB4 (USB socket 1-5:1.0; see /dev/serial/by-path), "
                "/dev/ttyUSB5."
            ),
        ),
        (  # the path without a serial number would mean both
            "usb:1a86:7523",
            [port("/dev/ttyUSB6", 0x1A86, 0x7523), port("/dev/ttyUSB8", 0x1A86, 0x7523, "X1")],
            "2 serial ports match. Write which one: /dev/ttyUSB6, usb:1a86:7523:X1 (now /dev/ttyUSB8).",
        ),
        (  # what a device says of itself is not trusted
            "usb:0001:0001",
            [port("/dev/ttyUSB0", 2, 2, "\x1b[31m")],
            r"no such USB adapter is plugged in. Found here: /dev/ttyUSB0.",
        ),
    ],
)
def test_no_adapter_or_several(path: str, ports: list[ListPortInfo], said: str) -> None:
    """What there is, each written so that it can be copied."""
    with pytest.raises(LineOpenError) as caught:
        choose_device(path, ports)
    assert str(caught.value) == f"{path}: cannot be opened: {said}"


@pytest.mark.parametrize("path", ["usb:", "usb:0403", "usb:0403:", "usb:0403:600g", "usb:00403:6001", "usb:0403:6001:"])
def test_a_malformed_path_is_a_mistake(path: str) -> None:
    """It gets the right form, at any door."""
    said = (
        f"{path!r} names no USB adapter; write usb:VID:PID or usb:VID:PID:SERIAL, VID and PID as one to four "
        "hexadecimal digits, such as 'usb:0403:6001' or 'usb:0403:6001:A50285BI'"
    )
    for door in (parse_usb_path, find_device, lambda path: choose_device(path, [STAGE])):
        with pytest.raises(ValueError, match="names no USB adapter") as caught:
            door(path)
        assert str(caught.value) == said


def test_the_ports_of_this_computer_are_asked() -> None:
    """Ids that nobody was given are not found here."""
    with pytest.raises(LineOpenError, match="no such USB adapter is plugged in"):
        find_device("usb:ffff:fffe:NONE")
