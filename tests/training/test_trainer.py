"""CodebookTrainer in bare loops, Lightning and Accelerate."""

import copy
import io
import pickle
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, lr_scheduler
from torch.utils.checkpoint import checkpoint

from speechbrain_vq import (
    CodebookTrainer,
    ReinitSchedule,
    ResidualVectorQuantizer,
    VectorQuantizer,
    kmeans,
)

DIM = 4


class Model(nn.Module):
    """An autoencoder with a quantizer."""

    def __init__(self, **options):
        super().__init__()
        options = {"codebook_size": 8, "reservoir_size": 256, **options}
        self.encoder = nn.Linear(DIM, DIM)
        self.quantizer = VectorQuantizer(DIM, **options)
        self.decoder = nn.Linear(DIM, DIM)

    def forward(self, x):
        """Mean squared error and the quantizer's loss."""
        output = self.quantizer(self.encoder(x))
        error = (self.decoder(output.quantized) - x).square().mean()
        return error + output.loss


def data(step, size=64):
    """The batch of a step."""
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(step))


def loop(model, optimizer, steps, start=0):
    """The usual loop."""
    for step in range(start, start + steps):
        model(data(step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def adam(model):
    """Adam over a model."""
    return torch.optim.Adam(model.parameters(), lr=0.0005)


def start(schedule=None, **options):
    """A model, its optimizer, and a trainer of its codebook."""
    model = Model()
    optimizer = adam(model)
    trainer = CodebookTrainer(model, optimizer, schedule=schedule, **options)
    return model, optimizer, trainer


def groups_of(optimizer, parameter):
    """The groups that hold a parameter."""
    return [
        group
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    ]


def rate_of(quantizer, optimizer):
    """The learning rate of a codebook, in the one group that holds it."""
    (group,) = groups_of(optimizer, quantizer.codebook)
    return group["lr"]


OPTIMIZERS = [
    ("Adam", {"betas": (0.8, 0.9)}),
    ("Adam", {"foreach": True}),
    ("Adam", {"amsgrad": True}),
    ("Adam", {"lr": torch.tensor(0.0005)}),
    ("AdamW", {"weight_decay": 0.1}),
    ("AdamW", {"fused": True}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("RAdam", {"weight_decay": 0.1}),
    ("Adafactor", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adagrad", {}),
]
every_optimizer = pytest.mark.parametrize("kind, options", OPTIMIZERS, ids=str)


def build(kind, options, parameters):
    return getattr(torch.optim, kind)(parameters, **{"lr": 0.0005, **options})


@every_optimizer
def test_steps_are_those_of_an_optimizer_with_two_groups(kind, options):
    models = [Model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = build(kind, options, models[0].parameters())
    CodebookTrainer(models[0], ours, 5, schedule=None, max_lr=None)
    codebook = models[1].quantizer.codebook
    rest = [p for p in models[1].parameters() if p is not codebook]
    theirs = build(kind, options, [{"params": rest}, {"params": [codebook]}])
    theirs.param_groups[1]["lr"] = 5 * theirs.param_groups[0]["lr"]
    if "weight_decay" in theirs.param_groups[1]:
        theirs.param_groups[1]["weight_decay"] = 0.0
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        loop(model, optimizer, 5)
    for one, two in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, two)
    # Also a rate in a tensor, which a captured graph reads, stays one.
    rates = (group["lr"] for group in ours.param_groups)
    assert len(set(map(type, rates))) == 1


def test_names_of_parameters_stay_with_them():
    model = Model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    CodebookTrainer(model, optimizer, schedule=None)
    named = {}
    for group in optimizer.param_groups:
        named.update(zip(group["param_names"], group["params"], strict=True))
    own = dict(model.named_parameters())
    assert named.keys() == own.keys()
    assert all(named[name] is own[name] for name in own)


@pytest.mark.parametrize(
    "name, options",
    [
        ("StepLR", {"step_size": 2}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 20}),
        ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2}),
        ("LambdaLR", {"lr_lambda": lambda step: 1 / (1 + step)}),
        ("ReduceLROnPlateau", {"factor": 0.5, "patience": 0}),
    ],
)
def test_the_rate_is_the_multiple_under_torchs_schedulers(name, options):
    model, optimizer, _ = start(lr_multiplier=4, max_lr=None)
    scheduler = getattr(lr_scheduler, name)(optimizer, **options)
    rates = set()
    for step in range(8):
        if step % 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        loop(model, optimizer, 1, step)
        rates.add(optimizer.param_groups[0]["lr"])
        rate = rate_of(model.quantizer, optimizer)
        assert rate == 4 * optimizer.param_groups[0]["lr"]
        scheduler.step(*([float(step)] if "Plateau" in name else []))
    assert len(rates) > 2


@pytest.mark.parametrize(
    "kind, lr, expected",
    [
        ("Adam", 1e-4, 1e-3),
        ("Adam", 1e-2, 0.03),
        ("Adam", 0.1, 0.1),
        ("RMSprop", 1e-2, 0.03),
        ("Adafactor", 1e-2, 0.03),
        ("SGD", 0.1, 1),
    ],
)
def test_largest_rate_is_a_limit_under_adam_but_no_brake(kind, lr, expected):
    model = Model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=lr)
    CodebookTrainer(model, optimizer, schedule=None, max_lr=0.03)
    loop(model, optimizer, 1)
    assert rate_of(model.quantizer, optimizer) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["Adam", "SGD"])
@pytest.mark.parametrize("lr", [1e-3, torch.tensor([1e-3])])
def test_a_multiplier_below_one_makes_the_codebook_slower(kind, lr):
    model = Model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=lr)
    CodebookTrainer(model, optimizer, lr_multiplier=0.1, schedule=None)
    loop(model, optimizer, 1)
    assert float(rate_of(model.quantizer, optimizer)) == pytest.approx(1e-4)


# Which steps count -----------------------------------------------------------


def test_a_step_of_another_optimizer_does_not_count():
    model, other = Model(), nn.Linear(2, 2)
    optimizers = {"g": adam(model), "d": adam(other)}
    trainer = CodebookTrainer(
        {"g": model, "d": other}, optimizers, schedule=ReinitSchedule(2, 2)
    )
    for _ in range(5):
        other(torch.ones(1, 2)).sum().backward()
        optimizers["d"].step()
    assert trainer.steps == 0 and model.quantizer.bypass
    loop(model, optimizers["g"], 2)
    assert trainer.steps == 2 and not model.quantizer.bypass


@pytest.mark.parametrize("order", [1, -1])
def test_an_ema_codebook_counts_the_steps_of_what_is_around_it(order):
    parts = {"d": nn.Linear(2, 2), "g": Model(codebook="ema", norm=None)}
    model = nn.ModuleDict(parts)
    optimizers = [adam(model["d"]), adam(model["g"])][::order]
    trainer = CodebookTrainer(model, optimizers, schedule=ReinitSchedule(1, 9))
    bias = model["g"].encoder.bias
    loop(model["g"], next(o for o in optimizers if groups_of(o, bias)), 1)
    assert trainer.steps == 1 and not model["g"].quantizer.bypass


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    trainer = CodebookTrainer(model, optimizer, schedule=None)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = model.quantizer.codebook.detach().clone()
    for step, scale in enumerate((float("inf"), 1.0)):
        scaler.scale(scale * model(data(step))).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert trainer.steps == step
        moved = not torch.equal(before, model.quantizer.codebook)
        assert moved == (step == 1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_with_a_closure_or_compiled_is_one_step(compiled):
    model, optimizer, trainer = start(ReinitSchedule(1, 2))
    compiled_step = torch.compile(optimizer.step, backend="eager")

    def closure():
        optimizer.zero_grad()
        loss = model(data(trainer.steps))
        loss.backward()
        return loss

    for _ in range(4):
        if compiled:
            closure()
            compiled_step()
        else:
            optimizer.step(closure)
    assert trainer.steps == 4
    assert trainer.state_dict()["reinits"] == {"quantizer": 2}
    assert rate_of(model.quantizer, optimizer) == pytest.approx(0.005)


# Re-initialization -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradient", "ema", "residual"])
def test_codebook_goes_through_warmup_and_is_used(kind):
    model = Model()
    if kind == "residual":
        model.quantizer = ResidualVectorQuantizer(2, DIM, 8)
    elif kind == "ema":
        model = Model(codebook="ema")
    optimizer = adam(model)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(4, 4))
    for step in range(12):
        model.quantizer.train()
        assert model.quantizer.bypass == (step < 4)
        loop(model, optimizer, 1, step)
    codes = model.quantizer.encode(model.encoder(data(99, 2000)))
    assert all(len(book.unique()) == 8 for book in codes.view(2000, -1).T)


def test_the_codebook_is_kmeans_of_the_reservoir_seeded_by_the_step():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(0, 3))
    loop(model, optimizer, 2)
    model(data(2)).backward()
    sample = model.quantizer.reservoir.contents()
    wanted = kmeans(sample, 8, generator=torch.Generator().manual_seed(3))
    random_state = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(model.quantizer.codebook[0], wanted.centroids)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_empty_reservoir_is_told_and_harmless(caplog):
    model, optimizer, _ = start(ReinitSchedule(0, 3))
    loop(model, optimizer, 2)
    model.quantizer.reservoir.reset()
    codebook = model.quantizer.codebook
    before = codebook.detach().clone()
    optimizer.step()
    assert torch.equal(codebook, before) and codebook in optimizer.state
    assert "the reservoir of quantizer is empty" in caplog.text


def test_a_codebook_reinitialized_again_keeps_its_codes():
    model = Model(codebook_size=32, reservoir_size=4096)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(20, 20))
    loop(model, optimizer, 39)
    x = model.encoder(data(99, 2000)).detach()
    before = model.quantizer.encode(x)
    loop(model, optimizer, 1, 39)
    assert (before == model.quantizer.encode(x)).float().mean() > 0.6


@pytest.mark.parametrize(
    "schedule, steps, then",
    [
        # Longer: it does not go back into the warm-up.
        (ReinitSchedule(2, 9), 3, ReinitSchedule(50, 9)),
        # Shorter, within the warm-up: the codes come at once.
        (ReinitSchedule(9, 9), 5, ReinitSchedule(3, 9)),
    ],
)
def test_a_schedule_is_made_longer_or_shorter(schedule, steps, then):
    model, optimizer, trainer = start(schedule)
    loop(model, optimizer, steps)
    state = trainer.state_dict()
    trainer.close()
    other = CodebookTrainer(model, optimizer, schedule=then)
    other.load_state_dict(state)
    loop(model, optimizer, 1, steps)
    assert other.steps == steps + 1 and not model.quantizer.bypass
    assert other.state_dict()["reinits"] == {"quantizer": 1}
    assert len(model.quantizer.encode(model.encoder(data(9))).unique()) > 4
    # The one that was closed leaves the optimizer alone.
    assert trainer.steps == steps


FREEZE = {
    "requires_grad": lambda q: q.embedding.requires_grad_(False),
    "quantizer": lambda q: q.requires_grad_(False),
    "embedding in eval": lambda q: q.embedding.eval(),
}


@pytest.mark.parametrize("way", FREEZE)
@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_a_frozen_codebook_keeps_its_bits(kind, way, caplog):
    model = Model(codebook=kind)
    saved = Model(codebook=kind)
    saved(data(0))
    model.load_state_dict(saved.state_dict())
    FREEZE[way](model.quantizer)
    before = model.quantizer.codebook.detach().clone()
    optimizer = adam(model)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(1, 1))
    # Only a codebook that was trained needs no warm-up.
    assert not model.quantizer.bypass
    fresh = Model(codebook=kind)
    FREEZE[way](fresh.quantizer)
    CodebookTrainer(fresh, adam(fresh), schedule=ReinitSchedule(1, 1))
    assert fresh.quantizer.bypass
    loop(model, optimizer, 4)
    assert torch.equal(before, model.quantizer.codebook)
    assert caplog.text.count("is frozen") == 1


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_a_quantizer_in_evaluation_mode_keeps_its_codebook(kind, caplog):
    model = Model(codebook=kind)
    optimizer = adam(model)
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(1, 1))
    loop(model, optimizer, 3)
    before = model.quantizer.codebook.detach().clone()
    model.quantizer.eval()
    for step in range(3):
        model(data(step)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert torch.equal(before, model.quantizer.codebook)
    assert caplog.text.count("is in evaluation mode") == 1
    model.train()
    loop(model, optimizer, 1)
    assert not torch.equal(before, model.quantizer.codebook)


def test_a_codebook_trained_here_needs_no_warmup_once_frozen():
    model, optimizer, trainer = start(None)
    loop(model, optimizer, 1)
    trainer.close()
    model.quantizer.requires_grad_(False)
    schedule = ReinitSchedule(5, 5)
    trainer = CodebookTrainer(model, optimizer, schedule=schedule)
    loop(model, optimizer, 2)
    assert not model.quantizer.bypass
    # Nor if it is unfrozen before the end of the warm-up.
    model.quantizer.requires_grad_(True)
    loop(model, optimizer, 1, 2)
    assert not model.quantizer.bypass


@pytest.mark.parametrize("compiled", [False, True])
def test_freeze_outlasts_a_toggle_of_the_whole_model(compiled):
    model = Model(codebook_dim=2)
    before = copy.deepcopy(model.quantizer.freeze().state_dict())
    model.requires_grad_(True)
    if compiled:
        model.compile(backend="eager")
    loop(model, adam(model), 3)
    after = model.quantizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unfreezing_a_codebook_later_warns(caplog):
    model = Model()
    model.quantizer.requires_grad_(False)
    optimizer = adam(model)
    CodebookTrainer(model, optimizer, schedule=None)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    loop(model, optimizer, 1)
    assert "was unfrozen" not in caplog.text
    model.quantizer.requires_grad_(True)
    loop(model, optimizer, 2)
    scheduler.step()
    assert caplog.text.count("was unfrozen, or its optimizer changed") == 1
    assert len(optimizer.param_groups) == 1


def test_optimizers_and_quantizers_are_found_in_whatever_holds_them():
    model = nn.ModuleDict({"quantizer": VectorQuantizer(DIM, 8)})
    model["module"] = nn.ModuleDict({"quantizer": VectorQuantizer(DIM, 8)})
    model["frozen"] = nn.Linear(DIM, DIM)  # Not the flag of a frozen module
    optimizer = adam(model)
    sam = SimpleNamespace(base_optimizer=optimizer)
    with pytest.raises(TypeError, match="as a list"):
        CodebookTrainer(model, {optimizer})
    for given in ([optimizer], {"a": optimizer}.values(), iter([sam])):
        trainer = CodebookTrainer(model, given, schedule=None)
        assert set(trainer.quantizers.values()) == {
            model["quantizer"],
            model["module"]["quantizer"],
        }


def test_shared_codebook_is_trained_once():
    model = Model()
    model.second = VectorQuantizer(DIM, 8)
    model.second.embedding = model.quantizer.embedding
    optimizer = adam(model)
    CodebookTrainer(model, optimizer, schedule=None)
    assert len(groups_of(optimizer, model.quantizer.codebook)) == 1
    loop(model, optimizer, 2)


def test_shared_codebook_is_reinitialized_from_the_latents_of_both():
    pair = nn.ModuleList(VectorQuantizer(DIM, 16, norm=None) for _ in range(2))
    pair[1].embedding = pair[0].embedding
    optimizer = adam(pair)
    CodebookTrainer(pair, optimizer, schedule=ReinitSchedule(1, 1))
    for step in range(3):
        (pair[0](data(step)).loss + pair[1](9 + data(step)).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (pair[0].codebook[0] > 4.5).all(1).sum() == 8


def test_a_codebook_that_is_not_finite_starts_anew():
    model, optimizer, _ = start(ReinitSchedule(1, 1))
    loop(model, optimizer, 2)
    with torch.no_grad():
        model.quantizer.codebook.fill_(torch.nan)
    model.quantizer(data(0))
    optimizer.step()
    assert model.quantizer.codebook.isfinite().all()


def test_codebooks_follow_each_its_own_group():
    model = nn.ModuleDict({"a": Model(), "b": Model()})
    optimizer = torch.optim.Adam(
        [
            {"params": list(model["a"].parameters()), "lr": 0.0005},
            {"params": list(model["b"].parameters()), "lr": 0.0001},
        ]
    )
    CodebookTrainer(model, optimizer, schedule=None)
    (model["a"](data(0)) + model["b"](data(0))).backward()
    optimizer.step()
    for name, lr in (("a", 0.005), ("b", 0.001)):
        assert rate_of(model[name].quantizer, optimizer) == pytest.approx(lr)


def after_scheduler(model, optimizer):
    lr_scheduler.StepLR(optimizer, 2)
    CodebookTrainer(model, optimizer)


def with_state_of_another(model, optimizer):
    trainer = CodebookTrainer(model, optimizer)
    state = trainer.state_dict()
    state["quantizers"]["more"] = state["quantizers"]["quantizer"]
    trainer.load_state_dict(state)


REFUSED = {
    "create the scheduler after it": after_scheduler,
    "more": with_state_of_another,
    "LBFGS": lambda m, o: CodebookTrainer(m, LBFGS(m.parameters())),
    "is in none of": lambda m, o: CodebookTrainer(m, adam(m.encoder)),
    "is in several of": lambda m, o: CodebookTrainer(m, [o, adam(m)]),
    "found no VectorQuantizer": lambda m, o: CodebookTrainer(m.encoder, o),
    "not frozen": lambda m, o: CodebookTrainer(m.quantizer.freeze(), o),
    "must be a torch.nn.Module": lambda m, o: CodebookTrainer(o, o),
    "not its parameters": lambda m, o: CodebookTrainer(m.parameters(), o),
    "multiplier must be a number above 0": lambda m, o: CodebookTrainer(
        m, o, 0
    ),
    "max_lr must be a number": lambda m, o: CodebookTrainer(m, o, max_lr="1"),
    "total_steps must be a number above 0": lambda m, o: CodebookTrainer(
        m, o, total_steps=-5
    ),
    "at most 1000, got 1000000000000.0": lambda m, o: CodebookTrainer(
        m, o, 1e12
    ),
    "max_lr": lambda m, o: CodebookTrainer(m, o, max_lr=-1.0),
    "schedule": lambda m, o: CodebookTrainer(m, o, schedule=5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_trained_is_refused(message):
    model = Model()
    with pytest.raises((TypeError, ValueError), match=message):
        REFUSED[message](model, adam(model))


def test_a_quantizer_without_a_reservoir_is_never_reinitialized(caplog):
    model = Model(reservoir_size=0)
    with pytest.raises(ValueError, match="quantizer keeps no reservoir"):
        CodebookTrainer(model, adam(model), schedule=ReinitSchedule(1, 1))
    CodebookTrainer(model, adam(model), schedule=ReinitSchedule(1, "never"))
    assert not caplog.text
    CodebookTrainer(model, adam(model))
    assert "keeps no reservoir" in caplog.text


@pytest.mark.parametrize("kind", ["fsq", "lfq", "simvq"])
def test_codebooks_that_are_fixed_follow_no_schedule(kind, caplog):
    model = Model(codebook=kind, reservoir_size=0)
    with pytest.raises(ValueError, match="quantizer is never re-initialized"):
        CodebookTrainer(model, adam(model), schedule=ReinitSchedule(1, 1))
    beside = nn.ModuleList([model, Model()])
    trainer = CodebookTrainer(beside, adam(beside), total_steps=10)
    quantizer, other = (m.quantizer for m in beside)
    assert other.bypass and not quantizer.bypass
    before = copy.deepcopy(quantizer.state_dict())
    optimizer = trainer.optimizers[0]
    for step in range(5):
        sum(m(data(step)) for m in beside).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert trainer._reinits == {"0.quantizer": 0, "1.quantizer": 1}
    after, weight = quantizer.state_dict(), "embedding.weight"
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert weight not in changed and changed
    assert ("embedding.transform" in changed) == (kind == "simvq")
    assert not caplog.text


# Warnings --------------------------------------------------------------------


def test_an_optimizer_that_never_steps_is_told_once(caplog):
    model = Model()
    CodebookTrainer(model, adam(model))
    for step in range(450):
        model(data(step, 8))
    assert caplog.text.count("has stepped") == 1


# The part of the output that is used; None: the latents alone.
TOLD = [
    ({"estimator": "straight_through"}, "quantized"),
    ({"codebook": "ema"}, None),
    ({"codebook": "ema", "commitment_weight": 0.25}, "loss"),
    ({"estimator": "diveq"}, "loss"),
]
NOT_TOLD = [
    ({}, lambda model, x: model(x)),
    ({"estimator": "diveq"}, lambda model, x: model(x)),
    *(
        (options, partial(checkpoint, use_reentrant=reentrant))
        for options, reentrant in (
            ({}, False),
            ({"codebook": "ema"}, True),
            ({"estimator": "diveq"}, True),
        )
    ),
]


@pytest.mark.parametrize("options, how", [*TOLD, *NOT_TOLD])
def test_a_quantizer_without_a_gradient_is_told_once(options, how, caplog):
    model = Model(**options)
    optimizer = adam(model)
    schedule = {} if callable(how) else {"schedule": None}
    CodebookTrainer(model, optimizer, **schedule)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(250):
            x = data(step, 16).requires_grad_()
            if callable(how):
                loss = how(model, x)
            else:
                latents = model.encoder(x)
                output = model.quantizer(latents)
                used = getattr(output, how) if how else latents
                loss = used.square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    told = caplog.text.count("no gradient reached it")
    assert told == (not callable(how))
    assert told or not caplog.text


def test_long_accumulation_is_not_a_missing_step(caplog):
    model, optimizer, _ = start()
    for step in range(750):
        model(data(step, 16)).backward()
        if step % 150 == 149 and step < 450:
            optimizer.step()
        # The loop goes on with another optimizer.
        expected = int(step >= 449 + 300)
        assert caplog.text.count("no optimizer given") == expected


def test_training_without_a_trainer_is_reported_unless_intended():
    def warned(quantizer, number):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(number):
                quantizer(data(step, 8))
        return ["without a CodebookTrainer" in str(c.message) for c in caught]

    assert warned(VectorQuantizer(DIM, 8), 450) == [True]
    for preset in ("vanilla", "ema", "fsq", "simvq"):
        assert not warned(VectorQuantizer.from_preset(preset, DIM, 8), 250)
    assert not warned(VectorQuantizer(DIM, 8, codebook_init="kmeans"), 250)
    assert not warned(VectorQuantizer(DIM, 8, reservoir_size=0), 250)
    assert not warned(start()[0].quantizer, 250)


def test_an_ema_codebook_needs_no_gradient(caplog):
    quantizer = VectorQuantizer(DIM, 8, codebook="ema")
    optimizer = adam(nn.Linear(DIM, DIM))
    CodebookTrainer(quantizer, optimizer)
    for step in range(250):
        quantizer(data(step, 16))
        optimizer.step()
    assert "learned nothing" not in caplog.text


def test_an_evaluation_within_the_warmup_is_told_once(caplog):
    model, *_ = start(ReinitSchedule(100, 100))
    for _ in range(2):
        model.eval()(data(0))
    assert caplog.text.count("within the warm-up") == 1


@pytest.mark.parametrize("way", ["weights", "state", "none", "frozen", "new"])
def test_a_schedule_that_replaces_loaded_codes_is_told(way, caplog):
    model, (saved, optimizer, trainer) = Model(), start(ReinitSchedule(1, 9))
    if way != "new":
        loop(saved, optimizer, 3)
    model.load_state_dict(saved.state_dict())
    if way == "frozen":
        model.quantizer.codebook.requires_grad_(False)
    optimizer = adam(model)
    schedule = None if way == "none" else ReinitSchedule(1, 9)
    other = CodebookTrainer(model, optimizer, schedule=schedule)
    if way == "state":
        other.load_state_dict(trainer.state_dict())
    loop(model, optimizer, 3)
    assert caplog.text.count("has a trained codebook") == (way == "weights")
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(1, 9))
    loop(model, optimizer, 1)
    told = caplog.text.count("has a trained codebook")
    assert told == (way == "weights") + (way != "frozen")


@pytest.mark.parametrize("way", ["weights", "trainer", "state", "later"])
def test_without_a_schedule_a_warm_up_that_was_begun_ends(way):
    model, optimizer, first = start(ReinitSchedule(9, 9))
    loop(model, optimizer, 3)
    if way == "weights":
        saved, model = model.state_dict(), Model()
        model.load_state_dict(saved)
        assert model.quantizer.bypass
        optimizer = adam(model)
    state = first.state_dict()
    trainer = CodebookTrainer(model, optimizer, schedule=None)
    if way == "state":
        trainer.load_state_dict(state)
    elif way == "later":
        saved = Model()
        saved.quantizer.bypass = True
        model.load_state_dict(saved.state_dict())
        loop(model, optimizer, 1)
    assert (model.quantizer(model.encoder(data(0))).indices >= 0).all()
    assert not model.quantizer.in_warmup


def test_a_codebook_does_not_follow_itself():
    model = Model()
    rest = [p for p in model.parameters() if p is not model.quantizer.codebook]
    groups = {"params": rest}, {"params": [model.quantizer.codebook]}
    optimizer = torch.optim.Adam(groups, lr=0.001)
    CodebookTrainer(model, optimizer, schedule=None)
    loop(model, optimizer, 1)
    del optimizer.param_groups[0]
    with pytest.raises(ValueError, match="follows is gone"):
        loop(model, optimizer, 2)


def test_a_sharded_codebook_is_refused(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model, free = Model(), Model()
        fsdp.fully_shard(model, mesh=mesh)
        ignored = set(free.quantizer.parameters())
        fsdp.fully_shard(free, mesh=mesh, ignored_params=ignored)
        with pytest.raises(ValueError, match="quantizer is sharded"):
            CodebookTrainer(model, adam(model))
        CodebookTrainer(free, adam(free))
    finally:
        distributed.destroy_process_group()


# State -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradient", "ema"])
@pytest.mark.parametrize("stop", [3, 7, 12])
def test_resumed_run_ends_with_the_same_bits(kind, stop):
    def start():
        torch.manual_seed(3)
        model = Model(codebook=kind, codebook_size=16)
        optimizer = adam(model)
        schedule = ReinitSchedule(5, 4)
        return model, optimizer, CodebookTrainer(model, optimizer, 10, schedule)

    model, optimizer, trainer = start()
    loop(model, optimizer, stop)
    buffer = io.BytesIO()
    torch.save([o.state_dict() for o in (model, optimizer, trainer)], buffer)
    random_state = torch.get_rng_state()
    loop(model, optimizer, 20 - stop, stop)

    others = start()
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    for thing, state in zip(others, states, strict=True):
        thing.load_state_dict(state)
    torch.set_rng_state(random_state)
    loop(*others[:2], 20 - stop, stop)
    for key, value in model.state_dict().items():
        assert torch.equal(value, others[0].state_dict()[key]), key


def test_a_state_with_the_names_of_wrappers_loads():
    model, optimizer, trainer = start(ReinitSchedule(2, 2), lr_multiplier=3)
    loop(model, optimizer, 5)
    state = trainer.state_dict()
    for key in ("quantizers", "reinits", "buffers"):
        state[key] = {f"module.{n}": v for n, v in state[key].items()}
    other = start(ReinitSchedule(2, 2))[-1]
    other.load_state_dict(state)
    assert other.steps == 5 and other.state_dict()["reinits"]["quantizer"] == 2
    with pytest.raises(
        ValueError, match="for the quantizers .*with 1 optimizer"
    ):
        start()[-1].load_state_dict({**state, "quantizers": {}})


def test_a_model_in_training_is_copied_and_pickled():
    model, optimizer, trainer = start(ReinitSchedule(1, 1))
    loop(model, optimizer, 2)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    loop(model, optimizer, 1, 2)
    assert trainer.steps == 3
    for other in (*copies, average.module):
        assert other.quantizer.codebook is not model.quantizer.codebook
        assert not groups_of(optimizer, other.quantizer.codebook)


def test_a_new_trainer_takes_the_place_of_the_one_before():
    other, (model, optimizer, first) = Model(), start()
    loop(model, optimizer, 2)
    second = CodebookTrainer(model, optimizer, 2.0, schedule=None)
    loop(model, optimizer, 3)
    assert (first.steps, second.steps) == (2, 3)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(2 * rates[0])
    pair = nn.ModuleList([model, other])
    third = CodebookTrainer(pair, adam(pair), schedule=None)
    with pytest.raises(ValueError, match="trains other quantizers"):
        CodebookTrainer(other, adam(other), schedule=None)
    third.close()
    optimizer = adam(other)
    fourth = CodebookTrainer(other, optimizer, schedule=None)
    loop(other, optimizer, 1)
    assert fourth.steps == 1


# Other loops -----------------------------------------------------------------


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return self.model(batch)

        def configure_optimizers(self):
            optimizer = adam(self)
            self.trainer_of_codebooks = CodebookTrainer(
                self, optimizer, schedule=ReinitSchedule(4, 4)
            )
            scheduler = lr_scheduler.StepLR(optimizer, 5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def on_save_checkpoint(self, checkpoint):
            checkpoint["codebooks"] = self.trainer_of_codebooks.state_dict()

        def on_load_checkpoint(self, checkpoint):
            self.saved = checkpoint["codebooks"]

        def on_train_start(self):
            if hasattr(self, "saved"):
                self.trainer_of_codebooks.load_state_dict(self.saved)

    def fit(module, steps, path=None):
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
        )
        batches = torch.utils.data.DataLoader(
            [data(i) for i in range(100)], batch_size=None
        )
        trainer.fit(module, batches, ckpt_path=path)
        return trainer

    module = Module()
    path = tmp_path / "last.ckpt"
    fit(module, 11).save_checkpoint(path)
    codebooks = module.trainer_of_codebooks
    assert codebooks.steps == 11 and not module.model.quantizer.bypass
    rate = rate_of(module.model.quantizer, *codebooks.optimizers)
    assert rate == pytest.approx(10 * 0.0005 * 0.01)
    codes = module.model.quantizer.encode(module.model.encoder(data(0, 500)))
    assert len(codes.unique()) == 8
    resumed = Module()
    fit(resumed, 13, path)
    assert resumed.trainer_of_codebooks.steps == 13


@pytest.mark.parametrize("prepared", [False, True])
def test_accelerate(prepared):
    accelerate = pytest.importorskip("accelerate")
    options = {"gradient_accumulation_steps": 2}
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model, schedule = Model(), ReinitSchedule(3, 3)
    optimizer = adam(model)
    if not prepared:
        trainer = CodebookTrainer(model, optimizer, 10, schedule)
    model, optimizer = accelerator.prepare(model, optimizer)
    if prepared:
        trainer = CodebookTrainer(model, optimizer, 10, schedule)
    for step in range(12):
        with accelerator.accumulate(model):
            accelerator.backward(model(data(step)))
            optimizer.step()
            optimizer.zero_grad()
    assert trainer.steps == 6 and not model.quantizer.bypass
    codes = model.quantizer.encode(model.encoder(data(0, 500)))
    assert len(codes.unique()) == 8


# What a re-initialization forgets --------------------------------------------


@every_optimizer
def test_a_new_codebook_has_no_optimizer_state_and_learns_on(kind, options):
    model = Model()
    optimizer = build(kind, options, model.parameters())
    CodebookTrainer(model, optimizer, schedule=ReinitSchedule(0, 4))
    loop(model, optimizer, 4)
    codebook, weight = model.quantizer.codebook, model.encoder.weight
    # Adagrad keeps its state, as that of a new codebook.
    state = optimizer.state.get(codebook, {})
    assert not any(value.any() for value in state.values())
    assert weight in optimizer.state and bool(state) == (kind == "Adagrad")
    before = codebook.detach().clone()
    loop(model, optimizer, 2, start=4)
    assert not torch.equal(codebook, before)
