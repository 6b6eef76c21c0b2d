"""An instrument that answers as fast as Python can: the other end of the benchmarks, in a process of its own.

It opens a pty, prints its path, and answers each line of 32 bytes with a line of 40 bytes, until stdin ends.
"""

import os
import pty
import select
import sys
import tty

REPLY = b"r" * 39 + b"\n"


def main() -> None:
    master, client = pty.openpty()
    tty.setraw(master)
    tty.setraw(client)
    print(os.ttyname(client), flush=True)
    poll = select.poll()
    poll.register(master, select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN)
    pending = b""
    while True:
        for fd, _ in poll.poll():
            if fd != master:
                return
            pending += os.read(master, 4096)
            count = pending.count(b"\n")
            if count:
                pending = pending.rpartition(b"\n")[2]
                os.write(master, REPLY * count)


main()
