"""What a step in bfloat16 computes by the compiled kernels (:mod:`adapters.native`), each with its gradients."""
