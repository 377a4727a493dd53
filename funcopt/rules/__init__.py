"""Update rules, one file per lineage: its state, `scale_by_x`, and the optimizers made of it."""
