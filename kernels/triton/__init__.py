"""MoE kernels in Triton: on a GPU, or on the CPU under Triton's interpreter with its numerics corrected."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from moecheck.runner.triton_interpreter import correct

    correct()
