"""What a run is: schemas, checks across their fields, and composing with Hydra."""
