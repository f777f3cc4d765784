"""The harness put to the test: how many known bugs it sees, and whether it accuses correct kernels."""
