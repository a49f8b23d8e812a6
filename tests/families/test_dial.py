"""One dial: the design follows from it, its count is that of the net, and other entries override it."""

import pytest
import torch

from onnuri.errors import BadSettings
from onnuri.families import dial
from onnuri.families.causal_lm import DEFAULTS
from onnuri.families.causal_lm import FAMILY as LM
from onnuri.model import count_parameters
from onnuri.operation import Quiet
from onnuri.operations.train import Settings, apply
from onnuri.sources import open_data


def started(**config):
    return LM.start(config, LM.toy(40, 0), torch.Generator().manual_seed(0))


def test_the_defaults_are_those_of_depth_four():
    assert dial.of_depth(4) == {name: DEFAULTS[name] for name in dial.of_depth(4)}


@pytest.mark.parametrize(
    "config", [{}, {"tie_embeddings": False}, {"experts": 4}, {"hidden_size": 32, "num_layers": 3}]
)
def test_the_count_is_that_of_the_net(config):
    net, assets = started(depth=1, **config)
    told = dial.chosen(DEFAULTS, {"depth": 1, **config}) | {"vocab_size": len(assets.tokenizer)}
    assert count_parameters(net) == dial.count(DEFAULTS | told)


@pytest.mark.parametrize(
    ("wanted", "rest"),
    [
        *((wanted, {}) for wanted in ("3e5", 1e6, "20e6", 124_000_000, 7e9)),
        *(
            (wanted, rest)
            for wanted in ("20e6", 7e9)
            for rest in ({"experts": 8}, {"vocab_size": 4096, "num_layers": 6})
        ),
    ],
)
def test_parameters_are_what_was_asked_for(wanted, rest):
    found = dial.chosen(DEFAULTS, {"parameters": wanted, **rest})
    assert dial.count(DEFAULTS | found) == pytest.approx(float(wanted), rel=0.1)
    assert found["hidden_size"] % (2 * found["num_heads"]) == 0 and rest.items() <= found.items()


def test_what_is_said_beside_the_dial_holds():
    net, _ = started(depth=2, num_heads=4, max_length=32)
    assert net.config.num_attention_heads == 4 and net.config.hidden_size == 128 and net.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"depth": 2, "parameters": 1e6}, "two dials"),
        ({"depth": 0}, "from 1 to 128, found 0"),
        ({"depth": 2.5}, "found 2.5"),
        ({"depth": True}, "found True"),
        ({"parameters": "many"}, "found 'many'"),
        ({"parameters": 300}, "the nearest design has"),
        ({"parameters": "20e6", "num_layers": "two"}, "'num_layers' must be a whole number from 1 up, found 'two'"),
        ({"parameters": "20e6", "vocab_size": -(10**7)}, "'vocab_size' must be a whole number from 258 up"),
        ({"parameters": "20e6", "num_heads": 0}, "'num_heads' must be a whole number from 1 up"),
        ({"deph": 4}, "did you mean depth"),
    ],
)
def test_a_dial_out_of_range_is_told(config, told):
    with pytest.raises(BadSettings, match=told):
        started(**config)


def test_training_says_what_the_dial_chose():
    log = Quiet()
    settings = Settings(family="causal_lm", config={"depth": 1, "max_length": 32}, steps=1)
    apply(settings, log, open_data("toy:causal_lm"))
    assert "a new causal_lm of" in log.warnings[0] and "1 blocks" in log.warnings[0] and "tokens" in log.warnings[0]
