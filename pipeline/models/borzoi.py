"""Borzoi, as the package borzoi-pytorch has it. Its output is in conf/model/borzoi.yaml."""

from dataclasses import dataclass

from pipeline.models.module import Module


@dataclass
class Borzoi(Module):
    """Borzoi of borzoi-pytorch."""

    name: str = "borzoi"
