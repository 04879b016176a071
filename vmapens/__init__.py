"""vmapens: many seeds of one attention model, trained as one tensor."""

__version__ = "0.1.0"
