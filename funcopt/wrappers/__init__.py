"""Transformations made from transformations: masks, partitions, accumulation, conditions, averages, injection."""
