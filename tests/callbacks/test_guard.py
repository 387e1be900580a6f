"""The guard: what counts as a spike, steps left out without a trace, roll-backs past the data, and the last words."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from watched import Poison, Watcher, conversations, same, sft

from athanor.callbacks.checkpoints import Checkpoints, newest
from athanor.callbacks.guard import Guard, RolledBack
from athanor.data.base import Data
from athanor.data.prompts import PromptData
from athanor.errors import UserError
from athanor.optimizers import LAMB, Adafactor, Lion, MuonWithAdamW
from small import Given, fit, optimizer

BATCH = 4


def judged(guard: Guard, losses, norms) -> list[tuple[float, float, float]]:
    """(verdict, limit of the loss, limit of the norm) of each step."""
    guard.trainer, guard.scaled = SimpleNamespace(world_size=1, global_step=0), False
    for loss, norm in zip(losses, norms):
        guard.judge(SimpleNamespace(), torch.tensor(loss), torch.tensor(norm))
    rows = [row.tolist() for _, row, _ in guard.pending]
    return [(row[0], row[3], row[4]) for row in rows]


def test_what_counts_as_a_spike_by_hand():
    """Against numpy: median and median distance to it, of the last 8 finite steps, the lower one of two in the middle;
    a step is judged by those before it.
    """
    rng = np.random.default_rng(3)
    losses, norms = rng.normal(4, 0.1, 40).tolist(), rng.normal(1, 0.2, 40).tolist()
    losses[20], norms[30] = 9.0, 7.0
    found = judged(Guard("skip", deviations=6, window=8, least=4), losses, norms)
    for step, (verdict, *limits) in enumerate(found):
        if step < 4:
            assert (verdict, *limits) == (0, math.inf, math.inf)
            continue
        expected = []
        for values in (losses, norms):
            recent = np.sort(np.array(values[max(0, step - 8) : step], np.float32))
            middle = recent[(len(recent) - 1) // 2]
            expected.append(middle + 6 * 1.4826 * np.sort(abs(recent - middle))[(len(recent) - 1) // 2])
        assert limits == pytest.approx(expected, rel=1e-5)
        assert verdict == (losses[step] > expected[0] or norms[step] > expected[1])
    assert found[20][0] == found[30][0] == 1
    assert sum(verdict for verdict, *_ in found) <= 5


def test_a_lasting_change_is_accepted_after_half_a_window():
    found = judged(
        Guard("skip", window=16, least=8), [2.0 + 0.01 * (i % 3) for i in range(20)] + [5.0] * 20, [1.0] * 40
    )
    verdicts = [verdict for verdict, *_ in found]
    assert verdicts[20] == 1
    assert verdicts[-8:] == [0] * 8
    assert verdicts[:20] == [0] * 20


def test_what_is_not_finite_is_told_and_not_remembered():
    guard = Guard("skip", window=8, least=4)
    found = judged(guard, [1.0] * 5 + [math.nan, 1.0], [1.0] * 6 + [math.inf])
    assert [verdict for verdict, *_ in found] == [0] * 5 + [2, 2]
    assert int(guard.count) == 5


MAKE = {
    "adamw": optimizer(0.01, fused=True),
    "muon": partial(MuonWithAdamW, lr=0.01, matrix_lr=0.02),
    "lion": optimizer(0.001, Lion),
    "lamb": optimizer(0.01, LAMB),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_guard_that_sees_nothing_changes_nothing(name):
    plain, guarded = sft(MAKE[name]), sft(MAKE[name])
    fit(plain, Given(conversations()), steps=8, batch=BATCH)
    guard = Guard("skip", window=8, least=8, deviations=1e6)
    fit(guarded, Given(conversations()), steps=8, batch=BATCH, callbacks=[guard])
    assert int(guard.count) == 8
    assert same(plain.model.parameters(), guarded.model.parameters())


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("factor", [1e4, math.nan])
def test_a_spike_is_left_out(name, factor, caplog):
    """Step 10 trains on poisoned data: the weights after it are those before it, and the training goes on."""
    algorithm, watcher = sft(MAKE[name]), Watcher()
    callbacks = [Guard("skip", window=16, least=8, deviations=20), Poison([9 * BATCH], factor), watcher]
    metrics = fit(algorithm, Given(conversations()), steps=14, batch=BATCH, micro=2, callbacks=callbacks)
    assert same(watcher.after[10], watcher.after[9])
    assert not same(watcher.after[11], watcher.after[10])
    assert metrics.history["guard/skipped"] == [(step, float(step >= 10)) for step in range(1, 15)]
    (said,) = [record.message for record in caplog.records if record.name == "athanor.callbacks.guard"]
    assert said.startswith("step 10 is left out: loss ")


def test_too_many_steps_without_a_number_end_the_run():
    callbacks = [Guard("skip", most=2), Poison(range(5 * BATCH, 99), math.inf)]
    with pytest.raises(UserError, match=r"is lost at step 8: loss .*, gradient norm (inf|nan); there is no checkpoint"):
        fit(sft(), Given(conversations()), steps=14, batch=BATCH, callbacks=callbacks)


@pytest.mark.parametrize("at", [7, 8, 12])
def test_without_a_guard_the_last_good_checkpoint_is_named(tmp_path, at):
    """After step 7, whose state would be saved next; in between; and at the very end. Nothing broken is saved."""
    checkpoints = Checkpoints(tmp_path, every_n_steps=7 if at == 7 else 3, keep=9)
    callbacks = [Guard(), Poison([(at - 1) * BATCH], math.nan), checkpoints]
    with pytest.raises(UserError) as caught:
        fit(sft(), Given(conversations()), steps=12, batch=BATCH, callbacks=callbacks)
    said = str(caught.value)
    assert said.startswith(f"The training is lost at step {at}: ")
    if at == 7:
        assert "there is no checkpoint before it" in said
        assert newest(tmp_path) is None
    else:
        good = newest(tmp_path)
        assert good.name == f"step-{(at - 1) // 3 * 3:08d}.ckpt"
        assert f"the last good checkpoint is {good}, from which the same command goes on" in said
        state = torch.load(good, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
    assert "\n" not in said


def trained(folder: Path, poison: Poison, steps: int = 20, **arguments) -> tuple[Watcher, list]:
    """A training with roll-backs, as `athanor.train.fit` does them: anew from the newest checkpoint, by the detours."""
    detours, watcher, ends = (), Watcher(), []
    while True:
        callbacks = [
            Guard("roll_back", window=16, least=6, deviations=20), poison, watcher, Checkpoints(folder, 4, keep=9)
        ]  # fmt: skip
        algorithm = sft()
        try:
            metrics = fit(
                algorithm, Given(conversations(1, 200)), steps=steps, batch=BATCH, micro=2, callbacks=callbacks,
                resume=newest(folder), detours=detours, **arguments,
            )  # fmt: skip
        except RolledBack as back:
            ends.append(detours := back.detours)
            continue
        return watcher, [*ends, (algorithm, metrics)]


def test_after_a_spike_it_goes_on_past_the_data(tmp_path):
    """Step 11 spikes; the checkpoint is of step 8. From there on the data of steps 9 to 11 is passed over."""
    reference = Watcher()
    fit(sft(), Given(conversations(1, 200)), steps=23, batch=BATCH, micro=2, callbacks=[reference])
    watcher, (detours, (algorithm, metrics)) = trained(tmp_path, Poison([10 * BATCH]))
    assert detours == ((8, 3),)
    assert all(torch.equal(watcher.tokens[step], reference.tokens[step]) for step in range(1, 9))
    assert all(torch.equal(watcher.tokens[step], reference.tokens[step + 3]) for step in range(9, 21))
    assert algorithm.trainer.datamodule.plan.detours == ((8, 3),)
    assert metrics.history["guard/rolled_back"][-1] == (20, 1.0)
    assert len([None for step in watcher.after if step > 8]) == 12


def test_a_detour_is_remembered_by_later_checkpoints(tmp_path):
    """Interrupted after the roll-back and a further checkpoint, the resumed run trains on the same data, to the bit."""
    poison = Poison([10 * BATCH])
    watcher, (_, (whole, _)) = trained(tmp_path / "whole", poison)
    for path in (tmp_path / "whole").glob("*"):
        if "00000016" not in path.name:
            path.unlink()
    again = Watcher()
    algorithm = sft()
    callbacks = [
        Guard("roll_back", window=16, least=6, deviations=20), poison, again, Checkpoints(tmp_path / "whole", 4)
    ]  # fmt: skip
    resume = newest(tmp_path / "whole")
    assert resume.name == "step-00000016.ckpt"
    data = Given(conversations(1, 200))
    fit(algorithm, data, steps=20, batch=BATCH, micro=2, callbacks=callbacks, resume=resume)
    assert sorted(again.tokens) == [17, 18, 19, 20]
    assert all(torch.equal(again.tokens[step], watcher.tokens[step]) for step in again.tokens)
    assert same(algorithm.model.parameters(), whole.model.parameters())


def test_roll_backs_come_to_an_end(tmp_path):
    poison = Poison(range(10 * BATCH, 9999), 1e4)
    poison.on_before_optimizer_step = partial(ever_larger, poison)
    with pytest.raises(UserError, match=r"is lost at step \d+ after 5 roll-backs: .*; the last good checkpoint is "):
        trained(tmp_path, poison)


def ever_larger(poison: Poison, trainer, algorithm, optimizer) -> None:
    """So that no window ever gets used to it."""
    place = trainer.datamodule.plan.place(trainer.global_step)
    if place in poison.places:
        for parameter in algorithm.model.parameters():
            parameter.grad.mul_(1e4 ** (place / BATCH - 9))


def test_an_interrupted_guard_goes_on_with_the_same_bits(tmp_path):
    """Stopped before a spike and after one: what it knows of the last steps is in the checkpoint."""

    def run(**arguments):
        algorithm = sft()
        callbacks = [Guard("skip", window=8, least=6, deviations=20), Poison([9 * BATCH])]
        metrics = fit(algorithm, Given(conversations()), steps=14, batch=BATCH, callbacks=callbacks, **arguments)
        return algorithm, metrics

    whole, expected = run()
    for stop in (7, 11):
        run(stop=stop, save=tmp_path / "c.ckpt")
        algorithm, found = run(resume=tmp_path / "c.ckpt")
        assert same(algorithm.model.parameters(), whole.model.parameters())
        assert found.history["guard/skipped"] == expected.history["guard/skipped"][stop:]
    assert expected.values("guard/skipped")[-1] == 1


def test_the_verdict_needs_no_value_on_the_host(monkeypatch):
    """`judge` and the steps that obey it never ask for a value, which on a GPU would wait for the device: on the meta
    device there is none.
    """
    guard = Guard("skip", window=8, least=4)
    guard.trainer, guard.scaled = SimpleNamespace(world_size=1, global_step=0), False
    weight = torch.nn.Parameter(torch.ones(20, 20, device="meta"))
    for make in MAKE.values():
        made = make([{"params": [weight]}])
        weight.grad = torch.ones_like(weight)
        guard.recent, guard.count = guard.recent.to("meta"), guard.count.to("meta")
        guard.judge(made, torch.ones((), device="meta"), torch.ones((), device="meta"))
        if not isinstance(made, torch.optim.AdamW):  # fused ones have no meta kernels
            for part in getattr(made, "parts", [made]):
                part.found_inf = made.found_inf
            made.step()


@pytest.mark.parametrize("make", [optimizer(0.01), optimizer(0.01, Adafactor), optimizer(0.01, torch.optim.SGD)])
def test_an_optimizer_that_cannot_leave_steps_out_is_refused(make):
    with pytest.raises(UserError, match=r"cannot leave a step out; take callbacks\.guard\.on_spike=roll_back, or"):
        fit(sft(make), Given(conversations()), steps=2, batch=BATCH, callbacks=[Guard("skip")])


def test_rollouts_cannot_be_passed_over():
    assert PromptData.stream is not Data.stream
    guard = Guard("roll_back")
    trainer = SimpleNamespace(datamodule=object.__new__(PromptData), precision_plugin=None)
    with pytest.raises(UserError, match="cannot pass over rollouts; take skip"):
        guard.setup(trainer, SimpleNamespace(), "fit")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 4}, "callbacks.guard.window=4 must be at least 8"),
        ({"least": 2}, "callbacks.guard.least=2 must be at least 4"),
        ({"most": 0}, "callbacks.guard.most=0 must be at least 1"),
        ({"deviations": 0}, "callbacks.guard.deviations=0 must be positive"),
        ({"window": 32, "least": 33}, "callbacks.guard.least=33 must be at most callbacks.guard.window=32"),
    ],
)
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(UserError, match=said):
        Guard(**settings)
