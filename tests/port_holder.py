"""A program that has a serial port until its stdin ends or it is killed: ``port_holder.py HOW PATH [USER]``.

HOW is ``flock``, ``exclusive`` (TIOCEXCL alone), ``plain``, ``record`` (a lock of lockf(3), which keeps nobody off a
port), ``inherited`` (a flock whose setter has ended) or ``shared`` (a `SharedSerialPort`). Run by root, it becomes
USER, but is in none of their groups. It prints ``held PID``, or the name of an error and what it says.
"""

import fcntl
import functools
import grp
import os
import pwd
import sys
import termios

assert grp  # imported early: USER may not read the files


def hold(how, path):
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    if how == "exclusive":
        fcntl.ioctl(fd, termios.TIOCEXCL)
    if how == "record":
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if how in ("flock", "inherited"):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if how == "inherited" and os.fork():
        os._exit(0)
    print("held", os.getpid(), flush=True)
    sys.stdin.read()


def shared_port(path):
    """Return a function that shares the port: all that it imports is imported now."""
    import trio

    import trio_daq.serialport.posix_stream
    from trio_daq.serialport import SerialPortConfig, SharedSerialPort

    async def share():
        port = SharedSerialPort(SerialPortConfig(path=path, quiet_time=0.01))
        async with port.acquire("child"):
            print("held", os.getpid(), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
        await port.aclose()

    assert trio_daq.serialport.posix_stream
    return functools.partial(trio.run, share)


def main(how, path, user=None):
    run = shared_port(path) if how == "shared" else functools.partial(hold, how, path)
    if user is not None and os.getuid() == 0:
        os.setgroups([])
        os.setgid(pwd.getpwnam("nobody").pw_gid)
        os.setuid(pwd.getpwnam(user).pw_uid)
    try:
        run()
    except OSError as error:
        print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
