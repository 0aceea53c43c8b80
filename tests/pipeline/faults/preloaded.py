"""Everything that a command needs and that takes long to import, for processes that are forked from one that has it."""

import torch._inductor  # torch imports it when algorithms are to be deterministic

import pipeline.cli
import pipeline.driver

__all__ = ["pipeline", "torch"]
