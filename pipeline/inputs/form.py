"""What an input form is: its settings, what its rows can give, and how it is opened."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.config.dataset_args import ExtraInput
from pipeline.config.schema import DatasetConfig
from pipeline.config.settings import setting
from pipeline.inputs.base import Source, Values
from pipeline.inputs.file_types import require_form
from pipeline.inputs.text import require_file, require_path


@dataclass
class InputForm(DatasetConfig, ABC):
    """The settings of one form; a new form is a subclass in a module of its own (see config/registry.py)."""

    is_called: ClassVar[str] = ""  # a file of it, in errors
    main_file: ClassVar[str] = "path"  # the setting that names it
    suffixes: ClassVar[tuple[str, ...]] = ()  # of its files' names, in lower case
    magic: ClassVar[tuple[bytes, ...]] = ()  # what its files begin with
    must_be_known: ClassVar[bool] = True  # by name or content; otherwise any file may be of the form

    @abstractmethod
    def open(self) -> Source:
        """The rows. Raises UserError for a file that is missing, unreadable, or of another form."""

    @classmethod
    def is_folder(cls, folder: Path) -> bool:
        """Whether a folder is of this form."""
        return False

    def values_of(self, entry: ExtraInput) -> Values:
        """Values of a column or an array that `dataset.args` names; where `has_columns`."""
        raise NotImplementedError

    def packaged_files(self) -> tuple[Path, ...]:
        """Files that are read and are not settings."""
        return ()

    def file(self, key: str) -> Path:
        """The file that a setting names. Raises UserError where it cannot be read."""
        return require_file(self.given_path() if key == "path" else getattr(self, key), f"dataset.{key}")

    def given_path(self) -> Path:
        """The file or folder at dataset.path. Raises UserError where there is none, or it is of another form."""
        found = require_path(getattr(self, "path", None), "dataset.path")
        require_form(found, self.name)
        return found


@dataclass
class Windows(InputForm, ABC):
    """Forms whose sequences are windows of a genome."""

    is_of_genome: ClassVar[bool] = True

    genome: str = setting("genome FASTA, plain or compressed", is_file=True, is_plain=True)
    length: int | None = setting("the width of the windows in bases", least=1, is_plain=True)

    @property
    def width(self) -> int:
        """`length`, which is required."""
        assert self.length is not None
        return self.length
