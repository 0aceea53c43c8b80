"""Pictures of what a store holds; needs matplotlib (the extra `report`)."""
