"""Pallas TPU kernels; without a TPU they run in Pallas' TPU interpreter on simulated devices."""
