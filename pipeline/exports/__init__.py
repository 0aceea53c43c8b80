"""Rows of a store in the formats that the next tools read: one file for each format."""
