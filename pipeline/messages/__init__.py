"""What people are told: errors, the words they are written in, and progress."""
