"""Storage backends: a folder of a disk, or a prefix of an object store."""
