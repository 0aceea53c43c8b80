"""Enformer, as the package enformer-pytorch has it. Its layout and its output are in conf/model/enformer.yaml."""

from dataclasses import dataclass

from pipeline.models.module import Module


@dataclass
class Enformer(Module):
    """Enformer of enformer-pytorch."""

    name: str = "enformer"
