"""The entry point of the command `xent`: an error that the user can correct is one line and exit code 2."""

from __future__ import annotations

import os
import sys

USAGE = 2
INTERRUPTED = 130
FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: those of the process); return its exit code."""
    os.environ.setdefault("RUST_BACKTRACE", "0")  # for panics of polars on damaged files
    try:
        from xent.command.app import invoke

        code = invoke(arguments)
        if sys.stdout is not None:  # closed by the caller: `xent check >&-`
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader ended, as in `xent check | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "xent":
            raise
        extra = "dask" if package in ("dask", "distributed") else "fit"
        return _say(f"error: this command needs {package}: pip install 'xent[{extra}]'", USAGE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}", USAGE)
    except MemoryError as error:
        return _say(f"error: there is not enough memory for this. {error}", USAGE)
    except UnicodeEncodeError as error:
        encoding = f"the output takes {error.encoding} only"
        character = error.object[error.start : error.start + 1]
        return _say(f"error: {encoding}; got {character!r}: set PYTHONIOENCODING=utf-8", USAGE)
    except ValueError as error:
        from xent.command.app import with_options

        return _say(f"error: {with_options(str(error), arguments)}", USAGE)


def _say(text: str, code: int) -> int:
    if sys.stderr is None:
        return code
    from xent.files.phrases import printable

    print(f"xent: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
