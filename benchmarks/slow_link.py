"""Processes in a network of their own, joined by a slow link or by loopback, and the bytes that its devices
sent.

On a slow link each process runs in a network namespace of its own, whose only way out is a TUN device; this
process reads the packets of both devices and hands each to the other side when a link of the given bandwidth
and delay would have delivered it. Real TCP runs over it, with its windows and acknowledgements. What waits
for the link stays in the sender's kernel, as it does behind a network card. Linux; needs `unshare`, `ip` and
/dev/net/tun, but not root.

    python benchmarks/slow_link.py    # what a byte stream and a round trip take over 100 Mbit/s and 20 ms
"""

import argparse
import array
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")
DEVICE = "link0"
PORT = 29400  # free: the network is the processes' own
PACKET = 1500  # bytes at most, of Ethernet
WAITING = 0.005  # seconds of packets that the relay takes up before it lets the sender's kernel wait
OWN_NETWORK = ["unshare", "--map-root-user", "--net"]
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class Speed:
    """Of a link, each way.

    Attributes:
        bits_per_second: of the link; the packets' headers are counted.
        round_trip: seconds there and back of an empty packet, half of them each way.
    """

    bits_per_second: float
    round_trip: float


SLOW = Speed(bits_per_second=100e6, round_trip=0.020)


def can_link() -> bool:
    """Whether this machine lets a user make network namespaces with a TUN device."""
    tools = all(map(shutil.which, ("unshare", "ip")))
    return tools and Path("/dev/net/tun").exists() and subprocess.run([*OWN_NETWORK, "true"]).returncode == 0


def sent_bytes(device: str) -> int:
    """Bytes that a network device has sent since it was made, headers counted; on "lo" those of all its
    processes."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == device:
            return int(counters.split()[8])
    raise FileNotFoundError(f"/proc/net/dev has no device {device}")


class Wire:
    """One direction of a link: when each packet arrives, and those on their way.

    A packet leaves when those before it have left, at most `bits_per_second`, and arrives half a round trip
    later. Times are seconds of one clock.

    Example:
        >>> wire = Wire(Speed(bits_per_second=8000, round_trip=0.5))
        >>> wire.take(bytes(1000), now=0.0)
        >>> wire.take(bytes(500), now=0.5)
        >>> [round(due, 3) for due, _ in wire.flying]
        [1.25, 1.75]
        >>> [len(packet) for packet in wire.arrived(now=1.5)]
        [1000]
    """

    def __init__(self, speed: Speed) -> None:
        self.speed, self.free_at = speed, 0.0
        self.flying: deque[tuple[float, bytes]] = deque()

    def take(self, packet: bytes, now: float) -> None:
        """Put a packet on the wire."""
        self.free_at = max(now, self.free_at) + 8 * len(packet) / self.speed.bits_per_second
        self.flying.append((self.free_at + self.speed.round_trip / 2, packet))

    def arrived(self, now: float) -> list[bytes]:
        """The packets that are due, taken off the wire."""
        packets = []
        while self.flying and self.flying[0][0] <= now:
            packets.append(self.flying.popleft()[1])
        return packets

    def next_event(self, now: float) -> float:
        """Seconds until a packet is due or another may be taken; infinite if there is none to wait for."""
        due = self.flying[0][0] if self.flying else float("inf")
        again = self.free_at - WAITING if self.full(now) else float("inf")
        return max(0.0, min(due, again) - now)

    def full(self, now: float) -> bool:
        """Whether the next packet has to wait in the sender's kernel."""
        return self.free_at - now > WAITING


def relay(devices: tuple[int, int], speed: Speed, stop: threading.Event) -> None:
    """Carry packets between two TUN devices until told to stop, or until one of them is gone."""
    wires = {devices[0]: Wire(speed), devices[1]: Wire(speed)}
    other = {devices[0]: devices[1], devices[1]: devices[0]}
    for device in devices:
        os.set_blocking(device, False)
    while not stop.is_set():
        now = time.perf_counter()
        open_ = [device for device, wire in wires.items() if not wire.full(now)]
        patience = min(wire.next_event(now) for wire in wires.values())
        try:
            for device in select.select(open_, [], [], min(patience, 0.1))[0]:
                wires[device].take(os.read(device, 2**16), time.perf_counter())
            for device, wire in wires.items():
                for packet in wire.arrived(time.perf_counter()):
                    os.write(other[device], packet)
        except OSError:
            return  # a process has ended, and its namespace with it


def run_pair(command: Sequence[str], speed: Speed | None) -> list[Any]:
    """Run a command as both processes of a group of torch.distributed (gloo), one thread each.

    Args:
        command: reads rank and address from the environment, as `init_process_group` does, and prints JSON as
            its last line.
        speed: of the link between them; None: loopback.

    Returns:
        what each of them printed.

    Raises:
        RuntimeError: a process that failed, or that took too long.
    """
    shared = {
        "MASTER_ADDR": ADDRESSES[0] if speed else "127.0.0.1",
        "MASTER_PORT": str(PORT),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": DEVICE if speed else "lo",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # no word on addresses without a name
    }
    commands = [["env", f"RANK={number}", f"LOCAL_RANK={number}", *command] for number in range(2)]
    environment = os.environ | shared
    outputs = run_linked(commands, speed, environment) if speed else run_on_loopback(commands, environment)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def run_linked(
    commands: Sequence[Sequence[str]], speed: Speed, environment: Mapping[str, str], timeout: float = 3600
) -> list[str]:
    """Run two commands on the two ends of a link, the first at 10.77.0.1, and return what they printed.

    Args:
        commands: of the two processes.
        environment: of both, whole.
        timeout: seconds after which both are killed.

    Raises:
        RuntimeError: a command that failed, or that took too long.
    """
    doors = [socket.socketpair() for _ in ADDRESSES]
    processes = [
        subprocess.Popen(
            [*OWN_NETWORK, sys.executable, __file__, "--join", str(theirs.fileno()), address, *command],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )
        for (_, theirs), address, command in zip(doors, ADDRESSES, commands, strict=True)
    ]
    stop, devices, carrier = threading.Event(), [], None
    try:
        for mine, theirs in doors:
            theirs.close()
            _, found, *_ = socket.recv_fds(mine, 16, 1)
            if not found:
                raise RuntimeError("no network device could be made for a process: see what it printed")
            devices += found
        for mine, _ in doors:
            mine.sendall(b"go")
        carrier = threading.Thread(target=relay, args=(tuple(devices), speed, stop))
        carrier.start()
        return _outputs(processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        stop.set()
        if carrier is not None:
            carrier.join()
        for descriptor in devices:
            os.close(descriptor)
        for mine, _ in doors:
            mine.close()


def run_on_loopback(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str], timeout: float = 3600
) -> list[str]:
    """Run commands at 127.0.0.1 of a network that no other process uses, and return what they printed. Where
    a user cannot make one, they run in the machine's own: its device "lo" then counts other bytes too.

    Raises:
        RuntimeError: a command that failed, or that took too long.
    """
    launcher = [sys.executable, __file__, "--loopback", json.dumps([list(words) for words in commands])]
    process = subprocess.Popen(
        [*(OWN_NETWORK if can_link() else []), *launcher],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(environment),
        start_new_session=True,
    )
    try:
        return json.loads(_outputs([process], timeout)[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def loopback(commands: Sequence[Sequence[str]]) -> None:
    """Run the commands side by side and print what they printed, as a list."""
    if can_link():
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for words in commands]
    print(json.dumps([process.communicate()[0] for process in processes]))
    sys.exit(max(abs(process.returncode) for process in processes))


def _outputs(processes: Sequence[subprocess.Popen[str]], timeout: float) -> list[str]:
    """What the processes printed, once all have ended well."""
    deadline = time.monotonic() + timeout
    outputs = []
    for number, process in enumerate(processes):
        try:
            outputs.append(process.communicate(timeout=max(0.1, deadline - time.monotonic()))[0])
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"process {number} did not end within {timeout:g} s") from None
        if process.returncode:
            raise RuntimeError(f"process {number} ended with {process.returncode}: see what it printed")
    return outputs


def join(door: int, address: str, command: Sequence[str]) -> None:
    """Become `command`, at an address whose packets go through a device that is handed through `door`."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for words in (
        ["address", "add", f"{address}/24", "dev", DEVICE],
        ["link", "set", DEVICE, "mtu", str(PACKET), "up"],
        ["link", "set", "lo", "up"],
    ):
        subprocess.run(["ip", *words], check=True)
    with socket.socket(fileno=door) as mine:
        socket.send_fds(mine, [b"device"], array.array("i", [device]))
        mine.recv(2)  # not before the other side is there
    os.close(device)
    os.execvp(command[0], list(command))


SERVER = """
import socket
with socket.create_server(("10.77.0.1", 5000)) as server:
    peer, _ = server.accept()
    left = 25_000_000
    while left:
        left -= len(peer.recv(min(left, 2**20)))
    peer.sendall(b"x")
"""
CLIENT = """
import socket, time
while True:
    try:
        start = time.perf_counter()
        peer = socket.create_connection(("10.77.0.1", 5000))
        break
    except OSError:
        time.sleep(0.05)
trip = time.perf_counter() - start
start = time.perf_counter()
peer.sendall(bytes(25_000_000))
peer.recv(1)
print(f"{trip * 1e3:.1f} ms a round trip, {200 / (time.perf_counter() - start):.1f} Mbit/s")
"""


def main() -> None:
    if sys.argv[1:2] == ["--join"]:
        join(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    if sys.argv[1:2] == ["--loopback"]:
        loopback(json.loads(sys.argv[2]))
        return
    argparse.ArgumentParser(description=__doc__).parse_args()
    commands = [[sys.executable, "-c", code] for code in (SERVER, CLIENT)]
    print(run_linked(commands, SLOW, os.environ, timeout=60)[1], end="")


if __name__ == "__main__":
    main()
