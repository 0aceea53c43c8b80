"""What was asked of a benchmark."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """Options of a run.

    Attributes:
        quick: short sequences and few rounds: all suites within three minutes.
        device: where models run.
        threads: CPU threads of this process.
        budget_s: wall seconds that the rounds of one figure may take.
        total_s: wall seconds that the suite `gpu` may take; 0 for its own budget.
        allow_tf32: let a GPU round float32 products and convolutions of all contenders to 10 bits.
        models: names of models; none for all.
        peers: packages to compare with, of those that are installed.
        targets, references: numbers to keep of those that the suite has; none for all.
        batch_size: pairs in a batch of every contender; 0 to search the best of each.
    """

    device: torch.device
    quick: bool = False
    threads: int = 1
    budget_s: float = 60.0
    total_s: float = 0.0
    allow_tf32: bool = False
    models: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    targets: tuple[int, ...] = ()
    references: tuple[int, ...] = ()
    batch_size: int = 0
