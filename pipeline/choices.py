"""What can be chosen for each group of the configuration: the files of conf/, which say themselves what they are."""

from importlib.resources import files

WIDTH = 112  # of a line of help


def choices(group: str) -> dict[str, str]:
    """The names of a group's choices, and what the first comment of each file says."""
    found = {path.name: path for path in (files("conf") / group).iterdir() if path.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): _comment(found[name].read_text(encoding="utf-8")) for name in sorted(found)}


def _comment(text: str) -> str:
    """The first comment that is not for Hydra; "" where there is none."""
    comments = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@")), "")


def listing(group: str) -> str:
    """Lines of `name  what it is`, for help."""
    found = choices(group)
    indent = max(map(len, found)) + 4
    return "\n".join(_wrapped(f"  {name}".ljust(indent), text) for name, text in found.items())


def _wrapped(name: str, text: str) -> str:
    """A name and a text beside it, with settings in one piece."""
    lines = [name]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > WIDTH and lines[-1].strip():
            lines.append(" " * len(name))
        lines[-1] += word if lines[-1].endswith(" ") else f" {word}"
    return "\n".join(lines)
