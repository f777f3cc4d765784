"""A paired run as files: e2e.json, summary.md and one self-contained page."""
