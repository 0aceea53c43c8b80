"""What sequences are compared with: one file for each kind of references."""
