"""What a lab uses and what else is plugged in: with what pyserial lists on this machine and real ptys."""

import os
import threading
from pathlib import Path

import pytest
import trio
from serial.tools import list_ports
from serial.tools.list_ports_common import ListPortInfo

from trio_daq.config import DualConfig, RecordingConfig, SubsystemConfig
from trio_daq.discovery import find_serial_ports
from trio_daq.lifecycle import Device, DualRuntimeManager
from trio_daq.lifecycle import devices as devices_module
from trio_daq.serialport import SerialPortConfig
from trio_daq.visa import VisaSessionConfig

pytestmark = pytest.mark.skipif(os.name != "posix", reason="ptys are POSIX")


def adapter(device: str, serial_number: str | None, product: int = 0x6001) -> ListPortInfo:
    """What pyserial would list for a USB adapter at *device*."""
    port = ListPortInfo(device)
    port.vid, port.pid, port.serial_number, port.description = 0x0403, product, serial_number, "USB Serial"
    return port


class System:
    """Stands in for the operating system's list of ports, which no test can plug things into."""

    def __init__(self) -> None:
        self.ports: list[ListPortInfo] = []
        self.asked = 0
        self.asked_in: set[int] = set()

    def comports(self) -> list[ListPortInfo]:
        self.asked += 1
        self.asked_in.add(threading.get_ident())
        return list(self.ports)


@pytest.fixture
def system(monkeypatch):
    stand_in = System()
    monkeypatch.setattr(list_ports, "comports", stand_in.comports)
    return stand_in


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """A directory that plugs can be seen in, in place of /dev."""
    folder = tmp_path / "dev"
    folder.mkdir()
    monkeypatch.setattr(devices_module, "_NODES", str(folder))
    return folder


@pytest.fixture
def slave():
    master, slave = os.openpty()
    yield os.ttyname(slave)
    os.close(master)
    os.close(slave)


def lab(**serial: SerialPortConfig) -> DualRuntimeManager:
    return DualRuntimeManager(
        DualConfig(
            serial=serial,
            visa={"dmm": VisaSessionConfig(resource="TCPIP::127.0.0.1::1::SOCKET")},
            v2=SubsystemConfig(),
            recording=RecordingConfig(enabled=False),
        )
    )


async def test_what_this_machine_has_is_listed():
    """The list of the real system is that of pyserial, whatever that is here."""
    assert [port.path for port in find_serial_ports()] == sorted(port.device for port in list_ports.comports())


async def test_a_lab_lists_its_own_lines_first_and_then_what_else_is_plugged_in(system, slave, autojump_clock):
    """A port of the lab is found under any of its names, with what the system says of it; the others have no name."""
    system.ports = [adapter("/dev/ttyUSB9", "OTHER"), adapter(slave, "A50285BI")]
    manager = lab(stage=SerialPortConfig(path="usb:0403:6001:A50285BI"), gone=SerialPortConfig(path="/dev/ttyGONE"))
    manager.share("camera", object())
    assert await manager.devices() == (
        Device(
            kind="serial",
            resource="usb:0403:6001:A50285BI",
            used_as="stage",
            state="lost",
            description="USB Serial",
            usb_path="usb:0403:6001:A50285BI",
        ),
        Device(kind="serial", resource="/dev/ttyGONE", used_as="gone", state="lost"),
        Device(kind="visa", resource="TCPIP::127.0.0.1::1::SOCKET", used_as="dmm", state="closed"),
        Device(kind="device", resource="camera", used_as="camera", state="free"),
        Device(
            kind="serial",
            resource="/dev/ttyUSB9",
            description="USB Serial",
            usb_path="usb:0403:6001:OTHER",
        ),
    )
    assert threading.get_ident() not in system.asked_in


async def test_twins_have_no_usb_path(system):
    """Two adapters without a serial number cannot be told apart, so neither is offered a path that means both."""
    system.ports = [adapter("/dev/ttyUSB0", None), adapter("/dev/ttyUSB1", None), adapter("/dev/ttyUSB2", None, 0x6015)]
    assert [port.usb_path for port in find_serial_ports()] == [None, None, "usb:0403:6015"]


async def test_the_system_is_asked_once_in_30_s_and_after_a_plug(system, nodes: Path, autojump_clock):
    """Between two plugs the list is kept for 30 s; refresh asks at once."""
    manager = lab()
    await manager.devices()
    await manager.devices()
    assert system.asked == 1
    await manager.devices(refresh=True)
    assert system.asked == 2
    (nodes / "ttyUSB0").touch()
    system.ports = [adapter("/dev/ttyUSB0", "NEW")]
    assert [device.resource for device in await manager.devices()][-1] == "/dev/ttyUSB0"
    assert system.asked == 3
    await trio.sleep(29)
    await manager.devices()
    assert system.asked == 3
    await trio.sleep(2)
    await manager.devices()
    assert system.asked == 4


async def test_who_has_a_port_open_is_said(system, slave):
    """A descriptor of this very process on the port is found, without opening it."""
    system.ports = [adapter(slave, "A1")]
    lock = os.open(slave, os.O_RDWR | os.O_NOCTTY)
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        [device] = [device for device in await lab().devices() if device.used_as is None]
        assert "this process" in device.held_by[0]
    finally:
        os.close(lock)
