"""Linear algebra for update rules: matrix functions made of products alone."""
