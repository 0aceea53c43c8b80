"""TF-MoDISco run on an export, and how similar what it finds is to a consensus.

A motif is compared with a consensus by the Pearson correlation of the base frequencies (of the seqlets; 1 or, at an
ambiguous letter, equal parts in the consensus) over all bases of all positions of the consensus, the largest over every
offset within the motif and both strands.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

LETTERS = {"A": "A", "C": "C", "G": "G", "T": "T", "S": "CG", "Y": "CT", "K": "GT", "R": "AG"}
PLANTED = {"CTCF": "CCACCAGGGGGCGC", "GATA": "AGATAAG", "AP1": "TGACTCA", "EBOX": "CCACGTGAC"}  # in the example
CTCF = "CCASYAGRKGGCRS"  # the core that all published forms of it share


@dataclass(frozen=True)
class Motif:
    """A pattern that TF-MoDISco found: (W, 4) base frequencies of so many seqlets."""

    frequencies: np.ndarray
    n_seqlets: int


def frequencies(consensus: str) -> np.ndarray:
    """(K, 4) of a consensus, equal parts of the bases that a letter stands for."""
    return np.array([[(base in LETTERS[letter]) / len(LETTERS[letter]) for base in "ACGT"] for letter in consensus])


def similarity(motif: np.ndarray, consensus: str) -> float:
    """See the module's description; motif is (W, 4)."""
    wanted = frequencies(consensus)
    k = len(wanted)
    places = [strand[i : i + k] for strand in (motif, motif[::-1, ::-1]) for i in range(len(motif) - k + 1)]
    return max(float(np.corrcoef(place.ravel(), wanted.ravel())[0, 1]) for place in places)


def find_motifs(folder: Path, window: int) -> list[Motif]:
    """What TF-MoDISco finds with positive attributions in the export in a folder.

    Raises:
        RuntimeError: it fails.
    """
    command = [str(Path(sys.executable).parent / "modisco"), "motifs", "-n", "2000", "-w", str(window)]
    files = ["-s", str(folder / "ohe.npz"), "-a", str(folder / "attr.npz"), "-o", str(folder / "motifs.h5")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode:
        raise RuntimeError(f"modisco motifs failed: {done.stderr.strip()[-400:]}")
    return read_motifs(folder / "motifs.h5")


def read_motifs(path: Path) -> list[Motif]:
    """The motifs of positive attributions in a file of TF-MoDISco."""
    with h5py.File(path) as file:
        return [
            Motif(np.asarray(pattern["sequence"]), int(np.asarray(pattern["seqlets"]["n_seqlets"]).item()))
            for pattern in file.get("pos_patterns", {}).values()
        ]
