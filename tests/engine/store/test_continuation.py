"""A run that goes on: which trials are kept, what is made again, and what is refused."""

import json

import numpy as np
import pytest
import torch
import toys
from torch.utils.data import TensorDataset

import freeprune
from freeprune import Recipe
from freeprune.engine.asked.settings import PLANNED
from freeprune.engine.store.config import differing
from freeprune.engine.store.continuation import FIRST, Earlier, earlier_of, goes_on
from freeprune.engine.store.run_folder import check_folder
from freeprune.errors import FreePruneError

CONFIG = {"trials": 20, "time_limit": None, "finetune": None, "seed": 0, "warm_starts": ["uniform"]}
RECIPE = {"epochs": 2.0, "images": None, "learning_rate": 0.1}


def data():
    generator = torch.Generator().manual_seed(0)
    parts = [(torch.randn(n, 1, 8, 8, generator=generator), torch.arange(n) % 3) for n in (40, 12)]
    return tuple(TensorDataset(*part) for part in parts)


def prune(out, trials, network=None, **options):
    options = {"finetune": None, "rehearsal": False, "calibration_images": 12, "proposals": 4, "round_to": 1, **options}
    options = {"progress": False, **options}
    network = toys.network() if network is None else network
    return freeprune.prune(network, data(), target={"macs": 0.6}, trials=trials, out=out, **options)


def trials_of(out):
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()[1:]]
    return [(line["proposal"], line["kept"], line["score"]) for line in lines]


def test_trials_are_kept_and_the_search_goes_on(tmp_path):
    prune(tmp_path / "run", 10, strategy="random")
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    result = prune(tmp_path / "run", 17, strategy="random", resume=True)
    assert result.summary.trials == 17
    assert (tmp_path / "run" / "trials.jsonl").read_bytes().startswith(before)
    prune(tmp_path / "whole", 17, strategy="random")
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")  # random search does not plan
    again = prune(tmp_path / "run", 22, strategy="random", resume=True)
    assert again.summary.trials == 22
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["trials"], config["planned"], config["ends"]) == (22, 10, [10, 17])


@pytest.mark.parametrize("strategy", ["evolution", "evolution-generational"])
@pytest.mark.parametrize("first", [13])
def test_a_strategy_that_plans_repeats_its_trials(tmp_path, strategy, first):
    prune(tmp_path, first, strategy=strategy)
    before = trials_of(tmp_path)
    result = prune(tmp_path, 20, strategy=strategy, resume=True)
    assert trials_of(tmp_path)[:first] == before
    assert result.summary.score.best >= max(score for _, _, score in before)


def test_one_that_is_killed_while_it_goes_on(tmp_path):
    prune(tmp_path / "run", 6)
    prune(tmp_path / "whole", 6)
    expected = prune(tmp_path / "whole", 14, resume=True).summary.score

    def killed(step, done, total, note):
        if step == "search" and done == 11:
            raise KeyboardInterrupt

    options = {"finetune": None, "rehearsal": False, "calibration_images": 12, "proposals": 4, "round_to": 1}
    with pytest.raises(KeyboardInterrupt):
        freeprune.prune(
            toys.network(),
            data(),
            target={"macs": 0.6},
            trials=14,
            out=tmp_path / "run",
            progress=killed,
            resume=True,
            **options,
        )
    assert not (tmp_path / "run" / "summary.json").exists()
    assert prune(tmp_path / "run", 14, resume=True).summary.score == expected
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("more", [{"trials": 14}, {"trials": 6, "finetune": Recipe(epochs=1, batch_size=8)}])
def test_a_finished_run_stays_whole_where_its_trials_are_not_proposed_again(tmp_path, more):
    prune(tmp_path, 6)
    ledger = tmp_path / "trials.jsonl"
    *lines, last = ledger.read_text().splitlines()
    trial = json.loads(last)
    trial["proposal"][0] /= 2
    ledger.write_text("\n".join([*lines, json.dumps(trial)]) + "\n")  # as another version may have proposed
    before = files_in(tmp_path)
    with pytest.raises(FreePruneError, match=r"trial 5 in .* is not what this search proposes"):
        prune(tmp_path, resume=True, **more)
    assert files_in(tmp_path) == before


def test_a_finished_run_stays_whole_until_its_trials_are_repeated(tmp_path):
    result = prune(tmp_path, 6)
    before = files_in(tmp_path)

    def killed(step, done, total, note):
        if step == "search":
            assert (done, total) == (4, 14)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 14, resume=True, progress=killed)
    assert files_in(tmp_path) == before
    assert prune(tmp_path, 6, resume=True).summary == result.summary
    assert prune(tmp_path, 14, resume=True).summary.trials == 14


def test_equal_rates_are_trained_afterwards(tmp_path):
    prune(tmp_path, 0)
    assert prune(tmp_path, 0, finetune=Recipe(epochs=1, batch_size=8), resume=True).summary.trials == 0
    assert json.loads((tmp_path / "config.json").read_text())["finetune"]["epochs"] == 1


def test_more_training_starts_from_the_pruned_network(tmp_path):
    short = Recipe(epochs=1, batch_size=8)
    prune(tmp_path / "run", 3, finetune=short)
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    longer = prune(tmp_path / "run", 3, finetune=Recipe(epochs=3, batch_size=8), resume=True)
    whole = prune(tmp_path / "whole", 3, finetune=Recipe(epochs=3, batch_size=8))
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == before
    assert all(map(torch.equal, longer.network.state_dict().values(), whole.network.state_dict().values()))
    with pytest.raises(FreePruneError, match=r"finetune = \{'epochs': 3\}, not \{'epochs': 1\}"):
        prune(tmp_path / "run", 3, finetune=short, resume=True)


def test_after_a_training_that_diverged_another_one_takes_its_place(tmp_path):
    wild, calm = (Recipe(epochs=1, batch_size=8, learning_rate=rate, warmup=0) for rate in (1e30, 0.01))
    with pytest.raises(FreePruneError, match=r"lower `learning_rate` \(now 1e\+30\), and go on with `resume=True`"):
        prune(tmp_path / "run", 3, finetune=wild)
    before = (tmp_path / "run" / "trials.jsonl").read_bytes()
    found = prune(tmp_path / "run", 3, finetune=calm, resume=True)
    whole = prune(tmp_path / "whole", 3, finetune=calm)
    assert (tmp_path / "run" / "trials.jsonl").read_bytes() == before
    assert all(map(torch.equal, found.network.state_dict().values(), whole.network.state_dict().values()))
    with pytest.raises(FreePruneError, match="was started with finetune"):  # its training would be lost
        prune(tmp_path / "run", 3, finetune=wild, resume=True)


def test_fewer_trials_than_there_are(tmp_path):
    result = prune(tmp_path, 4)
    with pytest.raises(FreePruneError, match=r"trials = 4, of which 4 are done; .*resume it with `trials=4` or more, or start"):
        prune(tmp_path, 3, resume=True)
    assert prune(tmp_path, 4, resume=True).summary == result.summary


def test_each_option_that_is_another_is_named(tmp_path):
    prune(tmp_path, 2)
    told = r"started with trials = 2, not 3; with seed = 0, not 1; resume"
    with pytest.raises(FreePruneError, match=told):
        prune(tmp_path, 3, seed=1, resume=True)


def test_a_network_that_was_trained_since_is_another(tmp_path):
    result = prune(tmp_path, 4)
    trained = toys.network()
    with torch.no_grad():
        next(trained.parameters()).mul_(1.001)
    for trials in (4, 8):
        with pytest.raises(FreePruneError, match=r"with weights of other values; .*or start the run"):
            prune(tmp_path, trials, trained, resume=True)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["parameters"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert prune(tmp_path, 4, trained, resume=True).summary == result.summary


def test_other_buffers_are_another_network(tmp_path):
    result = prune(tmp_path, 2)
    other = toys.network()
    next(x for x in other.buffers() if x.is_floating_point()).add_(3)
    with pytest.raises(FreePruneError, match="other values in the network's buffers, such as the statistics of"):
        prune(tmp_path, 2, other, resume=True)
    record = json.loads((tmp_path / "config.json").read_text())
    del record["buffers"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert prune(tmp_path, 2, other, resume=True).summary == result.summary


@pytest.mark.parametrize("change", [lambda x, y: (x[:30], y[:30]), lambda x, y: (x + 1, y), lambda x, y: (x, (y + 1) % 3)])
def test_a_run_does_not_go_on_with_other_data_in_the_same_file(tmp_path, change):
    def write(x, y):
        np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])

    def run(trials, **more):
        options = {"finetune": None, "rehearsal": False, "calibration_images": 12, "progress": False, **more}
        source = f"npz:{tmp_path / 'data.npz'}"
        return freeprune.prune(
            toys.network(), source, target={"macs": 0.6}, trials=trials, round_to=1, out=tmp_path / "run", **options
        )

    x, y = (part.numpy() for part in data()[0].tensors)
    write(x, y)
    result = run(2)
    assert run(2, resume=True).summary == result.summary
    write(*change(x, y))
    with pytest.raises(FreePruneError, match="was started with other images, in number or values;"):
        run(2, resume=True)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    del record["items"]  # as earlier versions wrote it
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    assert run(2, resume=True).summary.trials == 2


def test_a_run_of_equal_rates_becomes_a_search(tmp_path):
    prune(tmp_path / "run", 0)
    prune(tmp_path / "run", 12, resume=True)
    prune(tmp_path / "whole", 12)
    assert trials_of(tmp_path / "run") == trials_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False), ({"trials": 21, "ends": [20], "planned": 20}, True), ({"trials": 19}, False), ({"seed": 1}, False),
        ({"trials": 21, "ends": [20], "seed": 1}, False), ({"trials": 21, "ends": [20], "warm_starts": []}, False),
        ({"trials": 21, "warm_starts": []}, True), ({"finetune": RECIPE}, True), ({"finetune": "my:tune"}, True),
        ({"time_limit": 5.0}, False),
        # options that the record does not have, since it is older than they are
        ({"trials": 21, "ends": [20], "score_precision": "32-true"}, True),
        ({"trials": 21, "ends": [20], "score_precision": "bf16-mixed"}, False),
    ],
)  # fmt: skip
def test_what_a_run_may_be_asked_for_when_it_goes_on(changes, expected):
    assert goes_on(CONFIG, {**CONFIG, **changes}) is expected


@pytest.mark.parametrize("name", ["target", "budgets"])
def test_targets_that_an_earlier_version_wrote_with_six_digits_are_the_same(name):
    for was, now, same in (
        ("macs=33.3333%", "macs=0.3333333333333333", True),
        ("macs=6e+07", "macs=60M", True),
        ("macs=0.3333333333333333", "macs=33.3333%", False),
        ("macs=33.3333%", "macs=33.4%", False),
        ("macs=50%", "params=50%", False),
    ):
        assert (not differing({name: [was]}, {name: [now]})) is same


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"finetune": RECIPE}, {"finetune": {**RECIPE, "epochs": 3.0}}, True),
        ({"finetune": RECIPE}, {"finetune": {**RECIPE, "epochs": 1.0}}, False),
        ({"finetune": RECIPE}, {"finetune": {**RECIPE, "epochs": 3.0, "learning_rate": 0.2}}, False),
        ({"finetune": RECIPE}, {"finetune": None}, False),
        ({"finetune": {**RECIPE, "images": 10}}, {"finetune": {**RECIPE, "images": 20}}, True),
        ({"finetune": RECIPE}, {"finetune": {**RECIPE, "images": 20}}, False),
        ({"finetune": "my:tune"}, {"finetune": "my:other"}, False),
        ({"time_limit": 5.0}, {"time_limit": 6.0}, True),
        ({"time_limit": 5.0}, {"time_limit": None}, True),
        ({"time_limit": 5.0}, {"time_limit": 4.0}, False),
    ],
)
def test_more_of_one_thing(before, now, expected):
    assert goes_on({**CONFIG, **before}, {**CONFIG, **now}) is expected


@pytest.mark.parametrize(
    "change",
    [{"trials": "20"}, {"trials": None}, {"planned": "x"}, {"ends": 3}, {"ends": ["x"]}, {"ends": [20]}, {"time_limit": "x"}],
)
def test_a_record_that_is_damaged(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(FreePruneError, match=r"config.json is damaged; start the run again"):
        earlier_of(tmp_path, 30, None)


def test_the_plan_of_a_search_that_a_time_limit_ended(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "time_limit": 5.0}))
    for trials, limit in ((30, 5.0), (20, 5.0), (30, None), (20, None)):
        assert earlier_of(tmp_path, trials, limit) == FIRST  # there are no trials yet
    assert Earlier(20, (20,)).to_json() == {"planned": 20, "ends": [20]}


@pytest.mark.parametrize("strategy", ["evolution", "evolution-generational"])
def test_a_search_whose_time_limit_is_taken_away_repeats_its_trials(tmp_path, strategy):
    first = prune(tmp_path, 16, strategy=strategy, time_limit=600)
    before = trials_of(tmp_path)
    again = prune(tmp_path, 16, strategy=strategy, resume=True)
    assert trials_of(tmp_path) == before
    assert again.summary.score == first.summary.score
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["time_limit"], config["planned"], config["ends"]) == (None, PLANNED, [])
    assert prune(tmp_path, 20, strategy=strategy, resume=True).summary.trials == 20
    assert trials_of(tmp_path)[:16] == before
    assert json.loads((tmp_path / "config.json").read_text())["ends"] == [16]


def test_few_trials_that_a_time_limit_ended_go_on_without_warm_starts(tmp_path):
    prune(tmp_path, 4, time_limit=600)
    before = trials_of(tmp_path)
    prune(tmp_path, 4, resume=True)
    prune(tmp_path, 12, resume=True)
    assert trials_of(tmp_path)[:4] == before


def test_few_trials_under_a_time_limit_become_more(tmp_path):
    prune(tmp_path, 4, time_limit=600)
    before = trials_of(tmp_path)
    prune(tmp_path, 12, time_limit=600, resume=True)
    assert trials_of(tmp_path)[:4] == before


def test_a_folder_that_cannot_be_made_is_known_before_anything_else(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FreePruneError, match=r"cannot be made \(.*file is a file\); give another `out`"):
        check_folder(tmp_path / "file" / "a" / "b", resume=False, force=False)
    check_folder(tmp_path / "a" / "b", resume=False, force=False)
