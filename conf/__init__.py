"""Hydra configuration: what a run is. The schema of every key is in pipeline/config/schema.py."""
