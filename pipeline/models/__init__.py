"""Models ready to be attributed: one file for each family; weights, layouts, outputs, folds."""
