"""The engine: one frozen base model, many adapters, one batch per step. Torch only: no HTTP, no pydantic."""
