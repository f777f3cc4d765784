"""MoE kernels composed of plain PyTorch operations; they run on CPU and CUDA."""
