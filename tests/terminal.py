# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The console command in a terminal of its own, as a user sees it. Every wait has a deadline."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time


_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _take_the_terminal():
    """The terminal becomes the process's own, so that Ctrl-C reaches it; a background job's children ignore it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Terminal:
    """`trl-diffusion` on a pseudo-terminal of 80 columns and 24 lines; a context manager.

    Args:
        arguments (`str`):
            Command line without the program's name.
        cwd:
            Folder the command runs in.
    """

    def __init__(self, *arguments: str, cwd):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trl_diffusion.scripts.cli", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**plain, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "INPUTRC": os.devnull},
            start_new_session=True,
            preexec_fn=_take_the_terminal,
        )
        os.close(slave)
        self._unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def send(self, text: str):
        """Type something."""
        os.write(self.master, text.encode())

    def read_until(self, wanted: str, seconds: float = 60.0) -> str:
        """Everything printed since the last call, up to and with `wanted`; fails when it does not come in time."""
        deadline, needle = time.monotonic() + seconds, wanted.encode()
        while needle not in self._unread:
            if not self._read(deadline):
                raise AssertionError(f"{wanted!r} did not appear; instead: {self._unread.decode(errors='replace')}")
        end = self._unread.index(needle) + len(needle)
        found, self._unread = self._unread[:end], self._unread[end:]
        return found.decode()

    def finish(self, seconds: float = 60.0) -> tuple[int, str]:
        """Exit status, and what was printed before the end."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(timeout=10), self._unread.decode()

    def _read(self, deadline: float) -> bool:
        """Wait for more output; `False` at its end. Nothing until the deadline is the end too."""
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
        try:
            chunk = os.read(self.master, 65536) if ready else b""
        except OSError:  # on Linux, a terminal whose other side is closed
            chunk = b""
        self._unread += chunk
        return bool(chunk)


def visible(text: str) -> str:
    """What was printed without control codes."""
    return _CONTROL.sub("", text).replace("\r", "")
