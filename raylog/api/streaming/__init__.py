"""Datasets as streams of batches: the order is computed, the resume is exact."""
