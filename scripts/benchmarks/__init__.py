"""What the parts of the project cost, as ratios from interleaved runs, with medians; `scripts/benchmark` runs it."""
