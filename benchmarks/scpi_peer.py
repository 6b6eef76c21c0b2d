"""The instrument at the other end of the VISA benchmarks where there is no C compiler: see scpi_peer.c."""

import socket
import sys
import threading

REPLY = b"r" * 39 + b"\n"
WAVEFORM, FLAT = (b"#74000000" + data + b"\n" for data in (bytes(range(256)) * 15_625, b"f" * 4_000_000))


def serve(link: socket.socket) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with link, link.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"CURV?"):
                link.sendall(FLAT if b" " in line else WAVEFORM)
            elif b"?" in line:
                link.sendall(REPLY)


def accept(listener: socket.socket) -> None:
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()


for _ in range(int(sys.argv[1])):
    server = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=accept, args=[server], daemon=True).start()
    print(server.getsockname()[1], flush=True)
sys.stdin.read()  # until the client ends
