"""The codebook's learning rate is the multiple of the model's at every step,
whatever scheduler of SpeechBrain a recipe calls."""

import importlib
import inspect

import pytest
from speechbrain import Stage
from speechbrain.nnet import schedulers
from speechbrain.nnet.schedulers import update_learning_rate

from tests.training.toy import Toy, batches, make

# Each scheduler as a recipe would call it: after a batch, given the brain and
# the number of updates, or after an epoch, which returns (old, new).
BATCH = {
    "CyclicCosineScheduler": (
        {"n_warmup_steps": 3, "lr_initial": 0.02, "total_steps": 12},
        lambda s, opt, n: s(opt),
    ),
    "CyclicLRScheduler": (
        {"base_lr": 0.001, "max_lr": 0.02, "step_size": 2.0},
        lambda s, opt, n: s.on_batch_end(opt),
    ),
    "IntervalScheduler": (
        {"intervals": [{"steps": n, "lr": 0.02 / n} for n in (1, 3, 5)]},
        lambda s, opt, n: s(opt),
    ),
    "InverseSquareRootScheduler": (
        {"warmup_steps": 2},
        lambda s, opt, n: s(opt),
    ),
    "LinearNoamScheduler": (
        {"lr_initial": 0.02, "n_warmup_steps": 2, "n_keep_steps": 2},
        lambda s, opt, n: s(opt),
    ),
    "LinearWarmupScheduler": (
        {
            "initial_value": 0.02,
            "num_warmup_steps": 3,
            "num_training_steps": 9,
        },
        lambda s, opt, n: s(opt),
    ),
    "NoamIntervalScheduler": (
        {
            "lr_initial": 0.02,
            "n_warmup_steps": 2,
            "anneal_steps": [3, 5],
            "anneal_rates": [0.5, 0.1],
        },
        lambda s, opt, n: s(opt),
    ),
    "NoamScheduler": (
        {"lr_initial": 0.02, "n_warmup_steps": 3},
        lambda s, opt, n: s(opt),
    ),
    "TriStageLRSchedule": (
        {
            "lr": 0.02,
            "warmup_steps": 2,
            "hold_steps": 2,
            "decay_steps": 4,
            "total_steps": 8,
        },
        lambda s, opt, n: s(opt, n),
    ),
    "WarmAndExpDecayLRSchedule": (
        {"lr": 0.02, "n_warmup_steps": 2, "total_steps": 9},
        lambda s, opt, n: s(opt),
    ),
    "WarmCoolDecayLRSchedule": (
        {
            "lr": 0.02,
            "warmup": 2,
            "cooldown": 2,
            "total_steps": 9,
            "decay_every": 2,
        },
        lambda s, opt, n: s(opt, n),
    ),
}
EPOCH = {
    "LinearScheduler": (
        {"initial_value": 0.02, "final_value": 0.001, "epoch_count": 5},
        lambda s, opt, epoch: s(epoch),
    ),
    "NewBobScheduler": (
        {"initial_value": 0.02},
        lambda s, opt, epoch: s(float(epoch)),
    ),
    "ReduceLROnPlateau": (
        {"factor": 0.5, "patience": 0, "dont_halve_until_epoch": 0},
        lambda s, opt, epoch: s([opt], epoch, 10.0 + 1e5 * epoch),
    ),
    "StepScheduler": (
        {"initial_value": 0.02, "decay_drop": 1},
        lambda s, opt, epoch: s(epoch),
    ),
}
NO_LEARNING_RATE = {"ScheduledLoss"}


class Scheduled(Toy):
    """Calls a scheduler, as recipes do, and notes the rates that count: those
    at the moment of a step."""

    def on_fit_start(self):
        super().on_fit_start()
        self.rates = []

        def note(optimizer, args, kwargs):
            codebook = self.modules.quantizer.codebook
            model, own = optimizer.param_groups
            assert own["params"][0] is codebook
            self.rates.append((model["lr"], own["lr"]))

        self.optimizer.register_step_pre_hook(note)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if should_step and self.hparams.kind == "batch":
            self.hparams.call(
                self.hparams.scheduler, self.optimizer, self.optimizer_step
            )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == Stage.TRAIN and self.hparams.kind == "epoch":
            _, new = self.hparams.call(
                self.hparams.scheduler, self.optimizer, epoch
            )
            update_learning_rate(self.optimizer, new)


def shipped():
    """The schedulers that SpeechBrain ships."""
    # What SpeechBrain gives by attribute may be a lazy stand-in.
    module = importlib.import_module("speechbrain.nnet.schedulers")
    return {
        name
        for name, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
    }


def test_every_shipped_scheduler_is_run_below():
    assert shipped() == {*BATCH, *EPOCH, *NO_LEARNING_RATE}


@pytest.mark.parametrize("name", sorted({*BATCH, *EPOCH}))
def test_rate_is_the_multiple_at_every_step(name):
    kind = "batch" if name in BATCH else "epoch"
    settings, call = {**BATCH, **EPOCH}[name]
    brain = make(
        Scheduled,
        run={
            "grad_accumulation_factor": 3,
            "max_grad_norm": 0.1,
            "precision": "bf16",
        },
        kind=kind,
        call=call,
        scheduler=getattr(schedulers, name)(**settings),
        codebook_lr_multiplier=7,
        codebook_max_lr=None,
    )
    brain.fit(range(1, 5), batches(7), progressbar=False)
    assert len(brain.rates) == brain.optimizer_step == 8
    assert len({model for model, _ in brain.rates}) > 1
    for model, codebook in brain.rates:
        assert codebook == 7 * model


def test_multiple_holds_after_recovery(tmp_path):
    for epochs in (1, 3):
        brain = make(
            Scheduled,
            folder=tmp_path,
            kind="epoch",
            scheduler=schedulers.LinearScheduler(0.02, 0.001, 5),
            codebook_max_lr=None,
            call=lambda s, opt, epoch: s(epoch),
        )
        brain.fit(range(1, epochs + 1), batches(3), progressbar=False)
        brain.checkpointer.save_checkpoint()
    assert len(brain.rates) == 9 and brain.optimizer_step == 12
    assert len({model for model, _ in brain.rates}) == 2
    assert all(own == 10 * model for model, own in brain.rates)


def test_multiple_survives_the_removal_of_weight_decay_from_vectors():
    brain = make(run={"remove_vector_weight_decay": True}, reinit_schedule=None)
    brain.fit(range(1), batches(2), progressbar=False)
    (own,) = (
        group
        for group in brain.optimizer.param_groups
        if group["params"]
        and group["params"][0] is brain.modules.quantizer.codebook
    )
    assert own["lr"] == 0.01 and own["weight_decay"] == 0
