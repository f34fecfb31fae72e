"""Networks of Hugging Face, small and random: configurations that follow their pruning, caches, attention that hides itself."""

import numpy as np
import pytest
import torch

from freeprune import FreePruneError, inspect
from freeprune.backends import BACKENDS, apply, masked
from freeprune.backends.criteria import Importance
from freeprune.engine.asked.selection import fewest_units
from freeprune.engine.inputs.collating import working
from freeprune.engine.inputs.configs import followed, set_config
from freeprune.engine.inputs.example import example_of

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def llama(**more):
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=32, **more)
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def pruned(network, shares):
    """The network with a share of each group's units, the plan, and the inputs with their order."""
    inputs, collate = example_of(("ids:2x6", "mask:2x6"), network=network)
    drawn = np.random.default_rng(0)
    order = Importance({name: drawn.random(p.shape) for name, p in network.named_parameters()})
    backend = BACKENDS["channel"](working(network, collate), inputs, order, round_to=1)
    kept = [max(round(group.units * share), 1) for group, share in zip(backend.groups, shares, strict=False)]
    plan = backend.plan(np.array(kept))
    return apply(network, plan).eval(), plan, inputs, collate


@pytest.fixture(params=[gpt2, llama])
def network(request):
    torch.manual_seed(0)
    return request.param()


def test_generation_with_a_cache_is_that_of_the_masked_network(network):
    smaller, plan, inputs, _ = pruned(network, [0.5] * 20)
    zeroed = masked(network, plan).eval()
    asked = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    tokens = smaller.generate(inputs[0], **asked)
    assert tokens.shape == (2, 18)
    assert torch.equal(tokens, zeroed.generate(inputs[0], **asked))
    assert torch.equal(tokens, smaller.generate(inputs[0], **asked, use_cache=False))


def test_a_configuration_that_follows_is_saved_and_loaded(network, tmp_path):
    smaller, _, inputs, collate = pruned(network, [0.5] * 20)
    found = followed(network, working(smaller, collate), inputs, collate)
    assert found.note is None
    assert set(found.sizes.values()) <= {16, 24, 2, 1}
    before = network.config.to_dict()
    set_config(smaller, found.sizes)
    assert network.config.to_dict() == before
    smaller.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    assert again.config.num_attention_heads == 2
    with torch.no_grad():
        assert torch.allclose(again(inputs[0]).logits, smaller(inputs[0]).logits, atol=1e-6)


def test_layers_of_several_widths_have_no_configuration(network):
    smaller, _, inputs, collate = pruned(network, [1.0] * 4 + [0.5] + [1.0] * 20)
    found = followed(network, working(smaller, collate), inputs, collate)
    assert not found.sizes
    assert "has one size for all layers, and" in found.note
    assert "freeprune.load builds it all the same" in found.note


def test_keys_do_not_go_without_their_queries():
    inputs, collate = example_of("ids:1x6", network=llama())
    order = Importance({name: np.ones(p.shape) for name, p in llama().named_parameters()})
    groups = BACKENDS["channel"](working(llama(), collate), inputs, order).groups
    with pytest.raises(
        FreePruneError, match=r"'model.layers.0.self_attn.v_proj', which cannot go alone: it goes with '.*q_proj'"
    ):
        fewest_units(groups, ["*0.self_attn.v_proj"], [])


def test_a_tied_weight_says_so():
    locked = {layer.name: layer.locked for layer in inspect(gpt2(), "ids:1x6").layers}
    assert "the weight is also lm_head.weight" in locked["transformer.wte"]


def test_attention_that_hides_its_operators():
    network = llama()
    network.config._attn_implementation = "flex_attention"
    with pytest.raises(FreePruneError, match=r"'flex_attention', which hides .* attn_implementation='sdpa' or 'eager'"):
        inspect(network, "ids:1x6")
