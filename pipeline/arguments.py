"""What the parsers of all commands share."""

import argparse
from typing import NoReturn

from pipeline.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an error like any other of the user's: one line, or JSON where that is asked for."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; `{self.prog} --help` says what there is")
