"""What the tests of hosts run on them: `serve` counts what each connection brings and answers with the count, `send`
sends so many MiB over so many connections and prints bytes per second, `datagrams` counts UDP packets that arrive.

    python host_traffic.py serve | send ADDRESS MIB | datagrams ADDRESS COUNT
"""

import socket
import sys
import threading
import time

PORT = 4321
MIB = 1 << 20


def serve() -> None:
    """TCP and UDP, over IPv4 and IPv6, until killed; says when it listens."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
    datagrams.bind(("0.0.0.0", PORT))
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    print("listening", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, datagrams), daemon=True).start()


def answer(connection: socket.socket, datagrams: socket.socket) -> None:
    """The bytes that came, or, where none came, the datagrams that lie here."""
    count = 0
    buffer = bytearray(MIB)
    while got := connection.recv_into(buffer):
        count += got
    datagrams.setblocking(False)
    while not count or count < 0:
        try:
            datagrams.recv(2048)
        except BlockingIOError:
            break
        count -= 1
    connection.sendall(str(abs(count)).encode())
    connection.close()


def ask(address: str, payload: bytes, times: int) -> int:
    connection = socket.create_connection((address, PORT), timeout=2)
    connection.settimeout(60)
    for _ in range(times):
        connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)
    return int(connection.recv(64))


def send(address: str, mib: int) -> float:
    started_s = time.monotonic()
    count = ask(address, bytes(MIB), mib)
    assert count == mib * MIB
    return count / (time.monotonic() - started_s)


def datagrams(address: str, count: int) -> int:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(count):
        sender.sendto(bytes(100), (address, PORT))
    time.sleep(0.2)
    return ask(address, b"", 0)


if __name__ == "__main__":
    mode, *arguments = sys.argv[1:]
    if mode == "serve":
        serve()
    print({"send": send, "datagrams": datagrams}[mode](arguments[0], int(arguments[1])))
