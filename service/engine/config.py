"""What an engine is built with. Plain values: whoever builds it decides where they come from."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and placement of one engine."""

    max_running: int = 32
    """Sequences that may hold KV cache at once."""
    max_model_len: int | None = None
    """Longest prompt plus answer, in tokens; the base's own context when None."""
    max_step_tokens: int = 512
    """Token budget of one step: decode rows first, then prefill chunks and texts to classify."""
    adapter_slots: int = 16
    """Adapters resident in device memory at once."""
    max_lora_rank: int = 64
    """Largest rank a slot can hold."""
    kv_cache_bytes: int = 4 << 30
    """Upper bound of the KV cache; it lowers the number of running sequences where needed."""
    prefix_reuse: bool = True
    """Keep what finished sequences leave in the KV cache for those that begin alike under the same adapter."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: bfloat16 where the device computes in it."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    kernels: str = "auto"
    """native (compiled for this CPU), torch, or auto: native where it can be had."""
    quantize: str = "none"
    """int8: round the weights of the base's linear layers to int8, but its output layer's; or none."""
    threads: int | None = None
    """Threads of the CPU kernels; torch's own choice when None."""


def resolve_device(name: str) -> torch.device:
    """Turn ``auto`` into cuda where there is one, else cpu.

    Raises:
        ValueError: cuda was asked for and this machine or this build of torch has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {name!r}")
    return torch.device(name)


def resolve_int8(name: str, device: torch.device) -> bool:
    """Whether the base's weights are to be rounded to int8.

    Raises:
        ValueError: they cannot be on this device.
    """
    if name not in ("none", "int8"):
        raise ValueError(f"quantize must be none or int8, not {name!r}")
    if name == "int8" and device.type != "cpu":
        raise ValueError(
            f"quantize 'int8' is for a CPU and the base runs on {device.type}; use --device cpu or leave it out"
        )
    return name == "int8"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``auto`` into bfloat16 where the device multiplies in it, else float32."""
    match name:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    raise ValueError(f"dtype must be auto, float32 or bfloat16, not {name!r}")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without the instructions a CPU emulates bfloat16 and is slower than in float32.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
