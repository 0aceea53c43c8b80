"""A model with further inputs of every kind, its values for the test input, and the same values in every form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.pipeline.conftest import LENGTH, N_ROWS, Inputs, random_sequences
from tests.pipeline.inputs.file_forms import codes_of, lists

N_KINDS = 5


class Gated(nn.Module):
    """(N, 4, L), a dose (N, 1), a kind (N, 1) of N_KINDS and tracks (N, 2, L) -> (N, 2), all of them entangled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 5, padding=2)
        self.dose = nn.Linear(1, 4)
        self.kinds = nn.Embedding(N_KINDS, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor, dose: Tensor, kind: Tensor, tracks: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(torch.cat([x, tracks], dim=1)))
        gate = torch.sigmoid(self.dose(dose) + self.kinds(kind)[:, 0])
        return self.last(hidden.mean(-1) * gate + torch.relu(hidden[..., 3]))


class Scaled(nn.Module):
    """(N, 4, L) and a number (N,) -> (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 5)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return (torch.relu(self.conv(x)).mean(dim=(1, 2)) * scale).unsqueeze(1)


@dataclass(frozen=True)
class Values:
    """(N, 1) float32, (N, 1) int64 and (N, 2, L) float32."""

    dose: np.ndarray
    kind: np.ndarray
    tracks: np.ndarray

    def all(self) -> list[np.ndarray]:
        return [self.dose, self.kind, self.tracks]


def values(n: int = N_ROWS, seed: int = 0) -> Values:
    generator = np.random.RandomState(seed)
    dose = generator.randn(n, 1).astype(np.float32)
    kind = generator.randint(0, N_KINDS, (n, 1))
    return Values(dose, kind.astype(np.int64), generator.rand(n, 2, LENGTH).astype(np.float32))


def model(folder: Path) -> list[str]:
    """Overrides that name the model, whose weights are written."""
    torch.manual_seed(0)
    save_file(Gated().state_dict(), folder / "gated.safetensors")
    target = f"{Gated.__module__}.{Gated.__qualname__}"
    return ["model=module", f"model._target_={target}", f"model.checkpoint={folder / 'gated.safetensors'}"]


def run_with(inputs: Inputs, store: Path, *more: str) -> list[str]:
    """The overrides of the shared input, with the model of this module instead of its own."""
    kept = [override for override in inputs.overrides(store) if not override.startswith("model")]
    named = {override.partition("=")[0] for override in more}
    own = [override for override in kept if override.partition("=")[0] not in named]
    if any(name.startswith("dataset") and name != "dataset.args" for name in named):
        own = [override for override in own if not override.startswith("dataset")]
    return [*own, *model(store.parent), *more]


def _csv(folder: Path, given: Values) -> list[str]:
    """Doses and kinds as text, written so that they are read as the same numbers."""
    rows = zip(random_sequences(), given.dose[:, 0].tolist(), given.kind[:, 0].tolist(), strict=True)
    lines = ["name,sequence,dose,kind", *(f"s{i},{seq},{dose!r},{kind}" for i, (seq, dose, kind) in enumerate(rows))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    np.save(folder / "tracks.npy", given.tracks)
    return ["dataset=table", f"dataset.path={folder / 't.csv'}", f"dataset.args=[dose,kind,{folder / 'tracks.npy'}]"]


def _parquet(folder: Path, given: Values) -> list[str]:
    columns = {
        "name": [f"s{i}" for i in range(N_ROWS)],
        "sequence": random_sequences(),
        "dose": pa.array(given.dose[:, 0].astype(np.float64)),
        "kind": pa.array(given.kind[:, 0].astype(np.uint8)),
        "tracks": lists(given.tracks),
    }
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=5)
    return ["dataset=table", f"dataset.path={folder / 't.parquet'}", "dataset.args=[dose,kind,tracks]"]


def _npz(folder: Path, given: Values) -> list[str]:
    arrays = {"dose": given.dose, "kind": given.kind.astype(np.int16), "tracks": given.tracks}
    np.savez(folder / "x.npz", codes=codes_of(random_sequences()), **arrays)
    path = f"dataset.path={folder / 'x.npz'}"
    return ["dataset=array", path, "dataset.key=codes", "dataset.args=[dose,kind,tracks]"]


def _zarr(folder: Path, given: Values) -> list[str]:
    group = zarr.create_group(folder / "g.zarr")
    for name, array in {"codes": codes_of(random_sequences()), **vars(given)}.items():
        group.create_array(name, data=array, chunks=(4, *array.shape[1:]))
    path = f"dataset.path={folder / 'g.zarr'}"
    return ["dataset=array", path, "dataset.key=codes", "dataset.args=[dose,kind,tracks]"]


def _fasta(folder: Path, given: Values) -> list[str]:
    (folder / "s.fa").write_text("".join(f">s{i}\n{seq}\n" for i, seq in enumerate(random_sequences())))
    np.savez_compressed(folder / "v.npz", dose=given.dose, kind=given.kind)
    np.save(folder / "tracks.npy", given.tracks.copy(order="F"))
    args = [f"{folder}/v.npz:dose", f"{folder}/v.npz:kind", f"{folder}/tracks.npy"]
    return ["dataset=fasta", f"dataset.path={folder / 's.fa'}", f"dataset.args=[{','.join(args)}]"]


def _loci(folder: Path, given: Values) -> list[str]:
    (folder / "genome.fa").write_text(f">chr1\n{''.join(random_sequences())}\n")
    np.save(folder / "tracks.npy", given.tracks)
    rows = zip(given.dose[:, 0].tolist(), given.kind[:, 0].tolist(), strict=True)
    lines = [
        f"chr1\t{i * LENGTH}\t{(i + 1) * LENGTH}\ts{i}\t{kind}\t.\t{dose!r}\t0\t0\t{LENGTH // 2}"
        for i, (dose, kind) in enumerate(rows)
    ]
    (folder / "l.narrowPeak").write_text("\n".join(lines) + "\n")
    where = [f"dataset.loci={folder / 'l.narrowPeak'}", f"dataset.genome={folder / 'genome.fa'}"]
    args = f"dataset.args=[signalValue,5,{folder / 'tracks.npy'}]"
    return ["dataset=loci", *where, f"dataset.length={LENGTH}", args]


FORMS: dict[str, Callable[[Path, Values], list[str]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "npz": _npz,
    "zarr": _zarr,
    "fasta": _fasta,
    "loci": _loci,
}
