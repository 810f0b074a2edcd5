"""Side-by-side measurements against the engines people use today."""
