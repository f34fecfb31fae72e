"""Training a dense network, in Python."""

import pytest
import torch

import freeprune
from freeprune.engine.inputs.networks import NETWORKS
from freeprune.engine.inputs.weights import load_weights

SHORT = freeprune.Recipe(images=256)


def test_a_network_is_trained_measured_and_saved(tmp_path):
    dense = NETWORKS["digits:cnn"]()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    stages = []
    trained = freeprune.train(
        dense, "digits", recipe=SHORT, out=tmp_path / "new" / "w.safetensors", progress=lambda *stage: stages.append(stage)
    )
    assert all(torch.equal(tensor, dense.state_dict()[name]) for name, tensor in before.items())
    assert 0 < trained.accuracy <= 1
    assert trained.recipe == SHORT
    assert stages[-1][:3] == ("train", 2, 2)
    again = load_weights(NETWORKS["digits:cnn"](), trained.weights)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.network.state_dict().items())
    assert repr(trained).startswith("Trained(accuracy=")


def test_no_epochs_measure_what_is_there():
    dense = NETWORKS["digits:cnn"]()
    trained = freeprune.train(dense, "digits", recipe=freeprune.Recipe(epochs=0))
    assert trained.weights is None
    assert all(torch.equal(tensor, trained.network.state_dict()[name]) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"out": "weights.pt"}, "`out` is 'weights.pt'; give a file that ends in .safetensors"),
        ({"recipe": None}, "`recipe` is None; give a freeprune.Recipe"),
        ({"seed": -1}, "`seed` is -1"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
        ({"epochs": 2}, r"`epochs` is an option of the training; give `recipe=freeprune.Recipe\(epochs=...\)`"),
        ({"devise": "cpu"}, "there is no option 'devise'; did you mean 'device'"),
    ],
)
def test_errors_are_a_sentence(changes, sentence):
    with pytest.raises(freeprune.FreePruneError, match=sentence):
        freeprune.train("digits:cnn", "digits", **{"recipe": SHORT, **changes})


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.safetensors").mkdir()
    for out, sentence in (("file/w.safetensors", "cannot be made .* is a file"), ("folder.safetensors", "is a folder")):
        with pytest.raises(freeprune.FreePruneError, match=sentence):
            freeprune.train("digits:cnn", "nothing is read before", recipe=SHORT, out=tmp_path / out)
