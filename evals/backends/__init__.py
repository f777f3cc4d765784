"""What an end-to-end run talks to: one protocol (backend.py), three backends.

Each backend module has one entry, `open_model(...) -> Model`: embedded.open_model(name: str), with embedded.MODELS, the
names that it knows, the default first; transformers.open_model(name_or_path: str); server.open_pair(...).
Missing weights, packages or network are a UsageError of one sentence. The held-out problems of the embedded models are
a file in gsm8k's own form (JSON lines with `question` and `answer`, and `cluster`, the template, for its statistics):
moecheck.evals.problems.held_out() -> Path.
"""
