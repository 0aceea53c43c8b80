"""The sequences of the packaged example."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.inputs.base import Source
from pipeline.inputs.fasta import FastaSource
from pipeline.inputs.form import InputForm

EXAMPLE_SEQUENCES = Path(__file__).parent.parent / "example" / "sequences.fa.gz"


@dataclass
class Example(InputForm):
    """The packaged example: random sequences with planted motifs."""

    name: str = "example"

    def open(self) -> Source:
        return FastaSource(EXAMPLE_SEQUENCES)

    def packaged_files(self) -> tuple[Path, ...]:
        return (EXAMPLE_SEQUENCES,)
