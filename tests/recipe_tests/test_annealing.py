"""Learning rates of the recipes' runs, by steps or epochs, resumed or not."""

import pytest
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_vq.recipes.common.runs import AnnealingBrain
from tests.training import toy


class Brain(toy.AutoEncoder, AnnealingBrain):
    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.rates = [*getattr(self, "rates", []), rates]


def rates(epochs, folder=None, run=None, **options):
    options = {"folder": folder, "run": run, "reinit_schedule": None, **options}
    brain = toy.make(Brain, **options)
    data = toy.batches()
    brain.fit(EpochCounter(epochs), data, data[:1], progressbar=False)
    return brain.rates


@pytest.mark.parametrize("epochs, limit", [(2, None), (9, 12)])
def test_rates_fall_over_the_last_share_of_the_run(epochs, limit):
    run = {"optimizer_step_limit": limit}
    model, codebook = zip(*rates(epochs, run=run, anneal=0.5), strict=True)
    falling = [0.001 * (6 - n) / 6 for n in range(1, 7)]
    assert model == pytest.approx([0.001] * 6 + falling)
    assert codebook == pytest.approx([10 * rate for rate in model])


def test_rates_are_of_optimizer_steps_and_rise_first():
    run = {"grad_accumulation_factor": 2}
    ours = rates(4, run=run, anneal=0.5, lr_warmup=4)
    model = [group[0] for group in ours[1::2]]  # Steps end there.
    assert model[:4] == pytest.approx([0.00025, 0.0005, 0.00075, 0.001])
    assert model[5] == 0.001 and model[-1] == 0


def test_a_resumed_run_has_the_rates_of_a_whole_one(tmp_path):
    options = {"anneal": 0.5, "run": {"optimizer_step_limit": 24}}
    whole = rates(4, **options)
    rates(3, tmp_path, **options)
    # Of the checkpoint, none is taken for the full rate.
    assert rates(4, tmp_path, **options) == whole[18:]


def test_without_the_key_rates_stay():
    assert {group[0] for group in rates(2)} == {0.001}


def test_a_share_out_of_range_is_named():
    with pytest.raises(ValueError, match="--anneal=50"):
        rates(1, anneal=50)
