"""The compiled CPU kernels; most of their tests need them, and so a C compiler."""

from collections.abc import Iterator

import pytest
import torch

from adapters.native import library


@pytest.fixture(scope="package")
def compiled() -> None:
    """The kernels, or a reason why not."""
    if library.load_library() is None:
        pytest.skip("the CPU kernels could not be compiled on this machine")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"], scope="module")
def dtype(request: pytest.FixtureRequest, compiled: None) -> torch.dtype:
    """Every type of number that the kernels compute in."""
    if not library.supports(request.param):
        pytest.skip(f"this CPU does not multiply in {request.param}")
    kind: torch.dtype = request.param
    return kind


@pytest.fixture
def afresh() -> Iterator[None]:
    """Looks for the library anew, and again for those who come after."""
    library.load_library.cache_clear()
    yield
    library.load_library.cache_clear()
