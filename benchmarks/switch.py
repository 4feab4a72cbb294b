"""Machines on a network of a chosen rate and latency: namespaces of this one, joined by a switch.

Each namespace has a TUN device `eth`, whose packets this process takes, holds, and hands on: first
through the sender's adapter and then, the latency later, through the receiver's, each so many bytes
a second in each direction. (What `tc netem` does; not every kernel has it.) Needs root and Linux.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TUN, SET_DEVICE, TUN_MODE, NEW_NETWORK = "/dev/net/tun", 0x400454CA, 0x1001, 0x40000000
MTU, LARGEST = 9000, 1 << 16
SMALL = 128  # bytes of a packet that waits for no other, as fair queueing has it: acknowledgements
NETWORK = "10.99.77"
# TCP does not begin each collective as if it did not know the link; nor does it fill the switch,
# which drops nothing, until its own timers take the wait for a loss.
SETTINGS = (
    "net.ipv4.tcp_slow_start_after_idle=0",
    "net.ipv4.tcp_congestion_control=reno",
    "net.ipv4.tcp_rmem=4096 131072 524288",
    "net.ipv4.tcp_wmem=4096 131072 524288",
)


@dataclass
class Switch:
    """devices: file descriptors, of machine i at i. rate: bytes a second of an adapter. delay:
    seconds of latency. Both may be changed at any time."""

    devices: list[int]
    rate: float = 1e9
    delay: float = 0.0
    _queue: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until `end`; before other programs, which would make the network slower."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        free_out, free_in = [0.0] * len(self.devices), [0.0] * len(self.devices)
        poll, count = select.poll(), 0
        for device in self.devices:
            poll.register(device, select.POLLIN)
        while not self._ended.is_set():
            wait = min(0.2, self._queue[0][0] - time.perf_counter()) if self._queue else 0.2
            for device, _ in poll.poll(max(0.0, wait * 1e3)):
                packet, source = os.read(device, LARGEST), self.devices.index(device)
                target = packet[19] - 1 if packet[0] >> 4 == 4 else -1
                if not 0 <= target < len(self.devices):
                    continue
                spent = len(packet) / self.rate if len(packet) > SMALL else 0.0
                sent = time.perf_counter()
                if spent:
                    sent = free_out[source] = max(sent, free_out[source]) + spent
                arrival = sent + self.delay
                if spent:
                    arrival = free_in[target] = max(arrival, free_in[target] + spent)
                count += 1
                heapq.heappush(self._queue, (arrival, count, target, packet))
            while self._queue and self._queue[0][0] <= time.perf_counter():
                _, _, target, packet = heapq.heappop(self._queue)
                os.write(self.devices[target], packet)

    def end(self) -> None:
        self._ended.set()


@contextmanager
def network(machines: int) -> Iterator[tuple[Switch, list[str]]]:
    """The running switch, and the names of the namespaces; machine i has the `address` i.

    Raises:
        OSError, subprocess.CalledProcessError: they cannot be made here.
    """
    names = [f"capo{os.getpid()}m{number}" for number in range(machines)]
    devices: list[int] = []
    try:
        for number, name in enumerate(names):
            _command("ip", "netns", "add", name)
            devices.append(_device(name))
            _command("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth")
            _command(
                "ip", "-n", name, "link", "set", "eth", "mtu", str(MTU), "txqueuelen", "10000", "up"
            )
            _command("ip", "-n", name, "link", "set", "lo", "up")
            _command("ip", "netns", "exec", name, "sysctl", "-qw", *SETTINGS)
        switch = Switch(devices)
        thread = threading.Thread(target=switch.run, daemon=True)
        thread.start()
        try:
            yield switch, names
        finally:
            switch.end()
            thread.join()
    finally:
        for device in devices:
            os.close(device)
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def address(machine: int) -> str:
    return f"{NETWORK}.{machine + 1}"


def place(name: str) -> list[str]:
    """The beginning of a command that is to run on a machine, under its own host name."""
    named = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "-"]
    return ["ip", "netns", "exec", name, *named]


def _command(*words: str) -> None:
    subprocess.run(words, capture_output=True, check=True)


def _device(name: str) -> int:
    """A TUN device `eth` in the namespace; this thread comes back to its own."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(str(Path("/run/netns") / name), os.O_RDONLY)
    try:
        _enter(there)
        device = os.open(TUN, os.O_RDWR)
        fcntl.ioctl(device, SET_DEVICE, struct.pack("16sH22x", b"eth", TUN_MODE))
        return device
    finally:
        _enter(own)
        os.close(own)
        os.close(there)


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")
