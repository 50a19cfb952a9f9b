"""One phase of training: its position, its sums, its checkpoint. Knows nothing of Lightning.

A phase is one pass over positions 0 .. total: a batch, a learning rate and the random numbers
of a step are functions of (seed, position), and the checkpoint, written whole, holds the position.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from stepwell.data import seed_of
from stepwell.methods import Objective
from stepwell.teachers import MovingAverage
from stepwell.train_mode import in_eval_mode
from stepwell.training.checkpoint import load_checked, read_checkpoint, remedy, write_checkpoint
from stepwell.training.loop import Loop
from stepwell.training.optim import Optim
from stepwell.training.progress import Progress
from stepwell.training.run import Run
from stepwell.types import not_finite

#: Steps between two reads of the losses: a GPU would wait for each single read.
READ_EVERY = 16


@runtime_checkable
class Stream(Protocol):
    """Batches of any kind, as functions of (seed, position)."""

    seed: int

    def __len__(self) -> int:
        """Batches in one epoch."""
        ...

    def sharded(self, rank: int, world: int) -> "Stream":
        """The batches of one of several processes."""
        ...

    def stream(self, start: int, stop: int) -> Iterator[Any]:
        """The batches at these positions, counted over all epochs."""
        ...


class Diverged(ValueError):
    """The loss or the weights stopped being finite."""


class Job:
    """The state of a phase; `fit` drives it."""

    def __init__(
        self, objective: Objective, train: Stream, optim: Optim, run: Run, phase: str, total: int,
        validate: Callable[[], Mapping[str, float]] | None,
        select: Callable[[Mapping[str, float]], float], loop: Loop, patience: int | None = None,
    ) -> None:  # fmt: skip
        self.objective, self.train, self.optim = objective, train, optim
        self.run, self.phase, self.total = run, phase, total
        self.validate, self.select = validate, select
        self.accumulate, self.minutes = loop.accumulate, loop.checkpoint_minutes
        self.averaged = MovingAverage(objective, loop.average) if loop.average else None
        self.folder = run.phase(phase)
        self.position = 0
        self.best, self.stale, self.patience = -math.inf, 0, patience
        self.seconds = self.cpu_seconds = 0.0
        self.sums: dict[str, tuple[float, int]] = {}
        self.optimizer: torch.optim.Optimizer | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self.writes = run.writes  # of several processes, one
        self.signum = 0  # of a signal that asked to stop; 0: none
        self.stop = False  # after this step
        self.agree: Callable[[int], int] = lambda signum: signum
        self.ended = False  # before its last step: the score got no better, or the objective is done
        self.log: Callable[[Mapping[str, Any]], None] = lambda line: None
        self.finished = False  # the objective holds the resulting weights
        self._save_due = False
        self._unread: list[tuple[int, dict[str, Tensor]]] = []
        self._clock, self._cpu_clock = time.monotonic(), time.process_time()
        self._saved_at = time.monotonic()

    def where(self) -> str:
        """The position in words."""
        epoch, step = divmod(self.position, len(self.train))
        return (
            f"phase {self.phase}, epoch {epoch + 1} of {self._epoch_at(self.total)}, step {step}, in "
            f"{self.folder}"
        )

    def cut_off(self) -> str:
        """The place where a run resumes that was stopped within a step, in words."""
        checkpoint = self.folder / "last.ckpt"
        if not checkpoint.exists():
            return f"at once, before the first checkpoint of phase {self.phase}"
        return f"at once; the last checkpoint of phase {self.phase} is {checkpoint}"

    def load_optimizer(self) -> None:
        """Give the optimizer its state of the checkpoint; ValueError if that does not fit."""
        assert self.optimizer is not None
        file = self.folder / "last.ckpt"
        try:
            self.optimizer.load_state_dict(self.optimizer_state or {})
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged ({error}): {remedy(file)}") from error
        for parameter, state in self.optimizer.state.items():
            tensors = (v for v in state.values() if isinstance(v, Tensor) and v.dim())
            if any(value.shape != parameter.shape for value in tensors):
                raise ValueError(f"{file} is damaged (its optimizer): {remedy(file)}")

    def begin_step(self, rank: int) -> None:
        """Set the share done, the learning rate and the random numbers of this step."""
        assert self.optimizer is not None
        self.objective.progress = progress = self.position / self.total
        self.objective.accumulating = self.position % self.accumulate > 0
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.optim.factor(progress)
        torch.manual_seed(seed_of(self.train.seed, self.phase, self.position, rank))

    def end_step(self, progress: Progress) -> None:
        """Count the step; at the end of an epoch, or when it is time, write a checkpoint."""
        self.position += 1
        boundary = self.position % self.accumulate == 0 or self.position == self.total
        if boundary:
            self.hear()
            self.stop = self.signum > 0
            if self.objective.done is not None:
                self.ended = self.agree(int(self.objective.done)) > 0
                self.stop |= self.ended
        if self.averaged is not None and boundary:
            self.averaged.update(self.objective)
        if len(self._unread) >= READ_EVERY:
            self.read_losses()
        progress.advance()
        last = self.ended or self.position == self.total
        if self.position % len(self.train) == 0 or last:
            self.end_epoch(progress)
            self._save_due = self.position < self.total  # `fit` saves the result after the last step
            if self.patience:  # one process decides: norms of the others may have other statistics
                self.ended |= self.agree(int(self.writes and self.stale >= self.patience)) > 0
                self.stop |= self.ended
        if self.stop or time.monotonic() - self._saved_at > 60 * self.minutes:
            self._save_due = True
        # Between boundaries there is half a gradient, which a checkpoint does not hold.
        if boundary and self._save_due:
            self.save()

    def hear(self) -> None:
        """Share a signal that one process got, so that all processes stop together."""
        self.signum = self.agree(self.signum)

    def note(self, loss: Shaped[Tensor, ""], logs: Mapping[str, Shaped[Tensor, ""]]) -> None:
        """Store a step's losses until they are read."""
        values = {"loss": loss.detach()} | {k: v.detach() for k, v in logs.items()}
        self._unread.append((self.position, values))

    def read_losses(self) -> None:
        """Add the waiting losses to the epoch's sums; `Diverged` if one is not finite."""
        unread, self._unread = self._unread, []
        for position, values in unread:
            for name, tensor in values.items():
                value = float(tensor)
                if not math.isfinite(value):
                    raise Diverged(self._diverged(f"{name} is {value}", position))
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)

    def end_epoch(self, progress: Progress) -> None:
        """Validate, save the best weights so far, and write a line of metrics."""
        self._check_state()
        assert self.optimizer is not None
        line: dict[str, Any] = {
            "phase": self.phase, "epoch": self._epoch_at(self.position), "step": self.position,
            "lr": self.optimizer.param_groups[0]["lr"],
        }  # fmt: skip
        line |= {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        if self.validate is not None:
            with self._evaluated_weights():
                values = dict(self.validate())
                line |= {f"val/{name}": value for name, value in values.items()}
                self._keep_best(values)
        line |= self._spent()
        if self.writes:
            phase, until = self.phase, self.position
            lines = [x for x in self.run.metrics() if x["phase"] != phase or x["step"] < until]
            self.run.write_metrics([*lines, line])
            self.log(line)
        progress.epoch(line)

    def save(self) -> None:
        """Write a checkpoint; of a finished phase, only the resulting weights."""
        self._check_state()
        optimizer = self.optimizer_state if self.optimizer is None else self.optimizer.state_dict()
        averaged = None if self.averaged is None else self.averaged.state_dict()
        checkpoint = {
            "position": self.position, "finished": self.finished,
            "objective": self.objective.state_dict(),
            "optimizer": None if self.finished else optimizer,
            "average": None if self.finished else averaged,
            "sums": self.sums, "best": self.best, "stale": self.stale, **self._spent(),
        }  # fmt: skip
        if self.writes:
            write_checkpoint(self.folder / "last.ckpt", checkpoint)
        self._saved_at = time.monotonic()
        self._save_due = False

    def settle(self) -> None:
        """Give the objective the resulting weights: best epoch, average, or last step."""
        best = read_checkpoint(self.folder / "best.ckpt")
        if best is not None:
            load_checked(self.objective, best["objective"], self.folder / "best.ckpt")
        elif self.averaged is not None:
            self.objective.load_state_dict(self.averaged.average.module.state_dict())
        self.finished = True

    def restore(self, saved: dict[str, Any]) -> None:
        """Go back to a checkpoint; ValueError if it is of another network or moving average."""
        file = self.folder / "last.ckpt"
        if (saved["average"] is None) != (self.averaged is None):
            has, asked = ("a", "none") if self.averaged is None else ("no", "one")
            raise ValueError(
                f"{file} holds {has} moving average of the weights and {asked} is asked for: go on "
                "with the `average` that it began with, or use another run directory"
            )
        try:
            self._restore(saved, file)
        except (TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged ({error}): {remedy(file)}") from error
        if self.validate is not None and self.best > -math.inf:
            best = self.folder / "best.ckpt"
            if not best.is_file():
                raise ValueError(f"{best}, the weights of the best epoch, is missing: {remedy(file)}")
            read_checkpoint(best)  # its damage is told now, not after the last epoch

    def _restore(self, saved: dict[str, Any], file: Path) -> None:
        load_checked(self.objective, saved["objective"], file)
        self.optimizer_state, self.position = saved["optimizer"], saved["position"]
        self.sums = {str(k): (float(total), int(n)) for k, (total, n) in saved["sums"].items()}
        self.best = saved["best"] + 0.0
        self.stale = int(saved.get("stale", 0))  # older versions knew no patience
        if type(self.position) is not int or not 0 <= self.position <= self.total:
            raise TypeError(f"position {self.position} of {self.total}")
        self.ended = bool(self.patience) and self.stale >= (self.patience or 0)
        self.ended |= bool(self.objective.done)
        self.seconds, self.cpu_seconds = float(saved["seconds"]), float(saved["cpu_seconds"])
        if self.averaged is not None:
            load_checked(self.averaged, saved["average"], file)
        self._clock, self._cpu_clock = time.monotonic(), time.process_time()

    def _epoch_at(self, position: int) -> int:
        """The number of the epoch, from 1, that ends at a position."""
        return math.ceil(position / len(self.train))

    def _check_state(self) -> None:
        """Refuse a removed run and values that are not finite, before anything is written."""
        self.read_losses()
        if self.writes and not self.folder.is_dir():
            raise FileNotFoundError(f"{self.run.path} was removed while it trained: start again")
        if name := not_finite(self.objective.state_dict()):
            raise Diverged(self._diverged(f"{name} is not finite", self.position - 1))

    def _keep_best(self, values: Mapping[str, float]) -> None:
        score = self.select(values)
        self.stale += 1
        if score > self.best:
            self.best, self.stale = score, 0
            if self.writes:
                state = self.objective.state_dict()
                write_checkpoint(self.folder / "best.ckpt", {"objective": state})

    @contextlib.contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """Set eval mode, and the averaged weights if there is an average."""
        saved = None
        if self.averaged is not None:
            saved = {k: v.clone() for k, v in self.objective.state_dict().items()}
            self.objective.load_state_dict(self.averaged.average.module.state_dict())
        try:
            with in_eval_mode(self.objective):
                yield
        finally:
            if saved is not None:
                self.objective.load_state_dict(saved)

    def _spent(self) -> dict[str, float]:
        """Seconds of training so far; a killed process counts up to its last checkpoint."""
        now, cpu = time.monotonic(), time.process_time()
        self.seconds += now - self._clock
        self.cpu_seconds += cpu - self._cpu_clock
        self._clock, self._cpu_clock = now, cpu
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def _diverged(self, problem: str, position: int) -> str:
        epoch, step = divmod(position, len(self.train))
        file = self.folder / "last.ckpt"
        remedy = "Start again with a lower --lr, a --clip such as 1, or lower weights of the losses"
        if file.exists():
            remedy = f"The last good checkpoint is {file}. {remedy}, and another --out"
        where = f"at step {step} of epoch {epoch + 1} (phase {self.phase})"
        return f"training diverged: {problem} {where}. {remedy}"
