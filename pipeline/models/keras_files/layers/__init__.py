"""Layers of Keras as torch modules: a file for each kind, and the table of all."""
