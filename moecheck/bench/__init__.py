"""How fast kernels are, for real shapes, once they are found to be right."""
