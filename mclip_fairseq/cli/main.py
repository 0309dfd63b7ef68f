"""How every console script ends: one sentence for the user, a traceback for a bug."""

from __future__ import annotations

import argparse
import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import NoReturn

from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import shown

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141
FULL = (errno.ENOSPC, errno.EDQUOT)


class Parser(argparse.ArgumentParser):
    """A parser whose messages escape control characters, which an argument may hold."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with status 2."""
        super().error(shown(message))


def run_main(program: str, run: Callable[[], int | None], when_interrupted: str = "") -> int:
    """Run a command and turn what the user can fix into one sentence on stderr.

    Args:
        program: the command's name, before the sentence.
        run: the command; returns its exit status, None for 0.
        when_interrupted: what to do after Ctrl-C, for the message.

    Returns:
        the exit status of `run`, 2 after a `UserError`, an `OSError` or where fairseq is missing, 130 after Ctrl-C, or
        141, quietly, where the reader of stdout has seen enough, such as `head`.
    """
    if not sys.stderr.isatty():  # transformers reads this when it is imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what a terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = run() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        message = "\n".join(map(shown, str(error).split("\n")))  # some list one unreadable input per line
        print(f"{program}: error: {message}", file=sys.stderr)
        return BAD_INPUT
    except ModuleNotFoundError as error:
        if error.name != "fairseq":
            raise
        print(f"{program}: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return READER_GONE
        place = f"{error.filename}: " if error.filename is not None else ""
        remedy = "; make space and run the same command again" if error.errno in FULL else ""
        print(f"{program}: error: {shown(place + (error.strerror or str(error)))}{remedy}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted{when_interrupted and '; ' + when_interrupted}", file=sys.stderr)
        return INTERRUPTED


def reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads; it is then closed, because Python flushes it again at its exit."""
    try:
        pipe = select.poll()
        pipe.register(sys.stdout.fileno(), 0)
        gone = any(event & select.POLLERR for _, event in pipe.poll(0))
    except OSError:  # it is not a file
        return False
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone
