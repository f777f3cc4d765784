"""Runs kernels under test in processes of their own, and judges what they return."""

PRELOAD_VARIABLE = "MOECHECK_PRELOAD_THIRD_PARTY"  # set: the fork server imports JAX and transformers too
