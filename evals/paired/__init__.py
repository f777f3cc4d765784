"""One paired run: both arms on the same questions in the same batches, signal by signal, to a verdict."""
