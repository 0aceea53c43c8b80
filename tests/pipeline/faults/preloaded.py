"""Everything that a command needs and that takes long to import, for processes that are forked from one that has it."""

import pipeline.cli.main
import pipeline.execution.run

__all__ = ["pipeline"]
