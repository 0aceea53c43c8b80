"""Reading a store again, byte by byte, and giving up what is damaged."""
