"""The same mathematics in less time: no padding, common beginnings once, logits where something is learned.

Each lever stands alone and can be switched off; with all of them off a step is transformers' and PEFT's own.
"""
