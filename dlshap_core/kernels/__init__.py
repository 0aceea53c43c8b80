"""How values are computed and lie in memory on a CPU: one-pass kernels, their threads, the order of axes."""
