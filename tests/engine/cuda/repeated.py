"""What a CUDA graph does, without one."""

from collections.abc import Callable

from service.engine.cuda.graphs import Outputs


class RepeatedCall:
    """The same call again, its results written where the first ones were."""

    def __init__(self) -> None:
        self.captured = 0

    def capture(self, run: Callable[[], Outputs]) -> Outputs:
        self.captured += 1
        self.run, self.outputs = run, run()
        return self.outputs

    def replay(self) -> None:
        for output, new in zip(self.outputs, self.run(), strict=True):
            output.copy_(new)
