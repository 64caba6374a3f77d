"""What every command does around its `main`: an expected error ends in one sentence, only a bug in a traceback.

    if __name__ == "__main__":
        command.run(main)

Exit codes: 0, 1 for an error, 2 for flags that cannot be used; signals as `recjax.runtime.run` says. An error is
expected where this project raises it on purpose, with its sentence, or where the operating system refuses a file; any
other, a library's or a slip of ours, shows where it happened. RECJAX_TRACEBACK=1 shows that of expected ones too.
"""

from collections.abc import Callable, Sequence
import functools
import linecache
import os
import pathlib
import sys
import traceback

from absl import app, flags

OURS = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("recjax", "scaling", "experiments", "launch")


def run(main: Callable[[list[str]], object], passes_on: bool = False) -> None:
    """Parses the flags and calls `main`; does not return.

    Args:
      main: Takes the command's name and what follows its flags.
      passes_on: Whether anything may: a launcher's arguments after "--" are those of another command.
    """
    app.run(functools.partial(_ended, main, passes_on), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if (
            "config" in flags.FLAGS
        ):  # a file that cannot be loaded fails where it is first read: here
            getattr(flags.FLAGS["config"].value, "keys", None)
        return rest
    # A config file that cannot be read, an argument or a key that it does not have.
    except (flags.Error, ValueError, KeyError, AttributeError, OSError, ImportError) as e:
        if os.environ.get("RECJAX_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {sentence(e)} (--help lists the flags)", file=sys.stderr)
        sys.exit(2)


def _ended(main: Callable[[list[str]], object], passes_on: bool, argv: list[str]) -> None:
    if len(argv) > 1 and not passes_on:
        print(f"error: unexpected {argv[1]!r}; flags begin with --, and a pattern is quoted", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    try:
        main(argv)
    except Exception as e:
        if os.environ.get("RECJAX_TRACEBACK") or not expected(e):
            raise
        print(f"error: {sentence(e)}", file=sys.stderr)
        sys.exit(1)


def expected(error: BaseException) -> bool:
    """Whether an error was raised on purpose by this project, or is the system's word on a file."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    if not isinstance(error, ValueError | KeyError | TypeError | OSError | RuntimeError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_ours(frames[-1].filename) and _raises(frames[-1])


def _is_ours(filename: str) -> bool:
    file = pathlib.Path(filename)
    return any((OURS / p) in file.parents for p in PACKAGES)


def _raises(frame: traceback.FrameSummary) -> bool:
    line = linecache.getline(frame.filename, frame.lineno or 0)
    return line.strip().startswith("raise ")


def sentence(error: BaseException) -> str:
    """What an error says, on one line; a KeyError's message without its quotes."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if (
        "Traceback (most recent call last)" in text
    ):  # config_flags puts the whole of it into its message
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split()) or type(error).__name__
