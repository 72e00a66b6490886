"""The codebook's learning rate is its multiple of the model's at every step,
whatever else acts on the optimizers.

Authors
 * speechbrain_vq authors 2026
"""

import importlib
import inspect

import pytest
import torch
from speechbrain import Stage
from speechbrain.nnet import schedulers
from speechbrain.nnet.schedulers import update_learning_rate

from speechbrain_vq import VQBrain, VQMixin
from speechbrain_vq.training.optimizers import CodebookOptimizer, reset_rows
from tests.training.toy import AutoEncoder, Toy, batches, make, modules

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True
    ),
}

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
        model = next(iter(self.optimizers_dict.values()))

        def note(optimizer, args, kwargs):
            self.rates.append(
                (model.param_groups[0]["lr"], optimizer.param_groups[0]["lr"])
            )

        self.codebook_lr.optimizer.register_step_pre_hook(note)

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
    )
    brain.fit(range(1, 5), batches(7), progressbar=False)
    assert len(brain.rates) == brain.optimizer_step == 8
    assert len({model for model, _ in brain.rates}) > 1
    for model, codebook in brain.rates:
        assert codebook == 7 * model


def test_default_multiple_is_ten():
    brain = make()
    brain.fit(range(1), batches(1), progressbar=False)
    assert brain.codebook_lr.optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_codebook_changes_hands_once_and_keeps_its_settings(name):
    brain = make(opt_class=OPTIMIZERS[name])
    brain.fit(range(2), batches(4), progressbar=False)
    model, own = brain.optimizer, brain.codebook_lr.optimizer
    codebook = brain.modules.quantizer.codebook
    held = [
        p
        for optimizer in brain.optimizers_dict.values()
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert sum(p is codebook for p in held) == 1
    assert {id(p) for p in held} == {id(p) for p in brain.modules.parameters()}
    assert len(held) == len(list(brain.modules.parameters()))
    assert type(own) is type(model)
    for key, value in own.param_groups[0].items():
        if key not in ("params", "lr", "weight_decay"):
            assert value == model.param_groups[0][key]
    assert own.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_unused_codeword_stays_where_it_is(name):
    brain = make(opt_class=OPTIMIZERS[name])
    codebook = brain.modules.quantizer.codebook
    with torch.no_grad():
        codebook[0, 3] = 1000.0
    brain.fit(range(2), batches(4), progressbar=False)
    assert (codebook[0, 3] == 1000.0).all()


def test_one_step_is_that_of_the_optimizer_with_the_multiple():
    codebook = torch.nn.Parameter(torch.ones(1, 2, 2))
    leader = torch.optim.SGD([codebook], lr=0.5)
    own = CodebookOptimizer([leader], [codebook], 4)
    codebook.grad = torch.ones_like(codebook)
    own.optimizer.step()
    assert (codebook == 1 - 4 * 0.5).all() and leader.param_groups[0][
        "params"
    ] == []


class TwoOptimizers(AutoEncoder):
    """As SpeechBrain's recipes with two optimizers do: no super()."""

    def init_optimizers(self):
        self.first = torch.optim.AdamW(self.modules.encoder.parameters(), 0.01)
        rest = [
            *self.modules.quantizer.parameters(),
            *self.modules.decoder.parameters(),
        ]
        self.second = torch.optim.SGD(rest, lr=0.002)
        self.optimizers_dict = {"first": self.first, "second": self.second}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("first", self.first)
            self.checkpointer.add_recoverable("second", self.second)


class Below(VQMixin, TwoOptimizers):
    """The mixin over such a Brain."""


class Same(VQBrain):
    """Such a method in the class of the mixin itself."""

    compute_forward = AutoEncoder.compute_forward
    compute_objectives = AutoEncoder.compute_objectives
    init_optimizers = TwoOptimizers.init_optimizers


@pytest.mark.parametrize("cls", [Below, Same])
def test_codebook_follows_the_optimizer_that_held_it(cls, tmp_path):
    brain = make(cls, folder=tmp_path, codebook_lr_multiplier=5)
    brain.fit(range(2), batches(2), batches(1), progressbar=False)
    assert list(brain.optimizers_dict) == ["first", "second", "codebook"]
    assert type(brain.codebook_lr.optimizer) is torch.optim.SGD
    assert brain.codebook_lr.optimizer.param_groups[0]["lr"] == 0.01
    assert "codebook_optimizer" in brain.checkpointer.recoverables


def test_parameters_in_no_optimizer_are_told():
    class Forgetful(Toy):
        def init_optimizers(self):
            self.optimizer = torch.optim.SGD(
                self.modules.encoder.parameters(), lr=0.1
            )
            self.optimizers_dict = {"optimizer": self.optimizer}

    with pytest.raises(ValueError, match="none of the optimizers"):
        make(Forgetful).fit(range(1), batches(1), progressbar=False)


def test_codebooks_with_two_learning_rates_are_told():
    books = [torch.nn.Parameter(torch.ones(1, 2, 2)) for _ in range(2)]
    leaders = [torch.optim.SGD([book], lr=0.1) for book in books]
    with pytest.raises(ValueError, match="give them all to one"):
        CodebookOptimizer(leaders, books, 10)


@pytest.mark.parametrize("multiplier", [0, -1, float("nan")])
def test_bad_multiplier_is_told(multiplier):
    brain = make(codebook_lr_multiplier=multiplier)
    with pytest.raises(ValueError, match="codebook_lr_multiplier"):
        brain.fit(range(1), batches(1), progressbar=False)


def test_vector_weight_decay_option_keeps_the_link():
    brain = make(
        opt_class=lambda p: torch.optim.AdamW(p, lr=0.01),
        run={"remove_vector_weight_decay": True},
    )
    brain.fit(range(1), batches(2), progressbar=False)
    assert brain.codebook_lr.optimizer.param_groups[0]["lr"] == 0.1


class Frozen(Toy):
    """Leaves some optimizers out for the first steps, and keeps what each
    step of the others does to the gradients."""

    def freeze_optimizers(self, optimizers):
        if self.optimizer_step >= 3:
            return optimizers
        return {k: v for k, v in optimizers.items() if k != self.hparams.frozen}

    def optimizers_step(self):
        if self.optimizer_step == 3:
            self.met = {
                name: p.grad.clone()
                for name, p in self.modules.named_parameters()
                if p.grad is not None
            }
            self.before = {
                name: p.detach().clone()
                for name, p in self.modules.named_parameters()
            }
        super().optimizers_step()


@pytest.mark.parametrize("frozen", ["opt_class", "codebook"])
@pytest.mark.parametrize("factor", [1, 2])
def test_first_step_after_a_thaw_sees_fresh_gradients(frozen, factor):
    brain = make(
        Frozen, frozen=frozen, run={"grad_accumulation_factor": factor}
    )
    data = batches(4 * factor)
    start = {k: p.detach().clone() for k, p in brain.modules.named_parameters()}
    brain.fit(range(1), data, progressbar=False)
    for name, value in start.items():
        is_codebook = "codewords" in name
        stays = is_codebook == (frozen == "codebook")
        assert torch.equal(brain.before[name], value) == stays, name

    # The gradients of the last batches alone, from the same parameters.
    parameters = dict(brain.modules.named_parameters())
    with torch.no_grad():
        for name, value in brain.before.items():
            parameters[name].copy_(value)
    brain.modules.train()
    for batch in data[-factor:]:
        output = brain.compute_forward(batch, Stage.TRAIN)
        loss = brain.compute_objectives(output, batch, Stage.TRAIN)
        (loss / factor).backward()
    for name, gradient in brain.met.items():
        torch.testing.assert_close(gradient, parameters[name].grad)


def test_a_brain_below_cannot_freeze_a_codebook_it_does_not_know():
    class Naming(AutoEncoder):
        def freeze_optimizers(self, optimizers):
            return {"opt_class": optimizers["opt_class"]}

    class Above(VQMixin, Naming):
        pass

    brain = make(Above)
    before = brain.modules.quantizer.codebook.detach().clone()
    brain.fit(range(1), batches(2), progressbar=False)
    assert not torch.equal(brain.modules.quantizer.codebook, before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_link_holds_after_recovery(name, tmp_path):
    for epochs in (1, 3):
        brain = make(
            Scheduled,
            opt_class=OPTIMIZERS[name],
            folder=tmp_path,
            kind="epoch",
            scheduler=schedulers.LinearScheduler(0.02, 0.001, 5),
            call=lambda s, opt, epoch: s(epoch),
        )
        brain.fit(range(1, epochs + 1), batches(3), progressbar=False)
        brain.checkpointer.save_checkpoint()
    assert len(brain.rates) == 9 and brain.optimizer_step == 12
    assert len({model for model, _ in brain.rates}) == 2
    assert all(own == 10 * model for model, own in brain.rates)
    codebook = brain.modules.quantizer.codebook
    assert any(codebook is p for p in brain.codebook_lr.optimizer.state)


def test_ema_codebook_has_no_optimizer():
    brain = make(parts=modules(codebook="ema"))
    brain.fit(range(1), batches(2), progressbar=False)
    assert brain.codebook_lr is None
    assert list(brain.optimizers_dict) == ["opt_class"]


@pytest.mark.parametrize("kind", ["gradient", "ema"])
@pytest.mark.parametrize("multiplier", [1.0, 10.0])
def test_a_multiplier_without_effect_is_told(kind, multiplier, caplog):
    brain = make(
        parts=modules(codebook=kind), codebook_lr_multiplier=multiplier
    )
    brain.fit(range(1), batches(2), progressbar=False)
    told = "codebook_lr_multiplier=10.0 has no effect" in caplog.text
    assert told == (kind == "ema" and multiplier == 10)


# reset_rows ----------------------------------------------------------------


def stepped(make_optimizer, shape=(2, 4, 3)):
    """An optimizer with state, and its parameter."""
    parameter = torch.nn.Parameter(torch.randn(*shape))
    optimizer = make_optimizer([parameter])
    for _ in range(3):
        parameter.grad = torch.randn(*shape)
        optimizer.step()
    return optimizer, parameter


EVERY = {
    **OPTIMIZERS,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p),
}


@pytest.mark.parametrize("name", EVERY)
def test_all_rows_new_leaves_no_state(name):
    optimizer, parameter = stepped(EVERY[name])
    reset_rows(optimizer, parameter, torch.ones(2, 4, dtype=torch.bool))
    assert parameter not in optimizer.state


@pytest.mark.parametrize("name", EVERY)
def test_some_rows_new_keeps_the_bits_of_the_others(name):
    optimizer, parameter = stepped(EVERY[name])
    rows = torch.tensor([[1, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool)
    before = {k: v.clone() for k, v in optimizer.state[parameter].items()}
    reset_rows(optimizer, parameter, rows)
    after = optimizer.state[parameter]
    for key, old in before.items():
        if old.shape != parameter.shape:
            assert torch.equal(after[key], old)
            continue
        assert torch.equal(after[key][~rows], old[~rows]), key
        if key in ("exp_avg", "momentum_buffer"):
            assert not after[key][rows].any()
        else:
            mean = old[~rows].mean(0).expand_as(old[rows])
            torch.testing.assert_close(after[key][rows], mean)


def test_no_row_new_changes_nothing():
    optimizer, parameter = stepped(OPTIMIZERS["adam"])
    before = {k: v.clone() for k, v in optimizer.state[parameter].items()}
    reset_rows(optimizer, parameter, torch.zeros(2, 4, dtype=torch.bool))
    for key, old in before.items():
        assert torch.equal(optimizer.state[parameter][key], old)


def test_an_optimizer_without_state_is_left_alone():
    parameter = torch.nn.Parameter(torch.zeros(1, 4, 2))
    optimizer = torch.optim.Adam([parameter])
    reset_rows(optimizer, parameter, torch.tensor([[True, False, False, True]]))
    assert not optimizer.state


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_rewritten_rows_take_no_longer_steps_than_the_others(name):
    optimizer, parameter = stepped(OPTIMIZERS[name], (1, 64, 8))
    rows = torch.arange(64)[None] < 32
    reset_rows(optimizer, parameter, rows)
    before = parameter.detach().clone()
    parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    way = (parameter - before).square().mean(-1).sqrt()
    assert way[rows].mean() < 1.5 * way[~rows].mean()
