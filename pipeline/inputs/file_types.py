"""Which form of input a file is: by its first bytes where they tell, by its name otherwise."""

from pathlib import Path
from typing import Any

from pipeline.config.registry import names, schema
from pipeline.inputs.compressed import first_bytes, refuse_others, without_suffix
from pipeline.messages.errors import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


def require_form(path: Path, form: str) -> None:
    """Raises UserError for a file of another form than `dataset=form`, with the form that fits, or all forms where
    neither name nor content tell."""
    found = form_of(path)
    if found is not None and found != form:
        other = schema("dataset", found)
        raise UserError(
            f"dataset={form} and dataset.path={path} contradict each other: it looks like {other.is_called}; "
            f"use dataset={found} dataset.{other.main_file}={path}"
        )
    own = schema("dataset", form)
    if found is None and path.is_file():
        refuse_others(path, first_bytes(path))
    if found is None and own.must_be_known and suffix_of(path) != ".txt":
        known = [f"dataset={name} ({', '.join(form.suffixes) or form.is_called})" for name, form in _forms().items()]
        raise UserError(
            f"dataset.path={path} is not known by its name or its first bytes as {own.is_called}; forms: "
            f"{', '.join(known)}; text may be compressed"
        )


def form_of(path: Path) -> str | None:
    """Which form a file or folder is of; None where neither the first bytes nor the name tell."""
    forms, suffix = _forms(), suffix_of(path)
    if path.is_dir():
        return next((name for name, form in forms.items() if form.is_folder(path)), None)
    head = first_bytes(path)
    by_content = (name for name, form in forms.items() if form.magic and head.startswith(form.magic))
    by_name = (name for name, form in forms.items() if suffix in form.suffixes)
    return next(by_content, None) or next(by_name, None)


def _forms() -> dict[str, Any]:
    """The forms whose files have a name in errors."""
    found = {name: schema("dataset", name) for name in names("dataset")}
    return {name: form for name, form in found.items() if form.is_called}


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr array or group, of either format."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def suffix_of(path: Path) -> str:
    """The end of a name that says what is in it, in lower case: .csv of x.CSV.gz."""
    return Path(without_suffix(path.name.lower())).suffix
