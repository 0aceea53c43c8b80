"""What exports and reports compute from a store: k-mers, agreement of folds, effects of variants."""
