"""Windows around the centre of a sequence. The centre of L bases is base L // 2, 0-based, as in inputs/loci.py."""

from pipeline.messages.errors import UserError


def centred(length: int, window: int) -> slice:
    """The positions [L // 2 - W // 2, L // 2 - W // 2 + W) of a window; UserError where it is empty or too long."""
    start = length // 2 - window // 2
    if not 0 < window <= length:
        raise UserError(f"a window of {window} bases does not fit into sequences of {length} bases")
    return slice(start, start + window)
