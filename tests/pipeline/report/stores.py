"""Stores made by writing arrays directly: any values, any number of rows, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dlshap_core.sequences import encode
from pipeline.planning import convergence
from pipeline.planning.plan import Plan
from pipeline.store.template import StagedStore
from tests.pipeline.exports.stores import complete

THRESHOLD = 1e-3


@dataclass
class Synthetic:
    """What is in a store; what is not given is drawn at random.

    Attributes:
        codes: (N, L) uint8.
        targets: of the model.
        loci: (chrom, start, strand) of each row.
        names: of the rows.
        dataset: what the store says of its input, more than usual.
        values: arrays of the layout by name.
        folds: of the model; with several, each one's values are kept, and are the mean's with a little noise.
        alleles: whether the rows are alleles of variants, in turn.
        spread: whether the spread over references is kept.
    """

    codes: np.ndarray
    targets: Sequence[int] = (0,)
    n_references: int = 3
    rows_per_shard: int = 8
    names: Sequence[str] | None = None
    loci: Sequence[tuple[str, int, str]] | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    folds: Sequence[str] = ("0",)
    alleles: bool = False
    spread: bool = False

    def write(self, path: Path) -> Path:
        """Make the store, complete."""
        n, length = self.codes.shape
        staged = StagedStore(path, length, self.rows_per_shard)
        for row in range(n):
            chrom, start, strand = self.loci[row] if self.loci else ("", -1, ".")
            end = start + length if self.loci else -1
            name = self.names[row] if self.names else f"s{row}"
            staged.append(
                codes=self.codes[row], source_row=row, name=name, chrom=chrom, start=start, end=end, strand=strand
            )
        files = staged.finish(self._plan(), self._attributes(), None)
        group = zarr.open_group(path, mode="r+")
        for start in range(0, n, self.rows_per_shard):
            rows = slice(start, min(start + self.rows_per_shard, n))
            drawn = self.drawn(rows.start, rows.stop)
            drawn |= {name: values[rows] for name, values in self.values.items()}
            if self.alleles:
                names = ("attribution", "prediction")
                drawn |= {f"{name}_difference": drawn[name][1::2] - drawn[name][::2] for name in names}
                if self.spread:
                    sd = drawn["attribution_sd"]
                    drawn["attribution_difference_sd"] = sd[::2] + sd[1::2]
            for name, values in drawn.items():
                array = group[name]
                assert isinstance(array, zarr.Array)
                of_variants = "_difference" in name
                array[slice(rows.start // 2, rows.stop // 2) if of_variants else rows] = values
        pairs = (np.asarray(group[name][:]) for name in ("convergence_delta", "prediction", "reference_prediction"))
        total = convergence.summarise(*pairs, 0, convergence.Thresholds.of(self._plan()))
        worst = {"largest": total["largest"], "worst": f"s{total['worst_row']}", "worst_row": total["worst_row"]}
        over = {"share_over": total["n_over"] / total["n"], "n_not_finite": total["n_not_finite"]}
        over |= {"relative_threshold": 0.01, "share_over_relative": total["n_over_relative"] / total["n"]}
        judged = {"judged": True, "head": "none", "threshold": THRESHOLD}
        passed = "failed" if total["n_over"] or total["n_over_relative"] else "passed"
        complete(path, self._plan(), files, judged | over | worst, passed)
        return path

    def _plan(self) -> Plan:
        return Plan(
            n_rows=len(self.codes),
            length=self.codes.shape[1],
            targets=list(self.targets),
            references={"name": "dinucleotide_shuffle"},
            n_references=self.n_references,
            seed=7,
            random_state=7 << 16,
            batch_size=64,
            rows_per_shard=self.rows_per_shard,
            dtype="float32",
            threads=1,
            deterministic=True,
            device="cpu",
            device_kind="x86_64 AVX2",
            completeness=True,
            warning_threshold=THRESHOLD,
            fingerprint={"model.weights": "ab" * 32, "input.sha256": "cd" * 32},
            folds=list(self.folds),
            per_fold=len(self.folds) > 1,
            rows_per_group=2 if self.alleles else 1,
            spread=self.spread,
        )

    def _attributes(self) -> dict[str, Any]:
        plan = {name: value for name, value in self._plan().to_values().items() if name != "fingerprint"}
        audited = {"module": "model.relu (ReLU)", "operation": "relu", "treatment": "elementwise: secant", "count": 2}
        return {
            "format_version": 1,
            "plan": plan,
            "fingerprint": self._plan().fingerprint,
            "config": {"references": {"name": "dinucleotide_shuffle", "n_shuffles": self.n_references}, "seed": 7},
            "model": {"name": "module", "target": "my.Model", "checkpoint": "weights.safetensors", "head": "none"},
            "dataset": {"kind": "fasta", "path": "in.fa", "n_left_out": 0, "left_out": []} | self.dataset,
            "head": "none",
            "audit": {"operations": [audited], "refused": [], "convergence_error": 1e-8, "n_pairs": 4},
            "not_exact": [],
            "seed": 7,
            "device": "x86_64 AVX2",
            "bit_identical": True,
            "versions": {"dlshap": "0.1.0"},
            "hardware": {"host": "here", "platform": "Linux", "cpus": 2},
        }

    def drawn(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows of every computed array at random, but for the hypothetical ones, which no report reads."""
        generator = np.random.default_rng(start)
        shape = (stop - start, len(self.targets))
        scales = {
            "attribution": (self.codes.shape[1:], 0.01),
            "prediction": ((), 1.0),
            "reference_prediction": ((self.n_references,), 1.0),
            "convergence_delta": ((self.n_references,), 1e-7),
        }
        values = {
            name: scale * generator.standard_normal((*shape, *tail), dtype=np.float32)
            for name, (tail, scale) in scales.items()
        }
        if self.spread:
            sd = generator.random((*shape, self.codes.shape[1]), dtype=np.float32)
            values["attribution_sd"] = 0.01 * sd
        if len(self.folds) > 1:
            for name in ("attribution", "prediction"):
                noise = generator.standard_normal((len(self.folds), *values[name].shape), dtype=np.float32)
                values[f"{name}_by_fold"] = (values[name] + 0.3 * scales[name][1] * noise).swapaxes(0, 1)
        return values


def random_codes(n: int, length: int, seed: int = 0) -> np.ndarray:
    """(n, length) uint8, all bases known."""
    return np.random.default_rng(seed).integers(0, 4, (n, length), dtype=np.uint8)


def codes_of(*texts: str) -> np.ndarray:
    """(N, L) uint8."""
    return np.stack([encode(text) for text in texts])
