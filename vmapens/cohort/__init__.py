"""Parquet in, tensors out."""
