"""MoE kernels in CUDA C++, built just in time for the GPU at hand (docs/cuda.md)."""
