"""The room that makes adapters: rows in, a LoRA adapter out. It knows nothing of serving."""
