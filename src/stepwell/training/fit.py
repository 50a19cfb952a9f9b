"""The training loop: the one file that imports Lightning.

Lightning brings devices, precision, gradient clipping and accumulation, and DDP. A run that is killed
with Lightning alone does not end bit-identical: its loader resumes with other batches, its checkpoint
holds no random state, and its save is not atomic. So a `Job` holds the state of the training, and
Lightning takes the steps.
"""

import contextlib
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from stepwell.files import write_whole
from stepwell.measures import SCORES
from stepwell.methods import Objective
from stepwell.ranges import check_numbers
from stepwell.train_mode import train_unfrozen
from stepwell.training.checkpoint import LAST, load_checked, read_checkpoint
from stepwell.training.job import Job, Stream
from stepwell.training.local_rates import suited
from stepwell.training.loop import Loop
from stepwell.training.optim import Optim
from stepwell.training.progress import Progress, tell
from stepwell.training.run import Run


class Stopped(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM, SIGHUP) and left a whole checkpoint."""

    def __init__(self, signum: int, where: str) -> None:
        super().__init__(signum, where)  # both, or another process could not unpickle it
        self.signum, self.where = signum, where

    def __str__(self) -> str:
        return self.where


class _AtOnce(BaseException):
    """A second request to stop. Of a KeyboardInterrupt Lightning would make an exit code of 1."""


def fit(
    objective: Objective, train: Stream, optim: Optim, run: Run, *, phase: str,
    epochs: int | None = None, steps: int | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    select: Callable[[Mapping[str, float]], float] | None = None, loop: Loop = Loop(),
    patience: int | None = None,
) -> int:  # fmt: skip
    """Train `objective`; resume a killed phase, or load the result of a finished one.

    The length is given in `epochs`, or in `steps` (batches), which may end amid an epoch. Every epoch
    appends a line to the run's metrics.jsonl and writes a checkpoint; a finished phase's holds only
    weights. The objective ends with the weights of its best epoch if there is `validate`, else of the
    last.

    The filters of adder layers get the adaptive local learning rate, unless `optim` prepares gradients.

    Modules in eval mode inside a network in train mode, such as frozen norms, stay so. A network that
    is in eval mode as a whole, as `load` gives it, is set to train mode.

    Args:
        train: batches; their seed also seeds the steps (dropout, sampling).
        phase: a name; its checkpoints stand under `RUN/phases/NAME`.
        validate: measures the network on a validation part; gives numbers by name.
        select: maps these numbers to a score, higher is better; by default their mean over names that
            end in "accuracy", or "pearson" of numbers.
        patience: epochs without a better score after which the phase ends. The learning rate stays
            planned for all epochs.

    Returns:
        The steps of the phase; fewer than planned if `patience` or the objective (`done`) ended it.

    Raises:
        Diverged: the loss is not finite; the last good checkpoint stays.
        ValueError: neither `epochs` nor `steps` is given, or both; what is saved is of another network,
            method or moving average.
        Stopped: a signal asked to stop; the same command resumes from the checkpoint.
        OSError: the disk is full; the last whole checkpoint stays.
    """
    check_numbers({"epochs": epochs, "steps": steps, "loop": loop, "patience": patience})
    if patience is not None and validate is None:
        raise ValueError(f"patience {patience} counts epochs without a better score: give validate")
    if (epochs is None) == (steps is None):
        raise ValueError("give the length of a phase in epochs or in steps, one of the two")
    total = (steps or 0) if epochs is None else epochs * len(train)
    loop.check()
    folder = run.phase(phase)
    saved = read_checkpoint(folder / "last.ckpt", LAST)
    if saved is not None and saved["finished"]:
        load_checked(objective, saved["objective"], folder / "last.ckpt")
        _close(folder, run.writes)
        return int(saved["position"])
    job = Job(
        objective,
        train,
        suited(optim, objective),
        run,
        phase,
        total,
        validate,
        select or _mean_score,
        loop,
        patience,
    )
    if saved is not None:
        job.restore(saved)
    if job.writes and loop.log != "none":
        job.log = _logger(job, loop)
    if job.position < job.total and not job.ended:
        with _signals(job) as install:
            _run_lightning(job, loop, install)
    if job.signum:
        raise Stopped(job.signum, job.where())
    if job.ended:
        epochs_ = f"{patience} epoch{'s' * (patience != 1)}"
        text = f"{phase}: stopped, because {epochs_} brought no better validation score"
        if objective.done:
            taken = f"{job.position:,} of {job.total:,} steps"
            text = f"{phase}: stopped after {taken}, because its loss is below the threshold"
        tell(text, quiet=not job.writes)
    if not job.finished:
        job.settle()
    job.save()
    _close(folder, job.writes)
    return job.position


def _close(folder: Path, writes: bool) -> None:
    """Mark a phase done; its last checkpoint holds the result, so no other is needed."""
    if writes:
        (folder / "best.ckpt").unlink(missing_ok=True)
        write_whole(folder / "done", b"")


class _Rest:
    """The remaining batches of a training, as an iterable for Lightning."""

    def __init__(self, batches: Stream, start: int, stop: int) -> None:
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Any]:
        return self.batches.stream(self.start, self.stop)


def _run_lightning(job: Job, loop: Loop, install_signals: Callable[[], None]) -> None:
    """Take the job's remaining steps."""
    with warnings.catch_warnings():
        # Lightning and the libraries below it warn of their own internals and of worker counts.
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning|torch)\b")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        import pytorch_lightning as lightning
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)

    class Steps(lightning.LightningModule):
        """Hands each batch to the objective."""

        def __init__(self) -> None:
            super().__init__()
            self.objective = job.objective

        def train_dataloader(self) -> _Rest:
            batches = job.train
            if self.trainer.world_size > 1:
                batches = batches.sharded(self.trainer.global_rank, self.trainer.world_size)
            return _Rest(batches, job.position, job.total)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            job.optimizer = job.optim.make(job.objective)
            for group in job.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
            if job.optimizer_state is not None:
                job.load_optimizer()
            return job.optimizer

        def on_train_start(self) -> None:
            install_signals()  # after Lightning's own, which would end the loop with an exception
            if self.trainer.world_size > 1:
                # of its own, between processors: no step waits for a GPU
                group = torch.distributed.new_group(backend="gloo")
                job.agree = partial(_largest, group=group)
            if job.averaged is not None:
                job.averaged.to(self.device)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            job.begin_step(self.trainer.global_rank)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            step = job.objective.training_step(batch)
            job.note(step.loss, step.logs)
            return step.loss

        def configure_gradient_clipping(
            self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
            gradient_clip_algorithm: str | None = None,
        ) -> None:  # fmt: skip
            prepare = job.optim.prepare
            prepared = (None if prepare is None else prepare(job.objective)) or ()
            gradients = [(parameter, parameter.grad) for parameter in prepared]
            for parameter in prepared:
                parameter.grad = None
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            for parameter, gradient in gradients:
                parameter.grad = gradient

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            job.end_step(progress)
            self.trainer.should_stop = job.stop

        def on_train_end(self) -> None:
            job.hear()
            done = job.ended or job.position == job.total
            if self.trainer.world_size == 1 or not done:
                return
            # The checkpoints are the first process's, and so are the statistics of its norms.
            if job.writes:
                job.settle()
            weights = self.trainer.strategy.broadcast(job.objective.state_dict())
            job.objective.load_state_dict(weights)
            job.finished = True

    epoch = len(job.train)
    progress = Progress(job.phase, job.position, job.total, epoch, quiet=not job.writes)
    with warnings.catch_warnings(), progress:
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning)\b")
        # A sub-net that does not train yet has parameters without gradients.
        strategy = "ddp_find_unused_parameters_true" if loop.devices > 1 else "auto"
        trainer = lightning.Trainer(
            accelerator=loop.device, devices=loop.devices, strategy=strategy, max_epochs=1,
            precision="bf16-mixed" if loop.precision == "bf16" else "32-true",
            gradient_clip_val=loop.clip or None, accumulate_grad_batches=loop.accumulate,
            limit_val_batches=0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        job.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train_unfrozen(job.objective)
        trainer.fit(Steps())
    job.objective.cpu()


def _logger(job: Job, loop: Loop) -> Callable[[Mapping[str, Any]], None]:
    """A call that logs a line of metrics under RUN/logs/PHASE; earlier lines are logged again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    folder = job.run.path / "logs"
    shutil.rmtree(folder / job.phase, ignore_errors=True)  # both loggers would add to what is there
    kind = CSVLogger if loop.log == "csv" else TensorBoardLogger
    logger = kind(folder, name="", version=job.phase)

    def log(line: Mapping[str, Any]) -> None:
        numbers: dict[str, Any] = {n: float(v) for n, v in line.items() if n not in ("phase", "step")}
        logger.log_metrics(numbers, step=line["step"])
        logger.save()
        if loop.log == "tensorboard":
            logger.experiment.flush()

    for line in job.run.metrics():
        if line["phase"] == job.phase and line["step"] <= job.position:
            log(line)
    return log


def _largest(number: int, group: Any) -> int:
    """The largest of the numbers of all processes of `group`."""
    numbers = torch.tensor(number)
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX, group)
    return int(numbers)


@contextlib.contextmanager
def _signals(job: Job) -> Iterator[Callable[[], None]]:
    """Let signals stop the job after the step; yields a call that installs this again.

    The signals are Ctrl-C, SIGTERM and a lost terminal. A second one stops at once, further ones change
    nothing. The old handlers come back at the end.
    """
    asked = 0

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise _AtOnce
        if asked == 1 and job.writes and not os.environ.get("STEPWELL_QUIET"):
            with contextlib.suppress(OSError):  # by the descriptor: a signal may interrupt a print
                os.write(2, b"\nstopping after this step; once more stops at once\n")
        job.signum = job.signum or signum

    def install() -> None:
        for name in before:
            signal.signal(name, ask)

    names = [signal.SIGINT, signal.SIGTERM]
    names += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none
    main = threading.current_thread() is threading.main_thread()
    before = {name: signal.getsignal(name) for name in names} if main else {}
    install()
    try:
        yield install
    except _AtOnce:
        raise Stopped(job.signum, job.cut_off()) from None
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _mean_score(values: Mapping[str, float]) -> float:
    scores = [v for name, v in values.items() if name.endswith(SCORES)]
    if not scores:
        raise ValueError(f"validate gives no {' or '.join(SCORES)}: say what to select by")
    return sum(scores) / len(scores)
