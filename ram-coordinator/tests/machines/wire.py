"""A wire between machines that are network namespaces: it delays packets, loses some, and can be cut.

    wire.py DELAY_MS LOSS_PERCENT DEVICE...

Makes a TUN device of each name; the n-th one has the address 10.77.0.n, which its owner gives it. Says READY, then
carries IPv4 packets from each device to the one of their destination. A line `cut N` on the standard input has all
packets from and to the n-th device vanish. Ends with the standard input.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def device(name: str) -> int:
    """The end of a new TUN device that sees its packets."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def main() -> None:
    delay, loss = float(sys.argv[1]) / 1e3, float(sys.argv[2]) / 100
    ends = [device(name) for name in sys.argv[3:]]
    number = {fd: n for n, fd in enumerate(ends, 1)}
    dice, cut, said = random.Random(7), set(), b""
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    print("READY", flush=True)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([sys.stdin.fileno(), *ends], [], [], wait)
        for fd in ready:
            if fd == sys.stdin.fileno():
                words = os.read(fd, 64)
                if not words:
                    return
                *lines, said = (said + words).split(b"\n")  # A line may come in pieces.
                cut.update(int(line.split()[1]) for line in lines)
                continue
            try:
                packet = os.read(fd, 65536)
            except OSError:
                continue  # Nothing after all, or its machine is gone.
            if len(packet) < 20 or packet[0] >> 4 != 4 or packet[16:19] != bytes([10, 77, 0]):
                continue  # Not of this network: IPv6's own talk, most likely.
            to = packet[19]
            if {number[fd], to} & cut or not 1 <= to <= len(ends) or dice.random() < loss:
                continue
            count += 1
            heapq.heappush(under_way, (time.monotonic() + delay, count, ends[to - 1], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, fd, packet = heapq.heappop(under_way)
            try:
                os.write(fd, packet)
            except OSError:
                pass  # Its owner is gone.


main()
