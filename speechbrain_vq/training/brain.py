"""Any Brain becomes a VQ Brain.

Authors
 * speechbrain_vq authors 2026
"""

import contextlib
import logging

import speechbrain as sb
import torch

from speechbrain_vq.nnet.bottleneck import Bottleneck
from speechbrain_vq.nnet.distributed import sum_over_ranks
from speechbrain_vq.training.checkpoints import (
    WARMUP,
    MonitorState,
    RandomState,
    rank_warmup_last,
    save_whole,
)
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.training.optimizers import CodebookOptimizer
from speechbrain_vq.training.reinit import CodebookReinitializer, agree
from speechbrain_vq.training.schedules import ReinitSchedule

logger = logging.getLogger(__name__)


class VQMixin:
    """Trains the quantizers among a Brain's modules as arXiv 2005.08520 does.

    Name it first among the bases: ``class MyBrain(VQMixin, ASR)``. Quantizers
    are found in ``self.modules``. Their codebooks get an optimizer of their
    own, are re-estimated on a schedule that counts optimizer steps, and are
    watched: their use over each stage goes to ``hparams.train_logger``, to
    the progress bar and to the meta of every checkpoint. Checkpoints are
    written whole or not at all and carry the random state. A batch whose loss
    is not finite makes no step.

    Reads from ``hparams``, all optional:

    codebook_lr_multiplier : float
        The codebook's learning rate over the model's (10).
    reinit_schedule : ReinitSchedule
        When to re-estimate; absent or null: never.
    token_rate : float
        Frames a second at the quantizer, for the bit rate.

    Example
    -------
    >>> from speechbrain_vq import VectorQuantizer
    >>> class AutoEncoder(VQBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.quantizer(self.modules.encoder(batch[0]))
    ...
    ...     def compute_objectives(self, output, batch, stage):
    ...         error = torch.nn.functional.mse_loss(output[0], batch[0])
    ...         return error + output.loss
    >>> from speechbrain_vq import ReinitSchedule
    >>> brain = AutoEncoder(
    ...     {
    ...         "encoder": torch.nn.Linear(8, 8),
    ...         "quantizer": VectorQuantizer(8, 16),
    ...     },
    ...     lambda parameters: torch.optim.Adam(parameters, lr=0.001),
    ...     {"reinit_schedule": ReinitSchedule(warmup=2, every=2)},
    ... )
    >>> data = [(torch.randn(4, 10, 8),) for _ in range(6)]
    >>> brain.fit(range(1), data, progressbar=False)
    >>> brain.codebook_lr.optimizer.param_groups[0]["lr"]
    0.01
    >>> brain.vq_stats["train"]["used_codes_percent"] > 90
    True
    """

    codebook_lr = None
    monitors = None
    _steps_per_epoch = None

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """The quantizers in ``self.modules`` by name, wrappers left out, and
        those of models that are frozen, such as a tokenizer."""
        wrappers = ("module", "_orig_mod")
        frozen = {
            part
            for module in self.modules.modules()
            if getattr(module, "frozen", False)
            for part in module.modules()
        }
        return {
            ".".join(p for p in name.split(".") if p not in wrappers): module
            for name, module in self.modules.named_modules()
            if isinstance(module, Bottleneck) and module not in frozen
        }

    def on_fit_start(self):
        """Gets the codebooks ready, then recovers the latest checkpoint."""
        self._set_up()
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("random_state", RandomState())
            self.checkpointer.add_recoverable(
                "vq_monitor", MonitorState(self.monitors)
            )
            save_whole(self.checkpointer, self._checkpoint_meta)
        # The init_optimizers() of a Brain with optimizers of its own does not
        # call super(), wherever it stands among the bases.
        self.init_optimizers = self._init_all_optimizers
        super().on_fit_start()
        agree(self.quantizers)
        if self.optimizer_step and not sb.utils.distributed.if_main_process():
            self._leave_to_first_rank()
        self._make_reinitializer()

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Recovers the best checkpoint past the warm-up, if there is one."""
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        # Neither sums nor a codebook from before the recovery belong here.
        self._start_stage("test")
        if any(quantizer.bypass for quantizer in self.quantizers.values()):
            logger.warning(
                "There is no checkpoint past the warm-up: what is evaluated "
                "does not quantize."
            )

    def freeze_optimizers(self, optimizers):
        """The active optimizers: those of the Brain below, which cannot know
        of the codebook's, and this one."""
        active = super().freeze_optimizers(optimizers)
        own = {k: v for k, v in optimizers.items() if k == "codebook"}
        return {**active, **own}

    def _init_all_optimizers(self):
        type(self).init_optimizers(self)
        codebooks = [
            quantizer.codebook
            for quantizer in self.quantizers.values()
            if quantizer.codebook.requires_grad
        ]
        if self.optimizers_dict is None and hasattr(self, "optimizer"):
            self.optimizers_dict = {"optimizer": self.optimizer}
        multiplier = getattr(self.hparams, "codebook_lr_multiplier", None)
        if not codebooks and multiplier not in (None, 1):
            logger.warning(
                "codebook_lr_multiplier=%s has no effect: no codebook here "
                "learns by gradient.",
                multiplier,
            )
        if not codebooks or self.optimizers_dict is None:
            return
        self.codebook_lr = CodebookOptimizer(
            self.optimizers_dict.values(),
            codebooks,
            10.0 if multiplier is None else multiplier,
        )
        optimizer = self.codebook_lr.optimizer
        self.optimizers_dict["codebook"] = optimizer
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("codebook_optimizer", optimizer)

    def fit_batch(self, batch):
        """Fits a batch; after an optimizer step the schedule is asked."""
        before = self.optimizer_step
        self._keep()
        loss = super().fit_batch(batch)
        if self.optimizer_step > before:
            self._act()
        return loss

    def check_loss_isfinite(self, loss):
        """Notes a loss that is not finite, on any rank; patience ends on all
        ranks at once."""
        bad = ~torch.isfinite(loss.detach())
        if bool(sum_over_ranks(bad.float())):
            self._nonfinite = True
            self._take_back()
            loss = torch.full_like(loss.detach(), torch.nan)
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Steps, with the codebook's learning rate at its multiple of the
        model's; a batch that was not finite is left out and told."""
        if self._nonfinite and not self.scaler.is_enabled():
            self._skip_step()
        else:
            if self.codebook_lr is not None:
                self.codebook_lr.follow()
            super().optimizers_step()
        self._nonfinite = False
        # SpeechBrain lets the gradients pile up of what freeze_optimizers()
        # leaves out.
        for optimizer in (self.optimizers_dict or {}).values():
            optimizer.zero_grad(set_to_none=True)

    def make_dataloader(
        self, dataset, stage, ckpt_prefix="dataloader-", **loader_kwargs
    ):
        """As the Brain's, with a generator of the loader's own: torch draws
        from the global one at each epoch's start, but not at its middle, where
        a resumed run starts."""
        seed = torch.initial_seed() % 2**63
        loader_kwargs.setdefault(
            "generator", torch.Generator().manual_seed(seed)
        )
        return super().make_dataloader(
            dataset, stage, ckpt_prefix, **loader_kwargs
        )

    def evaluate(self, *args, **kwargs):
        """Evaluates, and logs the codebooks' use on the test set."""
        self._set_up()
        self._start_stage("test")
        loss = super().evaluate(*args, **kwargs)
        self._log({"step": self.optimizer_step}, "test")
        return loss

    def _fit_train(self, train_set, epoch, enable):
        self._nonfinite = False
        with contextlib.suppress(TypeError):
            batches = len(train_set)
            if self.debug:
                batches = min(batches, self.debug_batches)
            steps = batches // self.grad_accumulation_factor
            self._steps_per_epoch = max(steps, 1)
        self._act(at_start=True)
        # A stage resumed in its middle goes on with the sums recovered.
        self._start_stage("train", keep=self.step > 0)
        with _progress_bar(self._postfix):
            super()._fit_train(train_set, epoch, enable)
        # The sums of this stage are closed before validation adds to them.
        self._close_stage()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Gradients are not saved: between two steps, some would be lost.
        if self.step % self.grad_accumulation_factor:
            return False
        return super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )

    def _fit_valid(self, valid_set, epoch, enable):
        if valid_set is not None:
            self._start_stage("valid")
        super()._fit_valid(valid_set, epoch, enable)
        names = ["train"] if valid_set is None else ["train", "valid"]
        self._log({"epoch": epoch}, *names)

    # ---------------------------------------------------------------------

    @property
    def vq_stats(self) -> dict[str, dict[str, float]]:
        """The use of the codebooks in each stage so far: plain numbers by
        name under ``"train"``, ``"valid"`` and ``"test"``."""
        if self._stage is not None:
            self._stats[self._stage] = self._stage_stats()
        return self._stats

    def _set_up(self) -> None:
        if self.monitors is not None:
            return
        if not self.quantizers:
            raise ValueError(
                "There is no quantizer among the Brain's modules "
                f"({', '.join(self.modules)}): name one in `modules`, not in "
                "the hparams alone."
            )
        if not hasattr(self, "hparams"):
            raise ValueError("A VQ Brain needs hparams, {} will do.")
        rate = getattr(self.hparams, "token_rate", None)
        self.monitors = {
            name: UsageMonitor(quantizer, rate)
            for name, quantizer in self.quantizers.items()
        }
        self._stats, self._stage = {}, None
        self._nonfinite = False
        self._postfix_at, self._postfix_text = None, {}
        self._steps_skipped = 0
        self.schedule = getattr(self.hparams, "reinit_schedule", None)
        if not isinstance(self.schedule, ReinitSchedule | None):
            raise TypeError(
                "reinit_schedule must be a ReinitSchedule or null, got "
                f"{self.schedule!r}."
            )
        if self.checkpointer is not None:
            rank_warmup_last(self.checkpointer)

    def _leave_to_first_rank(self) -> None:
        # A checkpoint holds the samples, sums and random state of the first
        # rank; taken by all, they would count as often as there are ranks.
        torch.manual_seed(torch.initial_seed() + torch.distributed.get_rank())
        for quantizer in self.quantizers.values():
            if quantizer.reservoir is not None:
                quantizer.reservoir.reset()
        for monitor in self.monitors.values():
            monitor.start()

    def _make_reinitializer(self) -> None:
        self.reinitializer = None
        if self.schedule is not None and self.schedule.reestimates:
            optimizer = self.codebook_lr and self.codebook_lr.optimizer
            self.reinitializer = CodebookReinitializer(
                self.quantizers, optimizer, self.schedule.scope
            )

    def _act(self, at_start: bool = False) -> None:
        """Does what the schedule says for the steps made so far; at the start
        of a run or an epoch only whether to quantize."""
        if self.schedule is None:
            return
        action = self.schedule(self.optimizer_step, self._steps_per_epoch)
        if not at_start and action.reestimate:
            self.reinitializer(self.optimizer_step)
        elif not at_start and action.reset and self.reinitializer:
            self.reinitializer.reset()
        for quantizer in self.quantizers.values():
            quantizer.bypass = action.bypass

    def _keep(self) -> None:
        """Copies what a forward changes: whether its loss is finite is known
        only afterwards."""
        self._kept = [
            ([tensor.clone() for tensor in quantizer.learned()], monitor)
            for quantizer, monitor in zip(
                self.quantizers.values(),
                [m.snapshot() for m in self.monitors.values()],
                strict=True,
            )
        ]

    @torch.no_grad()
    def _take_back(self) -> None:
        for (name, quantizer), (tensors, sums) in zip(
            self.quantizers.items(), self._kept, strict=True
        ):
            for tensor, before in zip(
                quantizer.learned(), tensors, strict=True
            ):
                tensor.copy_(before)
            self.monitors[name].skip_batch(sums)

    def _skip_step(self) -> None:
        for parameter in self.modules.parameters():
            parameter.grad = None
        self._steps_skipped += 1
        logger.warning(
            "The loss after step %d is not finite: the batch is left out (%d "
            "so far). Norms, reservoirs and codebooks are as before it.",
            self.optimizer_step,
            self._steps_skipped,
        )

    def _start_stage(self, stage: str, keep: bool = False) -> None:
        self._stage = stage
        if not keep:
            for monitor in self.monitors.values():
                monitor.start()

    def _close_stage(self) -> None:
        self._stats[self._stage] = self._stage_stats(over_ranks=True)
        self._stage = None

    def _stage_stats(self, over_ranks: bool = False) -> dict[str, float]:
        one = len(self.monitors) == 1
        return {
            key if one else f"{name}.{key}": value
            for name, monitor in self.monitors.items()
            for key, value in monitor.stats(over_ranks).items()
        }

    def _checkpoint_meta(self) -> dict[str, float]:
        bypass = any(q.bypass for q in self.quantizers.values())
        stats = {
            f"{stage}_{key}": value
            for stage, stats in self.vq_stats.items()
            for key, value in stats.items()
        }
        return {WARMUP: bypass, **stats}

    def _log(self, meta: dict, *stages: str) -> None:
        stats = {f"{s}_stats": self.vq_stats.get(s) or None for s in stages}
        self._stage = None
        train_logger = getattr(self.hparams, "train_logger", None)
        if train_logger is not None:
            train_logger.log_stats(meta, **stats)

    def _postfix(self) -> dict[str, str]:
        # Asking the monitor waits for the device: every ten steps will do.
        now = self.optimizer_step // 10
        if now != self._postfix_at:
            self._postfix_at = now
            self._postfix_text = {}
            if any(q.bypass for q in self.quantizers.values()):
                self._postfix_text = {"vq": "warm-up"}
            else:
                for name, monitor in self.monitors.items():
                    stats = monitor.stats()
                    if stats.get("vectors"):
                        self._postfix_text[name] = (
                            f"{stats['used_codes_percent']:.0f}% used, "
                            f"perplexity {stats['perplexity']:.0f}"
                        )
        return self._postfix_text


@contextlib.contextmanager
def _progress_bar(postfix):
    """Lets the training bar of SpeechBrain, which has no hook for it, show
    more than the loss."""

    class Bar(sb.core.tqdm):
        def set_postfix(self, *args, **kwargs):
            super().set_postfix(*args, **kwargs, **postfix())

    plain = sb.core.tqdm
    sb.core.tqdm = Bar
    try:
        yield
    finally:
        sb.core.tqdm = plain


class VQBrain(VQMixin, sb.Brain):
    """A SpeechBrain Brain that trains quantizers; see ``VQMixin``."""
