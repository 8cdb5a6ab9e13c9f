"""Mistakes of the user, told in one line.

Contract: whatever a user hands in (a folder, a key, a file) is checked once, at the door; what is wrong is a
`UserError` whose text names the file or key and the remedy. Programs run under `exit_on_user_error`, which prints it
without a traceback and exits with status 2. Every other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
import signal
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in what the user handed in; the message is one line naming the thing and the remedy."""


USER_ERROR_STATUS = 2

# What the file system refuses a user, not what we do wrong with it.
REFUSALS = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run `main`; a `UserError`, or a refusal of the file system, becomes one line on stderr and exit status 2.

    SIGTERM ends the program like an exception, so that half-written files are removed on the way.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR_STATUS) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except OSError as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        raise SystemExit(USER_ERROR_STATUS) from None


def refusal(error: OSError) -> UserError | None:
    """What the file system refuses a user, in one line; None for what is a defect of ours."""
    return UserError(f"{error.filename or 'file system'}: {error.strerror}") if error.errno in REFUSALS else None


def one_line(text: str) -> str:
    """A text from elsewhere (a file's name, another program's words) for people: unprintable characters as U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, or the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
