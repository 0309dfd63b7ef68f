"""Options that are composed from what was composed before are those that hydra composes anew."""

from __future__ import annotations

from argparse import Namespace

import pytest
from fairseq import options
from fairseq.dataclass import utils
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mclip_fairseq.registration import register
from tests.quick_options import remembered_compose


def arguments(*more: str) -> Namespace:
    register()
    command = ["data", "--task", "trikd", "--criterion", "trikd", "--arch", "mclip_tiny", "--optimizer", "adam", *more]
    return options.parse_args_and_arch(options.get_training_parser(), command)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """With `undo()`, hydra composes everything."""
    monkeypatch.setattr(utils, "compose", remembered_compose)
    return monkeypatch


def test_the_options_are_those_of_hydra(quick: pytest.MonkeyPatch) -> None:
    commands = [arguments(), arguments("--lr", "0.1,0.2", "--save-dir", "a.b=c"), arguments("--update-freq", "3")]
    remembered = [utils.convert_namespace_to_omegaconf(command) for command in commands]
    quick.undo()
    for command, config in zip(commands, remembered, strict=True):
        composed = utils.convert_namespace_to_omegaconf(command)
        assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(composed)
        assert config == composed
        assert OmegaConf.is_struct(config) == OmegaConf.is_struct(composed)


def test_a_wrong_value_has_the_error_of_hydra(quick: pytest.MonkeyPatch) -> None:
    wrong, sentences = arguments(), list[str]()
    wrong.batch_size = [2]
    for _ in range(2):
        with pytest.raises(HydraException) as error:
            utils.convert_namespace_to_omegaconf(wrong)
        sentences.append(str(error.value))
        quick.undo()
    assert "batch_size=" in sentences[0]
    assert sentences[0] == sentences[1]
