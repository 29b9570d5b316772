"""A wire between network namespaces that forwards packets in user space: at a rate, after a delay.

python tests/wire.py --megabits_per_second=100 --delay_milliseconds=5 NAMESPACE=10.77.0.1 NAMESPACE=10.77.0.2

Each namespace gets a device `wire0` and sends into the wire at this rate; what it sends arrives after this delay. In
place of `tc`'s netem, which many kernels are built without. Says `ready`, and ends with its standard input.
"""

import argparse
import ctypes
import fcntl
import heapq
import ipaddress
import itertools
import os
import select
import struct
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MAX_QUEUED_SECONDS = 0.25  # what a switch would hold; what is sent beyond that is lost


def open_device(namespace: str) -> int:
    """A new device `wire0` in that namespace; what is read from it was sent there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"wire0", _IFF_TUN | _IFF_NO_PI))
    return device


def forward(devices: dict[bytes, int], bits_per_second: float, delay_seconds: float) -> None:
    """devices: by their address, as it stands in a packet."""
    free_at = dict.fromkeys(devices.values(), 0.0)
    order = itertools.count()
    under_way: list[tuple[float, int, int, bytes]] = []
    while True:
        wait = max(under_way[0][0] - time.monotonic(), 0) if under_way else None
        readable, _, _ = select.select([sys.stdin, *devices.values()], [], [], wait)
        if sys.stdin in readable:
            return
        now = time.monotonic()
        for sender in readable:
            packet = os.read(sender, 65536)
            receiver = devices.get(packet[16:20])  # of an IPv4 header; the kernel also sends IPv6 to find neighbours
            if packet[0] >> 4 != 4 or receiver is None or free_at[sender] - now > _MAX_QUEUED_SECONDS:
                continue
            free_at[sender] = max(free_at[sender], now) + 8 * len(packet) / bits_per_second
            heapq.heappush(under_way, (free_at[sender] + delay_seconds, next(order), receiver, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, receiver, packet = heapq.heappop(under_way)
            try:
                os.write(receiver, packet)
            except OSError:
                continue  # its link is down: lost, as on any wire


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabits_per_second", type=float, required=True)
    parser.add_argument("--delay_milliseconds", type=float, required=True)
    parser.add_argument("ends", nargs="+", metavar="NAMESPACE=ADDRESS")
    arguments = parser.parse_args()
    ends = [end.split("=") for end in arguments.ends]
    devices = {ipaddress.IPv4Address(address).packed: open_device(namespace) for namespace, address in ends}
    print("ready", flush=True)
    forward(devices, arguments.megabits_per_second * 1e6, arguments.delay_milliseconds / 1e3)


if __name__ == "__main__":
    main()
