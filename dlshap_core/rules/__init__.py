"""Rules: what replaces the gradient of an operation so that contributions add up to the difference of predictions."""
