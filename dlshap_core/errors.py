"""Errors of the core, written for the person who gets them."""


class UnsupportedModelError(ValueError):
    """The model does something that cannot be attributed exactly; the message names the operation and its module."""
