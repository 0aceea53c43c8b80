"""The network of the packaged example: small enough for a laptop, with every kind of layer that a first try meets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pipeline.models.checkpoint import checkpoint_path, read_checkpoint
from pipeline.models.family import ModelFamily, Raw
from pipeline.models.fitting import load_weights

EXAMPLE_CHECKPOINT = Path(__file__).parent.parent / "example" / "model.safetensors"


@dataclass
class Example(ModelFamily):
    """The model of the packaged example."""

    name: str = "example"

    def read(self, checkpoint: str | None) -> Raw:
        path, net = checkpoint_path(checkpoint or EXAMPLE_CHECKPOINT), ExampleNet(**self.init)
        weights = read_checkpoint(path, prefix=self.prefix)
        assert isinstance(weights, Mapping)  # an untrusted module was refused
        return Raw(net, path, self.init, fitted=load_weights(net, weights, path, self.prefix))


class ExampleNet(nn.Module):
    """Two convolutions with ReLU, max-pooling between them, their mean over the sequence, and a dense layer.

    (N, 4, L) one-hot -> (N, 1), for any L of 8 or more.
    """

    def __init__(self, n_filters: int = 32, kernel: int = 13, n_hidden: int = 32, pool: int = 4) -> None:
        """Args:
        n_filters: filters of the first convolution.
        kernel: their width in bases, odd.
        n_hidden: filters of the second convolution and units of the dense layer.
        pool: positions joined by the max-pooling between the convolutions.
        """
        super().__init__()
        self.motifs = nn.Conv1d(4, n_filters, kernel, padding=kernel // 2)
        self.motifs_relu = nn.ReLU()
        self.pool = nn.MaxPool1d(pool)
        self.context = nn.Conv1d(n_filters, n_hidden, 5, padding=2)
        self.context_relu = nn.ReLU()
        self.dense = nn.Linear(n_hidden, n_hidden)
        self.dense_relu = nn.ReLU()
        self.output = nn.Linear(n_hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4, L) one-hot -> (N, 1)."""
        matches = self.pool(self.motifs_relu(self.motifs(x)))
        summed = self.context_relu(self.context(matches)).mean(dim=-1)
        return self.output(self.dense_relu(self.dense(summed)))
