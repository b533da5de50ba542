"""The engine on a GPU: paged KV cache, FlashAttention, Triton for the adapters, CUDA graphs for decode steps.

None of it has been measured. What does not need a device (bookkeeping, layouts, the reference computations) is tested
on a CPU; the kernels are tested in Triton's interpreter.
"""
