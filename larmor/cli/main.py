"""The entry point: every command, and how it ends where something is wrong."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from larmor.cli import configuration, data, decoding, jobs, models, pet, serve, simulate, store, training, view
from larmor.cli.app import app, print_version
from larmor.storage.objects.errors import InputError

# what a disk answers to a place that the user chose; any other OSError is a defect
_DISK_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)

for noun in (data, training, jobs, models, view, configuration, serve):
    app.add_typer(noun.commands)  # without a name: their commands are those of the application
app.command("version")(print_version)
app.add_typer(store.store_app, name="store")
app.add_typer(store.fetch_app, name="fetch")
app.add_typer(simulate.simulate_app, name="simulate")
app.add_typer(models.benchmark_app, name="benchmark")
app.add_typer(decoding.decode_app, name="decode")
app.add_typer(pet.pet_app, name="pet")


def main() -> None:
    """Run the command line: mistakes of the user end in a sentence and exit code 1, not in a traceback."""
    if sys.platform == "win32":  # locks, signals and permissions of files are POSIX's
        raise SystemExit(
            "larmor: Windows is not supported; install Larmor in WSL (`wsl --install`), or use Linux or macOS"
        )
    from larmor.cluster.worker.stopping import Stopped
    from larmor.storage.objects.default_store import use_embedded_store

    if "store" not in sys.argv[1:2]:
        use_embedded_store()
    try:
        app()
    except Stopped as stopped:
        _say(stopped.message)
        raise
    except InputError as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        _end(f"this command needs {error.name}, which is not installed; `pip install larmor-mri` installs everything")
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror}; choose another place, or free space there")


def _end(message: str) -> NoReturn:
    """End with exit code 1 after a sentence; with `LARMOR_DEBUG` the exception that is being handled follows it."""
    _say(message)
    if os.environ.get("LARMOR_DEBUG"):
        raise
    raise SystemExit(1) from None


def _say(message: str) -> None:
    from larmor.cli.console import errors

    errors.print(f"larmor: {message}", markup=False)


if __name__ == "__main__":
    main()
