"""What a VQ Brain does over a whole fit."""

import math
import warnings

import pytest
import speechbrain as sb
import torch
from speechbrain.nnet import schedulers
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq import ReinitSchedule, VectorQuantizer, VQMixin
from tests.training import toy
from tests.training.toy import AutoEncoder, Toy, batches, digest, make, modules


class Events(Toy):
    """Notes at which steps codebooks are re-initialized."""

    def on_fit_start(self):
        super().on_fit_start()
        self.events, quantizer = [], self.modules.quantizer
        self.trainer_hook = self.optimizer.register_step_post_hook(
            lambda *_: (
                quantizer.reservoir.count == 0
                and not quantizer.bypass
                and self.events.append(self.codebook_trainer.steps)
            )
        )


def fit(brain, epochs=1, number=6, valid=None):
    """Fits quietly."""
    brain.fit(range(1, epochs + 1), batches(number), valid, progressbar=False)
    return brain


def vectors(brain):
    """How many were quantized, by stage."""
    return {stage: v["vectors"] for stage, v in brain.vq_stats.items()}


# The mixin and the Brain below it ------------------------------------------


def test_quantizer_in_the_hparams_alone_is_told():
    parts, message = modules(), r"\(encoder, decoder\).* hparams alone"
    brain = make(parts=parts, quantizer=parts.pop("quantizer"))
    with pytest.raises(ValueError, match=message):
        fit(brain)
    with pytest.raises(ValueError, match=message):
        brain.evaluate(batches(1), progressbar=False)


def test_hparams_are_not_needed():
    brain = Toy(modules(), lambda p: torch.optim.SGD(p, 0.1))
    assert brain.vq_stats == {}
    fit(brain, 2)
    settings = brain.codebook_trainer.settings["quantizer"]
    assert settings.lr_multiplier == 10
    assert settings.plan.warmup == 4  # 40 % of 12 steps
    assert not brain.modules.quantizer.bypass
    assert "bits_per_second" not in brain.vq_stats["train"]


def test_null_turns_off():
    off = ("reinit_schedule", "codebook_lr_multiplier", "token_rate")
    brain = fit(make(**dict.fromkeys(off)))
    assert brain.codebook_trainer.settings["quantizer"].plan is None
    assert [g["lr"] for g in brain.optimizer.param_groups] == [0.001, 0.001]
    assert "bits_per_second" not in brain.vq_stats["train"]
    # Nothing of the warm-up either.
    assert brain.vq_stats["train"]["vectors"] == 6 * 30


def test_two_quantizers_are_trained_and_told_apart():
    class Two(Toy):
        def compute_forward(self, batch, stage):
            first = self.modules.quantizer(self.modules.encoder(batch[0]))
            second = self.modules.other(first.quantized)
            return second._replace(loss=first.loss + second.loss)

    parts = {**modules(), "other": VectorQuantizer(toy.DIM, 4)}
    brain = fit(make(Two, parts, reinit_schedule=ReinitSchedule(2, 2)))
    stats = brain.vq_stats["train"]
    assert stats["quantizer.dead_codes"] <= 8 and stats["other.vectors"] == 120
    rates = [group["lr"] for group in brain.optimizer.param_groups]
    assert rates == [0.001, 0.01, 0.01]


def test_a_quantizer_of_a_frozen_model_is_left_alone():
    class Hears(Toy):
        def compute_forward(self, batch, stage):
            self.modules.tokenizer["quantizer"].encode(batch[0])
            return super().compute_forward(batch, stage)

    tokenizer = torch.nn.ModuleDict({"quantizer": VectorQuantizer(toy.DIM, 4)})
    tokenizer.requires_grad_(False).eval().frozen = True
    before = digest(tokenizer.state_dict())
    parts = {**modules(), "tokenizer": tokenizer}
    brain = fit(make(Hears, parts, reinit_schedule=ReinitSchedule(2, 2)))
    assert set(brain.quantizers) == {"quantizer"}
    assert digest(tokenizer.state_dict()) == before


# When ----------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize(
    "durations, epochs, events",
    [
        ((2, 3, 8), 3, [2, 5, 8]),
        (("2 epochs", "1 epoch", "4 epochs"), 6, [8, 12, 16]),
    ],
)
def test_schedule_counts_steps_not_batches(factor, durations, epochs, events):
    brain = make(
        Events,
        run={"grad_accumulation_factor": factor},
        reinit_schedule=ReinitSchedule(*durations),
    )
    # The batches left over at an epoch's end make no step.
    fit(brain, epochs, number=4 * factor + factor - 1)
    assert brain.optimizer_step == 4 * epochs and brain.events == events


def test_epochs_without_a_length_are_told():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(batches(2))

    brain = make(reinit_schedule=ReinitSchedule("1 epoch", 1))
    with pytest.raises(ValueError, match="write it in steps"):
        brain.fit(range(1), Stream(), progressbar=False)


@pytest.mark.parametrize("durations", [("1 epoch", "1 epoch"), ()])
def test_debug_run_gets_through_every_phase(tmp_path, durations):
    schedule, run = ReinitSchedule(*durations), {"debug": True}
    brain = make(Events, folder=tmp_path, run=run, reinit_schedule=schedule)
    fit(brain, 9, number=50, valid=batches(5))
    assert brain.optimizer_step == 4 and brain.events[0] <= 2
    assert list(tmp_path.iterdir()) == []
    brain.evaluate(batches(5), min_key="loss", progressbar=False)


# The learning rate ---------------------------------------------------------


class Scheduled(Toy):
    """Calls a scheduler as recipes do, and notes the rates at the moment of a
    step, which are those that count."""

    def on_fit_start(self):
        super().on_fit_start()
        self.rates = []
        self.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs: self.rates.append(
                [group["lr"] for group in optimizer.param_groups]
            )
        )

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        if should_step and self.hparams.each == "step":
            self.hparams.scheduler(self.optimizer)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if self.hparams.each == "epoch":
            _, new = self.hparams.scheduler(epoch)
            schedulers.update_learning_rate(self.optimizer, new)


@pytest.mark.parametrize(
    "each, scheduler",
    [
        ("step", lambda: schedulers.NoamScheduler(0.02, 3)),
        ("epoch", lambda: schedulers.LinearScheduler(0.02, 0.001, 5)),
    ],
)
def test_rate_is_the_multiple_at_every_step(each, scheduler, tmp_path):
    run = {
        "grad_accumulation_factor": 3,
        "max_grad_norm": 0.1,
        "precision": "bf16",
        "remove_vector_weight_decay": True,
    }
    trained = {"codebook_lr_multiplier": 7, "codebook_max_lr": None}
    rates = []
    for epochs in (2, 4):  # The second goes on from a checkpoint.
        hparams = {"each": each, "scheduler": scheduler(), **trained}
        brain = make(Scheduled, folder=tmp_path, run=run, **hparams)
        fit(brain, epochs, 7)
        brain.checkpointer.save_checkpoint()
        rates += brain.rates
    assert len(rates) == 12 and len({model for model, *_ in rates}) > 2
    assert all(codebook == 7 * model for model, *_, codebook in rates)
    *_, own = brain.optimizer.param_groups
    assert own["params"] == [brain.modules.quantizer.codebook]
    assert own["weight_decay"] == 0


# What is not finite --------------------------------------------------------


class Sick(Toy):
    """Meets something that is not finite at some batches."""

    sick, where, value = (), "latents", torch.nan

    def compute_forward(self, batch, stage):
        x = batch[0]
        self.count = getattr(self, "count", 0) + 1
        self.is_sick = self.count in self.sick
        latents = self.modules.encoder(x)
        if self.is_sick and self.where == "latents":
            latents = latents.clone()
            latents[0, 2] = self.value
        return self.modules.quantizer(latents)

    def compute_objectives(self, output, batch, stage):
        loss = super().compute_objectives(output, batch, stage)
        if self.is_sick and self.where == "loss":
            loss = loss * self.value
        return loss.view(1)  # As in some recipes

    def fit_batch(self, batch):
        before = self._bits()
        loss = super().fit_batch(batch)
        if self.is_sick:
            self.unchanged = before == self._bits()
        return loss

    def _bits(self):
        """Of what a batch must not change: where latents are finite, norm,
        averages and reservoir may learn from them."""
        modules = dict(self.modules.state_dict())
        trainer = self.codebook_trainer.state_dict()
        if self.where == "loss":
            modules = dict(self.modules.named_parameters())
            trainer = trainer["steps"]
        optimizer = self.optimizer.state_dict()
        return digest([self.optimizer_step, modules, trainer, optimizer])


@pytest.mark.parametrize("where", ["latents", "loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_a_sick_batch_changes_no_bit(kind, value, where, caplog):
    brain, well = (
        make(Sick, modules(codebook=kind), reinit_schedule=ReinitSchedule(2, 2))
        for _ in range(2)
    )
    brain.sick, brain.value, brain.where = (4,), value, where
    fit(brain)
    assert brain.unchanged and brain.optimizer_step == 5
    stats = brain.vq_stats["train"]
    assert stats["nonfinite_batches"] == (where == "latents")
    assert caplog.text.count("is not finite: the step is skipped") == 1
    assert all(p.isfinite().all() for p in brain.modules.parameters())
    if where == "latents":
        # Nor does it count in the usage of the stage.
        fit(well)
        assert stats["vectors"] == well.vq_stats["train"]["vectors"] * 3 / 4


@pytest.mark.parametrize(
    "factor, sick, number, steps",
    [
        (3, (2,), 9, 5),
        # Left over at the end of an epoch, and forgotten.
        (3, (4,), 4, 2),
        # However many, if not in a row.
        (1, range(0, 100, 2), 10, 10),
    ],
)
def test_one_sick_batch_spoils_its_step_only(factor, sick, number, steps):
    run = {"grad_accumulation_factor": factor, "nonfinite_patience": 0}
    brain = make(Sick, run=run)
    brain.sick = sick
    fit(brain, 2, number)
    assert brain.optimizer_step == steps


# What is told --------------------------------------------------------------


def test_meta_holds_plain_numbers_and_can_be_listed(tmp_path):
    brain = make(folder=tmp_path, token_rate=50)
    fit(brain, valid=batches(2))
    (found,) = brain.checkpointer.list_checkpoints()
    assert found.meta["loss"] > 0 and found.meta["vq_warmup"] is False
    assert found.meta["valid_bits_per_second"] > 0
    for stage in ("train", "valid"):
        for key, value in brain.vq_stats[stage].items():
            wanted = pytest.approx(value, nan_ok=True)
            assert found.meta[f"{stage}_{key}"] == wanted
            assert type(value) in (int, float)


def test_every_number_is_there_in_every_epoch():
    noted = []

    class Noting(Toy):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            noted.append((stage, epoch, self.vq_stats))

    brain = make(Noting, reinit_schedule=ReinitSchedule("2 epochs", 9))
    fit(brain, 4, valid=batches(2))
    assert len(noted) == 8
    keys = brain.vq_stats["train"].keys()
    assert {"used_codes_percent", "perplexity", "vq_loss"} < keys
    for stage, epoch, stats in noted:
        assert stats.keys() == {"train", "valid"}
        assert stats["train"].keys() == stats["valid"].keys() == keys
        # What was quantized in this epoch, as the stage ended: the warm-up
        # ends with the last step of the second epoch.
        train = 6 * 30 * (epoch > 2)
        valid = 2 * 30 * (epoch > 1 and stage == sb.Stage.VALID)
        for name, number in (("train", train), ("valid", valid)):
            given = dict(stats[name])
            assert given.pop("vectors") == number
            assert given.pop("nonfinite_batches") == 0
            assert {math.isnan(v) for v in given.values()} == {number == 0}


def test_stages_are_kept_apart_whoever_asks_when():
    brain = fit(make(Toy, reinit_schedule=None), 2, valid=batches(2))
    # Nobody has asked so far.
    brain.evaluate(batches(3), progressbar=False)
    stats = brain.vq_stats
    assert vectors(brain) == {"train": 6 * 30, "valid": 2 * 30, "test": 3 * 30}
    brain.evaluate(batches(4), progressbar=False)
    assert brain.vq_stats == {**stats, "test": brain.vq_stats["test"]}
    drifts = [stats[name]["codebook_drift"] for name in ("valid", "train")]
    assert drifts[0] == 0 < drifts[1] and stats["test"]["vectors"] == 3 * 30
    fit(brain, 1, 5, batches(1))
    assert vectors(brain) == {"train": 5 * 30, "valid": 30, "test": 4 * 30}


def test_an_evaluation_within_a_fit_does_no_harm():
    class Asks(Toy):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage == sb.Stage.VALID:
                self.vectors = vectors(self)
                self.evaluate(batches(3), progressbar=False)
                assert self.vq_stats["test"]["vectors"] == 3 * 30

    brain = fit(make(Asks, reinit_schedule=None), 3, valid=batches(2))
    # Of the last epoch, the test being that of the one before.
    assert brain.vectors == {"train": 6 * 30, "valid": 2 * 30, "test": 3 * 30}
    assert brain.optimizer_step == 18


def test_a_fit_within_a_fit_trains_other_modules():
    """As in SpeechBrain's MetricGAN."""

    class Adversarial(Toy):
        within = False

        def on_fit_start(self):
            if not self.within:
                super().on_fit_start()

        def on_stage_start(self, stage, epoch=None):
            if stage == sb.Stage.TRAIN and not self.within:
                self.within = True
                self.fit([1], batches(2), progressbar=False)
                self.within = False

        def fit_batch(self, batch):
            return torch.zeros(()) if self.within else super().fit_batch(batch)

    brain = fit(make(Adversarial, reinit_schedule=ReinitSchedule(2, 4)), 3)
    assert brain.codebook_trainer.steps == 18
    assert brain.vq_stats["train"]["used_codes_percent"] == 100


def test_frozen_quantizers_are_evaluated_and_left_as_they_are(tmp_path):
    trained = fit(make(folder=tmp_path), valid=batches(1))
    brain = make(folder=tmp_path)
    brain.modules.quantizer.freeze()
    losses = [
        b.evaluate(batches(2), progressbar=False) for b in (trained, brain)
    ]
    assert losses[0] == losses[1]
    brain = make()
    brain.modules.quantizer.freeze()
    assert fit(brain, 2).optimizer_step == 12
    assert brain.codebook_trainer is None
    # The optimizers have no group for the codebook of a run that trained it.
    brain = make(folder=tmp_path)
    brain.modules.quantizer.freeze()
    with pytest.raises(ValueError, match="frozen after the checkpoint"):
        fit(brain, 2)


def test_schedulers_of_init_optimizers_follow_the_trainer():
    class Scheduled(Toy):
        attaches = False

        def init_optimizers(self):
            super().init_optimizers()
            if self.attaches:
                self.attach_trainer()
            make = torch.optim.lr_scheduler.ExponentialLR
            self.scheduler = make(self.optimizer, 0.9)

    with pytest.raises(ValueError, match=r"call self.attach_trainer\(\)"):
        fit(make(Scheduled))
    Scheduled.attaches = True
    brain = fit(make(Scheduled))
    assert len(brain.scheduler.base_lrs) == len(brain.optimizer.param_groups)


# What is refused, and told ---------------------------------------------------


def test_bases_in_the_wrong_order_are_refused():
    with pytest.raises(TypeError, match=r"class Wrong\(VQMixin, ...\)"):

        class Wrong(AutoEncoder, VQMixin):
            pass


@pytest.mark.parametrize(
    "method, calls, message",
    [
        ("on_fit_start", "init_optimizers", r"Forgets.on_fit_start\(\) must"),
        ("fit", "on_fit_start", r"super\(\)\.fit\(epoch_counter"),
    ],
)
def test_a_method_without_super_is_named(method, calls, message):
    def forgets(self, *args, **options):
        getattr(self, calls)()

    brain = make(type("Forgets", (Toy,), {method: forgets}))
    with pytest.raises(RuntimeError, match=message):
        fit(brain)


@pytest.mark.parametrize(
    "hparams, told",
    [
        (
            {"reinit_schedule": ReinitSchedule(100, 100)},
            "100 of the run's 12",
        ),
        (
            {"reinit_scheduel": None, "codebook_size": 4},
            "reinit_scheduel is not used. Did you mean reinit_schedule?",
        ),
    ],
)
def test_what_may_be_a_mistake_is_told_once(hparams, told, caplog):
    # Warnings of Python's own are errors: the log has said it.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(make(**hparams), 2, valid=batches(1))
    (record,) = (r for r in caplog.records if r.levelname == "WARNING")
    assert told in record.message


# Nothing of others is replaced ---------------------------------------------


def test_a_fit_replaces_no_attribute_of_others(tmp_path):
    brain, plain = make(folder=tmp_path), make(AutoEncoder)
    loader = torch.utils.data.DataLoader(batches(4), batch_size=None)
    owners = [sb.core, sb.Brain, Checkpointer, torch.optim.Adam]
    for instance in (brain.checkpointer, loader):
        owners += [instance, type(instance)]
    before = [dict(vars(owner)) for owner in owners]
    for one in (brain, plain):
        one.fit(range(1), loader, loader, progressbar=False)
    brain.evaluate(loader, progressbar=False)
    for owner, attributes in zip(owners, before, strict=True):
        assert attributes.keys() == vars(owner).keys()
        for key, value in attributes.items():
            assert vars(owner)[key] is value, (owner, key)
    assert vars(brain.optimizer).keys() == vars(plain.optimizer).keys()


# Which checkpoint ----------------------------------------------------------


class Losses(Toy):
    """Tells the losses it is given, as warm-up's would be the lowest."""

    losses = (0.1, 0.2, 0.9, 0.7, 0.8)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.VALID:
            self.checkpointer.save_and_keep_only(
                {"loss": self.losses[epoch - 1]},
                num_to_keep=self.hparams.keep,
                min_keys=["loss"],
                importance_keys=[],
            )


@pytest.mark.parametrize("keep", [1, 9])
def test_best_checkpoint_is_past_the_warmup(keep, tmp_path, caplog):
    schedule, options = ReinitSchedule("3 epochs", "1 epoch"), {"keep": keep}
    brain = make(Losses, folder=tmp_path, reinit_schedule=schedule, **options)
    # Quantized from the end of the third epoch on.
    fit(brain, 5, 3, batches(1))
    again = make(Losses, folder=tmp_path, **options)
    again.evaluate(batches(2), min_key="loss", progressbar=False)
    best = again.checkpointer.find_checkpoint(min_key="loss")
    assert best.meta["loss"] == pytest.approx(0.7)
    assert not again.modules.quantizer.bypass
    # Statistics are of the test set alone.
    stats = again.vq_stats["test"]
    assert stats["perplexity"] > 1 and stats["vectors"] == 60
    assert stats["codebook_drift"] == 0
    assert "past the warm-up" not in caplog.text
    assert len(brain.checkpointer.list_checkpoints()) == (2 if keep == 1 else 5)
    # To resume, the latest is taken whatever it is.
    assert again.checkpointer.find_checkpoint().meta["loss"] == 0.8


def test_evaluation_of_nothing_but_warmup_is_told(tmp_path, caplog):
    schedule = ReinitSchedule(100, 10)
    brain = make(Losses, folder=tmp_path, keep=2, reinit_schedule=schedule)
    fit(brain, 2, 3, batches(1))
    brain.evaluate(batches(2), min_key="loss", progressbar=False)
    assert "The evaluated model is from the warm-up" in caplog.text
