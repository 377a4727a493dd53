"""Transformations that are no optimizer's own: scaling, momentum, clipping, decay, noise, constraints."""
