"""Passes over a model: sequences observed, references replayed against them, and what is asked of both."""
