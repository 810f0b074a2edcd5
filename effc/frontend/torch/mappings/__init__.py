"""ATen operators to IR ops, one family a file."""
