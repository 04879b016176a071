"""The variant axis."""
