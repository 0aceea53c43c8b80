"""How many sequence-reference pairs go through the model at once."""


def auto_batch_size(length: int, n_references: int, device: str, most: int | None = None) -> int:
    """Pairs in a batch where engine.batch_size=auto, from the sequence length (bases) and the kind of device.

    About 2**17 bases on a CPU, where a batch should stay near its caches, and 2**21 on a GPU, where it should keep the
    device busy, if `most` pairs fit its memory; whole sequences where they fit, and at most 64 of them.
    """
    pairs = max(1, (1 << 17 if device == "cpu" else 1 << 21) // length)
    pairs = pairs if most is None else min(pairs, most)
    if pairs < n_references:
        return pairs
    return min(64, pairs // n_references) * n_references
