"""The columns of a table, chosen by name."""

from pathlib import Path

from pipeline.messages.errors import UserError


def require_column(name: str, columns: list[str], setting: str, path: Path) -> None:
    """Raises UserError, which names the setting, where none or several of the columns of a file are called so."""
    if (n := columns.count(name)) != 1:
        raise UserError(
            f"{path} has {n or 'no'} column{'s' if n else ''} {name!r} ({setting}); its columns are {listed(columns)}"
        )


def listed(columns: list[str]) -> str:
    return ", ".join(repr(name[:30]) for name in columns[:12]) + (", ..." if len(columns) > 12 else "")
