"""Judgements on a kernel run: each module holds one check."""
