# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One process at a time in a folder of results."""

import os


try:
    import fcntl
except ImportError:  # not everywhere
    fcntl = None


def take_lock(descriptor: int, folder: str | os.PathLike):
    """Take the lock of an open file or folder, where the system has locks; closing it gives the lock back.

    Args:
        descriptor (`int`):
            Of the open file or folder.
        folder (`str` or `os.PathLike`):
            What the error names.

    Raises:
        ValueError: another process, or another call in this one, has it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"output_dir={str(folder)!r} is in use: another process, or another call in this one, is at work in "
            "it. Wait for it, or give another folder."
        ) from error
    except OSError:
        pass  # a file system without locks


def give_lock_back(descriptor: int):
    """Give the lock back before the file is closed: a process that was forked off meanwhile would keep it."""
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except OSError:
        pass  # as above
