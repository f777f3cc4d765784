"""Thin adapters around other projects' MoE code; each accepts only what the library itself implements."""
