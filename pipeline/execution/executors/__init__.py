"""One module for each `cluster=`: none, local, address; and what those on Ray share (ray_*.py)."""
