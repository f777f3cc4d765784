"""Training of the embedded models on generated problems: `python -m moecheck.evals.train NAME --out DIR`."""
