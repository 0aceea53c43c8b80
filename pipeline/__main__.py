"""`dlshap`, and `python -m pipeline`."""

import os
import sys


def main() -> None:
    """Entry point of the console script; see `pipeline.cli.main`."""
    forget_working_folder()
    # Large pages for large tensors, which torch reads once: those of long sequences are taken anew with every pair.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from pipeline.cli.main import main as command  # afterwards: nothing that it imports comes from that folder

    command()


def forget_working_folder() -> None:
    """Take the working folder off the search path of this process and of those that it starts.

    `python -m` puts it there, and so does an entry of PYTHONPATH that is empty or relative; one that names it in full
    stays, as does the folder of our own packages, which becomes the last.
    """
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it is gone
        return
    if __name__ == "__main__" and not sys.flags.safe_path and _is(sys.path[0], here):
        del sys.path[0]
    given = os.environ.get("PYTHONPATH", "")
    entries = given.split(os.pathsep) if given else []
    kept = [entry for entry in entries if os.path.isabs(entry) or not _is(entry, here)]
    if len(kept) < len(entries):
        sys.path[:] = [folder for folder in sys.path if folder in kept or not _is(folder, here)]
        os.environ["PYTHONPATH"] = os.pathsep.join([*kept, root] if root == here else kept)
    if root == here and root not in sys.path:
        sys.path.append(root)


def _is(entry: str, folder: str) -> bool:
    return os.path.realpath(entry or ".") == folder


if __name__ == "__main__":
    main()
