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


def loop(model, optimizer, steps, start=0, set_to_none=True):
    """The usual loop."""
    for step in range(start, start + steps):
        model(data(step)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none)


def make_optimizer(parameters, kind="Adam", **options):
    """An optimizer of torch's."""
    return getattr(torch.optim, kind)(parameters, **{"lr": 0.0005, **options})


def adam(model):
    """Adam over a model."""
    return make_optimizer(model.parameters())


def start(schedule=None, model=None, optimizer=None, **options):
    """A model, its optimizer, and a trainer of its codebook."""
    model = model or Model()
    optimizer = optimizer or adam(model)
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
    return float(group["lr"])


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


@every_optimizer
def test_steps_are_those_of_an_optimizer_with_two_groups(kind, options):
    models = [Model() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = make_optimizer(models[0].parameters(), kind, **options)
    CodebookTrainer(models[0], ours, 5, schedule=None, max_lr=None)
    codebook = models[1].quantizer.codebook
    rest = [p for p in models[1].parameters() if p is not codebook]
    groups = [{"params": rest}, {"params": [codebook]}]
    theirs = make_optimizer(groups, kind, **options)
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
    "kind, multiplier, lr, expected",
    [
        ("Adam", 10, 1e-4, 1e-3),
        ("Adam", 10, 1e-2, 0.03),
        ("Adam", 10, 0.1, 0.1),
        ("Adam", 0.1, 1e-3, 1e-4),
        ("Adam", 0.1, torch.tensor([1e-3]), 1e-4),
        ("RMSprop", 10, 1e-2, 0.03),
        ("Adafactor", 10, 1e-2, 0.03),
        ("SGD", 10, 0.1, 1),
        ("SGD", 0.1, 1e-3, 1e-4),
    ],
)
def test_largest_rate_is_a_limit_under_adam_but_no_brake(
    kind, multiplier, lr, expected
):
    model = Model()
    optimizer = make_optimizer(model.parameters(), kind, lr=lr)
    start(None, model, optimizer, lr_multiplier=multiplier, max_lr=0.03)
    loop(model, optimizer, 1)
    assert rate_of(model.quantizer, optimizer) == pytest.approx(expected)


# Which steps count -----------------------------------------------------------


def test_a_step_of_another_optimizer_does_not_count():
    model, other = Model(), nn.Linear(DIM, 2)
    optimizers = {"g": adam(model), "d": adam(other)}
    parts = {"g": model, "d": other}
    *_, trainer = start(ReinitSchedule(2, 2), parts, optimizers)
    loop(lambda x: other(x).sum(), optimizers["d"], 5)
    assert trainer.steps == 0 and model.quantizer.bypass
    loop(model, optimizers["g"], 2)
    assert trainer.steps == 2 and not model.quantizer.bypass


@pytest.mark.parametrize("order", [1, -1])
def test_an_ema_codebook_counts_the_steps_of_what_is_around_it(order):
    parts = {"d": nn.Linear(2, 2), "g": Model(codebook="ema", norm=None)}
    model = nn.ModuleDict(parts)
    optimizers = {name: adam(part) for name, part in parts.items()}
    given = list(optimizers.values())[::order]
    *_, trainer = start(ReinitSchedule(1, 9), model, given)
    loop(model["g"], optimizers["g"], 1)
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
    assert trainer.state_dict()["reinits"] == {"quantizer": 2}
    assert trainer.steps == 4


# Re-initialization -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradient", "ema", "residual"])
def test_codebook_goes_through_warmup_and_is_used(kind):
    options = {"num_codebooks": 2, "composition": kind}
    if kind != "residual":
        options = {"codebook": kind}
    schedule = ReinitSchedule(4, 4)
    model, optimizer, _ = start(schedule, Model(**options))
    for step in range(12):
        model.quantizer.train()
        assert model.quantizer.bypass == (step < 4)
        loop(model, optimizer, 1, step)
    codes = model.quantizer.encode(model.encoder(data(99, 2000)))
    assert all(len(book.unique()) == 8 for book in codes.view(2000, -1).T)


def test_the_codebook_is_kmeans_of_the_reservoir_seeded_by_the_step(caplog):
    model = Model()
    optimizer = make_optimizer(model.parameters(), "SGD", lr=0.0)
    start(ReinitSchedule(0, 3), model, optimizer)
    loop(model, optimizer, 2)
    model(data(2)).backward()
    sample = model.quantizer.reservoir.contents()
    wanted = kmeans(sample, 8, generator=torch.Generator().manual_seed(3))
    random_state = torch.get_rng_state()
    optimizer.step()
    assert torch.equal(model.quantizer.codebook[0], wanted.centroids)
    assert torch.equal(torch.get_rng_state(), random_state)
    # An empty one is told and harmless.
    loop(model, optimizer, 2)
    model.quantizer.reservoir.reset()
    optimizer.step()
    assert torch.equal(model.quantizer.codebook[0], wanted.centroids)
    assert "the reservoir of quantizer is empty" in caplog.text


def test_a_codebook_reinitialized_again_keeps_its_codes():
    model = Model(codebook_size=32, reservoir_size=4096)
    optimizer = make_optimizer(model.parameters(), lr=1e-4)
    start(ReinitSchedule(20, 20), model, optimizer)
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
    saved, model, fresh = (Model(codebook=kind) for _ in range(3))
    saved(data(0))
    model.load_state_dict(saved.state_dict())
    for one in (model, fresh):
        FREEZE[way](one.quantizer)
    before = model.quantizer.codebook.detach().clone()
    _, optimizer, _ = start(ReinitSchedule(1, 1), model)
    # Only a codebook that was trained needs no warm-up.
    assert not model.quantizer.bypass
    start(ReinitSchedule(1, 1), fresh)
    assert fresh.quantizer.bypass
    loop(model, optimizer, 4)
    assert torch.equal(before, model.quantizer.codebook)
    assert caplog.text.count("is frozen") == 1


@pytest.mark.parametrize("kind", ["gradient", "ema"])
def test_a_quantizer_in_evaluation_mode_keeps_its_codebook(kind, caplog):
    schedule = ReinitSchedule(1, 1)
    model, optimizer, _ = start(schedule, Model(codebook=kind))
    loop(model, optimizer, 3)
    before = model.quantizer.codebook.detach().clone()
    model.quantizer.eval()
    loop(model, optimizer, 3, set_to_none=False)
    assert torch.equal(before, model.quantizer.codebook)
    assert caplog.text.count("is in evaluation mode") == 1
    model.train()
    loop(model, optimizer, 1)
    assert not torch.equal(before, model.quantizer.codebook)


def test_unfreezing_a_codebook_later_warns(caplog):
    model = Model()
    model.quantizer.requires_grad_(False)
    _, optimizer, _ = start(None, model)
    loop(model, optimizer, 1)
    assert "was unfrozen" not in caplog.text
    model.quantizer.requires_grad_(True)
    loop(model, optimizer, 2)
    assert caplog.text.count("was unfrozen, or its optimizer changed") == 1
    assert len(optimizer.param_groups) == 1


def test_optimizers_and_quantizers_are_found_in_whatever_holds_them():
    model = nn.ModuleDict({"quantizer": VectorQuantizer(DIM, 8)})
    model["module"] = nn.ModuleDict({"quantizer": VectorQuantizer(DIM, 8)})
    model["frozen"] = nn.Linear(DIM, DIM)  # Not the flag of a frozen module
    optimizer = adam(model)
    sam = SimpleNamespace(base_optimizer=optimizer)
    quantizers = {model["quantizer"], model["module"]["quantizer"]}
    for given in ([optimizer], {"a": optimizer}.values(), iter([sam])):
        trainer = CodebookTrainer(model, given, schedule=None)
        assert set(trainer.quantizers.values()) == quantizers


def test_shared_codebook_is_reinitialized_from_the_latents_of_both():
    pair = nn.ModuleList(VectorQuantizer(DIM, 16, norm=None) for _ in range(2))
    pair[1].embedding = pair[0].embedding
    _, optimizer, _ = start(ReinitSchedule(1, 1), pair)
    assert len(groups_of(optimizer, pair[0].codebook)) == 1
    loop(lambda x: pair[0](x).loss + pair[1](9 + x).loss, optimizer, 3)
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
    model = nn.ModuleDict({name: Model() for name in "abc"})
    rates = {"a": 0.0005, "b": 0.0001, "c": 0.0002}
    groups = [
        {"params": list(model[name].parameters()), "lr": lr}
        for name, lr in rates.items()
    ]
    codebook = model["c"].quantizer.codebook  # Alone in a group
    rest = [p for p in groups[2]["params"] if p is not codebook]
    groups[2]["params"] = [codebook]
    groups.append({"params": rest, "lr": 1.0})
    _, optimizer, _ = start(None, model, torch.optim.Adam(groups))
    loop(lambda x: sum(part(x) for part in model.values()), optimizer, 1)
    for name, lr in rates.items():
        found = rate_of(model[name].quantizer, optimizer)
        assert found == pytest.approx(10 * lr)


def with_state_of_another(model, optimizer):
    trainer = CodebookTrainer(model, optimizer)
    state = trainer.state_dict()
    state["quantizers"]["more"] = state["quantizers"]["quantizer"]
    trainer.load_state_dict(state)


REFUSED = {
    "create the scheduler after it": lambda m, o: CodebookTrainer(
        m, lr_scheduler.StepLR(o, 2).optimizer
    ),
    "more": with_state_of_another,
    "LBFGS": lambda m, o: CodebookTrainer(m, LBFGS(m.parameters())),
    "is in none of": lambda m, o: CodebookTrainer(m, adam(m.encoder)),
    "is in several of": lambda m, o: CodebookTrainer(m, [o, adam(m)]),
    "as a list": lambda m, o: CodebookTrainer(m, {o}),
    "found no VectorQuantizer": lambda m, o: CodebookTrainer(m.encoder, o),
    "not frozen": lambda m, o: CodebookTrainer(m.quantizer.freeze(), o),
    "must be a torch.nn.Module": lambda m, o: CodebookTrainer(o, o),
    "not its parameters": lambda m, o: CodebookTrainer(m.parameters(), o),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_trained_is_refused(message):
    model = Model()
    with pytest.raises((TypeError, ValueError), match=message):
        REFUSED[message](model, adam(model))


@pytest.mark.parametrize(
    "option, value",
    [
        ("lr_multiplier", 0),
        ("lr_multiplier", 1e12),
        ("max_lr", "1"),
        ("max_lr", -1.0),
        ("total_steps", -5),
        ("schedule", 5),
    ],
)
def test_a_wrong_option_is_named(option, value):
    model = Model()
    with pytest.raises((TypeError, ValueError), match=f"{option}.*{value}"):
        CodebookTrainer(model, adam(model), **{option: value})


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
        start(ReinitSchedule(1, 1), model)
    beside = nn.ModuleList([model, Model()])
    optimizer = adam(beside)
    trainer = CodebookTrainer(beside, optimizer, total_steps=10)
    quantizer, other = (m.quantizer for m in beside)
    assert other.bypass and not quantizer.bypass
    before = copy.deepcopy(quantizer.state_dict())
    loop(lambda x: sum(m(x) for m in beside), optimizer, 5)
    reinits = {"0.quantizer": 0, "1.quantizer": 1}
    assert trainer.state_dict()["reinits"] == reinits
    after, weight = quantizer.state_dict(), "embedding.weight"
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert weight not in changed and changed
    assert ("embedding.transform" in changed) == (kind == "simvq")
    assert not caplog.text


# Warnings --------------------------------------------------------------------


def test_an_optimizer_that_never_steps_is_told_once(caplog):
    model, *_ = start()
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
    kept = []

    def loss(x):
        if callable(how):
            return how(model, x.requires_grad_())
        latents = model.encoder(x)
        kept[:] = [model.quantizer(latents)]  # As for a metric
        used = getattr(kept[0], how) if how else latents
        return used.square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(loss, optimizer, 250)
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


def test_a_sharded_codebook_is_refused(tmp_path):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = fsdp.fully_shard(Model(), mesh=mesh)
        with pytest.raises(ValueError, match="quantizer is sharded"):
            CodebookTrainer(model, adam(model))
    finally:
        distributed.destroy_process_group()


# State -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradient", "ema"])
@pytest.mark.parametrize("stop", [3, 7, 12])
def test_resumed_run_ends_with_the_same_bits(kind, stop):
    def build():
        torch.manual_seed(3)
        model = Model(codebook=kind, codebook_size=16)
        return start(ReinitSchedule(5, 4), model)

    whole, resumed, file = build(), build(), io.BytesIO()
    loop(*whole[:2], stop)
    torch.save([part.state_dict() for part in whole], file)
    random_state = torch.get_rng_state()
    loop(*whole[:2], 20 - stop, stop)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random_state)
    loop(*resumed[:2], 20 - stop, stop)
    states = (parts[0].state_dict() for parts in (whole, resumed))
    torch.testing.assert_close(*states, rtol=0, atol=0)


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
    model, optimizer, first = start()
    loop(model, optimizer, 2)
    *_, second = start(None, model, optimizer, lr_multiplier=2.0)
    loop(model, optimizer, 3)
    assert (first.steps, second.steps) == (2, 3)
    assert rate_of(model.quantizer, optimizer) == pytest.approx(0.001)
    *_, of_both = start(None, nn.ModuleList([model, Model()]))
    with pytest.raises(ValueError, match="trains other quantizers"):
        start(None, model)
    of_both.close()
    _, optimizer, third = start(None, model)
    loop(model, optimizer, 1)
    assert third.steps == 1


# Other loops -----------------------------------------------------------------


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        saved = None

        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return self.model(batch)

        def configure_optimizers(self):
            optimizer, schedule = adam(self), ReinitSchedule(4, 4)
            *_, self.codebooks = start(schedule, self, optimizer)
            scheduler = lr_scheduler.StepLR(optimizer, 5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        def on_save_checkpoint(self, checkpoint):
            checkpoint["codebooks"] = self.codebooks.state_dict()

        def on_load_checkpoint(self, checkpoint):
            self.saved = checkpoint["codebooks"]

        def on_train_start(self):
            if self.saved is not None:
                self.codebooks.load_state_dict(self.saved)

    def fit(module, steps, path=None):
        names = "checkpointing", "progress_bar", "model_summary"
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            **{f"enable_{name}": False for name in names},
        )
        batches = [data(number) for number in range(100)]
        batches = torch.utils.data.DataLoader(batches, batch_size=None)
        trainer.fit(module, batches, ckpt_path=path)
        return trainer

    module, resumed, path = Module(), Module(), tmp_path / "last.ckpt"
    fit(module, 11).save_checkpoint(path)
    quantizer, trainer = module.model.quantizer, module.codebooks
    assert trainer.steps == 11 and not quantizer.bypass
    rate = rate_of(quantizer, *trainer.optimizers)
    assert rate == pytest.approx(10 * 0.0005 * 0.01)
    codes = quantizer.encode(module.model.encoder(data(0, 500)))
    assert len(codes.unique()) == 8
    fit(resumed, 13, path)
    assert resumed.codebooks.steps == 13


@pytest.mark.parametrize("prepared", [False, True])
def test_accelerate(prepared):
    accelerate = pytest.importorskip("accelerate")
    options = {"gradient_accumulation_steps": 2}
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model = Model()
    optimizer, schedule = adam(model), ReinitSchedule(3, 3)
    if prepared:
        model, optimizer = accelerator.prepare(model, optimizer)
        *_, trainer = start(schedule, model, optimizer)
    else:
        *_, trainer = start(schedule, model, optimizer)
        model, optimizer = accelerator.prepare(model, optimizer)
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
    optimizer = make_optimizer(model.parameters(), kind, **options)
    start(ReinitSchedule(0, 4), model, optimizer)
    loop(model, optimizer, 4)
    codebook, weight = model.quantizer.codebook, model.encoder.weight
    # Adagrad keeps its state, as that of a new codebook.
    state = optimizer.state.get(codebook, {})
    assert not any(value.any() for value in state.values())
    assert weight in optimizer.state and bool(state) == (kind == "Adagrad")
    before = codebook.detach().clone()
    loop(model, optimizer, 2, start=4)
    assert not torch.equal(codebook, before)
