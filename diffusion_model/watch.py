"""Which rank has fallen? Every rank of a job holds one connection to the hub in rank 0, and a dead process drops its own.

The system closes the connections of a process however it ends (an exception, SIGKILL, no memory), on this machine or
another, so a death is known at once and without a clock; a machine that goes dark is known after some 20 s of silence.
The hub tells all ranks which rank fell first. The others cannot go on: their collective waits for a rank that will not
come. They say who fell, and leave within `GRACE` seconds even where the main thread is stuck in that collective.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

GRACE = 10.0  # seconds for the main thread to leave by itself once a rank has fallen
HEAR = 3.0  # seconds to hear who fell, where an exception may only be the echo of another rank's end
LEAVE = 30.0  # seconds for the last goodbye, and for its answer
# Seconds of silence before a probe, between probes, and the number of probes: for a machine that lost its power.
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def _keep_alive(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(link: socket.socket, **message: Any) -> None:
    # The other end may be gone; whoever listens to it learns that.
    with contextlib.suppress(OSError):
        link.sendall(json.dumps(message).encode() + b"\n")


class Hub:
    """In rank 0: hears every rank, and tells all of them which one fell first. `card` says how to reach it."""

    def __init__(self, name: str) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self.server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self.card = {"port": self.server.getsockname()[1], "token": secrets.token_hex(8), "name": name}
        self.links: dict[int, socket.socket] = {}
        self.fallen: dict[str, Any] | None = None
        self.change = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # raised when `close` closes the server
            while True:
                link, _ = self.server.accept()
                threading.Thread(target=self._hear, args=(link,), daemon=True).start()

    def _hear(self, link: socket.socket) -> None:
        """Listen to one connection until it ends; without a goodbye its rank has died."""
        rank, name, left = None, "", False
        with contextlib.suppress(OSError, ValueError), link, link.makefile() as lines:
            _keep_alive(link)
            for message in map(json.loads, lines):
                if rank is None:
                    if message.get("token") != self.card["token"]:
                        return  # a stranger
                    rank, name = message["rank"], message["name"]
                    self._welcome(rank, link)
                elif message["say"] == "failed":
                    self._fall(rank, name, died=False)
                else:
                    left = True
        if rank is not None:
            if not left:
                self._fall(rank, name, died=True)
            with self.change:
                self.links.pop(rank, None)
                self.change.notify_all()

    def _welcome(self, rank: int, link: socket.socket) -> None:
        with self.change:
            self.links[rank] = link
            if self.fallen:
                _send(link, **self.fallen)

    def _fall(self, rank: int, name: str, died: bool) -> None:
        with self.change:
            if self.fallen:
                return
            self.fallen = {"rank": rank, "name": name, "died": died}
            for link in self.links.values():
                _send(link, **self.fallen)

    def close(self) -> None:
        """Wait for the goodbye of every rank, so that none takes the end of this process for a death."""
        with self.change:
            self.change.wait_for(lambda: not self.links, LEAVE)
        self.server.close()


class Watch:
    """In every rank: knows which rank fell first (`fallen`), says so if it is this rank's to say, and ends the process."""

    def __init__(self, rank: int, speaks: bool, name: str, address: str, card: dict[str, Any]) -> None:
        self.rank, self.speaks, self.name, self.hub_name = rank, speaks, name, card["name"]
        self.describe: Callable[[], str] = str  # where the job stands, as the end of the sentence
        self.fallen: dict[str, Any] | None = None
        self.leaving = False
        self.said = threading.Event()
        self.link = socket.create_connection((address, card["port"]), timeout=60)
        self.link.settimeout(None)
        _keep_alive(self.link)
        _send(self.link, token=card["token"], rank=rank, name=name)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        fallen = None
        with contextlib.suppress(OSError, ValueError), self.link.makefile() as lines:
            fallen = next(map(json.loads, lines), None)
        if fallen is None and self.leaving:
            return
        self.fallen = fallen or {"rank": 0, "name": self.hub_name, "died": True}
        # Rank 0 speaks for all; where it is the one that died, one rank of each machine does.
        if self.fallen["died"] and (self.speaks if self.fallen["rank"] == 0 else self.rank == 0):
            print(f"error: {self.fallen['name']} died{self._place()}; run the same command to go on", file=sys.stderr)
            sys.stderr.flush()
        self.said.set()
        if self.fallen["rank"] != self.rank:
            time.sleep(GRACE)
            os._exit(1)

    def _place(self) -> str:
        # The sentence must be said, whatever becomes of its second half.
        with contextlib.suppress(Exception):
            place = self.describe()
            return f" {place}" if place else ""
        return ""

    def _hear(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self.fallen is None and time.monotonic() < until:
            time.sleep(0.01)

    def loss(self) -> str | None:
        """Which rank fell, as a sentence, where an error of a collective may come of that; None where none did."""
        self._hear(HEAR)
        if self.fallen is None:
            return None
        return f"{self.fallen['name']} {'died' if self.fallen['died'] else 'failed'}, and this rank cannot go on alone"

    def leave_unless_first(self, error: BaseException) -> None:
        """With the exception that ends this rank: return if it is the first of the job, else end the process quietly.

        A failed collective and the signals of the launcher are echoes of another rank's end: that is waited for first.
        """
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # the launcher's, for the end of the others: no reason to say less
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted or isinstance(error, RuntimeError):
            self._hear(1.0 if interrupted else HEAR)
        if self.fallen is None:
            _send(self.link, say="failed")
            self._hear(HEAR)
        if self.fallen is not None and self.fallen["rank"] != self.rank:
            self.said.wait(HEAR)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        if not interrupted:
            print(f"{self.name} ends the job:", file=sys.stderr, flush=True)
        # What is left of a collective can hold up the end of a process; the system's alarm cannot be held up.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(GRACE))

    def close(self) -> None:
        """Say goodbye: from now on the end of this process, or of the hub, is no death."""
        self.leaving = True
        _send(self.link, say="done")
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_WR)
        # `describe` can hold tensors. A daemon thread that frees one while the interpreter shuts down aborts the process,
        # so the listener, which holds this object, must neither own the last reference nor outlive this call.
        self.describe = str
        self.listener.join(LEAVE)
