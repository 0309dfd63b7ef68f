"""The reference of options: current, complete, and printed by the doctor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mclip_fairseq import doctor, reference
from mclip_fairseq.reference import Component, as_markdown, as_text, choose, components
from mclip_fairseq.storage.errors import UserError


def test_the_page_in_docs_is_current(repository_root: Path) -> None:
    page = (repository_root / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == as_markdown(components()), "run mclip-doctor options --markdown > docs/options.md"


def test_every_component_and_every_option_with_a_help_is_there() -> None:
    found = {(one.kind, one.name): one for one in components()}
    assert set(doctor.components()) <= found.keys()
    assert ("lr_scheduler", "warmup_cosine") in found
    for (kind, name), component in found.items():
        config = reference._registered(kind)[name][1]
        named = {flag for option in component.options for flag in option.flags}
        for one in dataclasses.fields(config) if config is not None else ():
            if one.metadata.get("help") and one.name != "data":
                assert f"--{one.name.replace('_', '-')}" in named, (kind, name, one.name)
        assert component.summary
        assert [option.flags for option in component.options if not option.help] == [], (kind, name)


def test_an_option_is_described_as_it_is_typed() -> None:
    (model,) = (one for one in choose(["mclip_tiny"]) if one.kind == "model")
    assert model.name == "mclip"
    options = {option.flags[0]: option for option in model.options}
    assert options["--freeze-text"].flags == ("--freeze-text", "--freeze")
    assert options["--freeze-text"].value.startswith("all|embeddings|none")
    assert options["--freeze-text"].default == "all"
    assert (options["--save-frozen"].value, options["--save-frozen"].default) == ("", "")
    assert options["--projector-layers"].default == "2"
    assert model.architectures["mclip_tiny"]["--projector-layers"] == "1"
    text = as_text([model])
    assert "--arch mclip\n" in text
    assert "  --projector-layers int (default: 2)\n      transformer layers of the X-projector\n" in text


def test_an_optimizer_takes_its_rate_from_the_common_option() -> None:
    (optimizer,) = choose(["mclip_lamb"])
    lines = [line for line in as_markdown([optimizer]).splitlines() if line.startswith("| `--")]
    assert len(lines) == len(optimizer.options) > 0


def test_pipes_and_tags_do_not_break_the_table() -> None:
    option = reference.Option(("--x",), "a|b", "a", "ends with </s>")
    page = as_markdown([Component("task", "x", "X.", (option,), {})])
    assert "| `--x` | a\\|b | `a` | ends with &lt;/s> |\n" in page


def test_the_command_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["options", "trikd"]) == 0
    text = capsys.readouterr().out
    assert "--task trikd\n" in text
    assert "--criterion trikd\n" in text
    assert "--text-text-weight" in text
    assert "--optimizer" not in text
    assert doctor.main(["options", "no-such-name"]) == 2
    assert "no-such-name: no component has this name; the names are altclip, " in capsys.readouterr().err
    with pytest.raises(UserError):
        choose(["trikd", "no-such-name"])
