"""Where the tests of the GPU path run: on a GPU if there is one, else its kernels in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="package", autouse=True)
def one_numpy_thread() -> Iterator[None]:
    """Triton interprets its kernels with NumPy, and these are too small for two threads as well."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def kernels(device: torch.device) -> None:
    """The Triton kernels, importable: without a GPU they are interpreted, which is decided when they are imported."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")
        import service.engine.cuda.lora_kernels  # noqa: F401
