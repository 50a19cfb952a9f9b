"""A network in one's own loop that keeps to a time by going shallower."""

import time
from functools import partial

import numpy as np
import torch

from stepwell.cost.latency import synchronised
from stepwell.nets.nested.net import NestedNet
from stepwell.nets.predictions import Answers
from stepwell.ranges import POSITIVE, check_number
from stepwell.serve.controller import HYSTERESIS, Controller, ladder_of
from stepwell.serve.latencies import measure_table
from stepwell.train_mode import check_eval_mode
from stepwell.types import Images

#: Shapes of batches whose times are known at a time; texts have a shape for each length.
SHAPES = 64


class BudgetRunner:
    """Runs a batch at the deepest depth that keeps to `ms`, and watches the time.

    >>> runner = stepwell.BudgetRunner(net, ms=30)  # doctest: +SKIP
    >>> logits, depths = runner(images)  # doctest: +SKIP
    >>> runner.ms = 60  # when the battery is charged again  # doctest: +SKIP

    Every batch corrects the known times, so the runner goes shallower on a device that slows down. The
    first batch of each shape measures the depths. A time that no depth keeps gets the fastest one.

    Args:
        ms: milliseconds for each batch; may be changed at any time.
        hysteresis: the share of `ms` that must stay free before a deeper depth is taken, so that
            answers do not flicker between depths.

    Raises:
        ValueError: the network is in train mode or has an untrained depth; a number out of range.
    """

    def __init__(self, net: NestedNet, *, ms: float, hysteresis: float = HYSTERESIS) -> None:
        check_number("ms", ms, POSITIVE)
        check_eval_mode(net)
        net.require_ready()
        self.net, self.ms, self.hysteresis = net, ms, hysteresis
        self._controllers: dict[tuple[int, ...], Controller] = {}

    @torch.inference_mode()
    def __call__(self, x: Images) -> Answers:
        """Give the logits of a batch, and for each row the depth that answered."""
        controller = self._controller(x)
        seconds = np.array([self.ms / 1000])
        depth, _ = controller.choose(seconds, seconds)
        start = time.perf_counter()
        logits, depths = self.net.answers(x, depth)
        synchronised(logits)
        controller.table.correct(depth, 1, time.perf_counter() - start)
        return logits, depths

    def times(self, x: Images) -> dict[str, float]:
        """Milliseconds that each depth is expected to take for a batch of this shape."""
        table = self._controller(x).table
        return {depth: 1000 * table.seconds(depth) for depth in table.rows}

    def _controller(self, x: Images) -> Controller:
        """The controller for batches of the shape of `x`; a whole batch counts as one input."""
        if x.shape not in self._controllers:
            run = partial(self._try, x)
            table = measure_table(run, [*self.net.depths], [1])
            ladder = ladder_of(table, self.net.full, self.net.card.costs)
            if len(self._controllers) >= SHAPES:
                del self._controllers[next(iter(self._controllers))]
            self._controllers[x.shape] = Controller(table, ladder, hysteresis=self.hysteresis)
        return self._controllers[x.shape]

    def _try(self, x: Images, depth: str, size: int) -> None:
        synchronised(self.net.answers(x, depth)[0])
