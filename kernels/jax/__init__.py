"""MoE kernels composed of JAX operations under jit; they run on CPU, GPU and TPU."""
