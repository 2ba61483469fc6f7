from dataclasses import dataclass, field

import pytest

from imagewam.commands.options import parse_options, parse_size, show_table


@dataclass
class Options:
    name: str = field(metadata={"help": "A name."})
    rate: float = field(default=1.0, metadata={"help": "A rate."})
    steps: list[int] | None = field(default=None, metadata={"help": "Steps."})
    extra: dict | str | None = field(default=None, metadata={"help": "A dict."})
    flag: bool = field(default=False, metadata={"help": "A flag."})


def parse(*argv):
    return parse_options((Options,), argv, "test", "A test.")[0]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: from-yaml\nrate: 1e-4\nsteps: [1, 2]\nextra: {a: 1}\nflag: true\n")
    return str(path)


@pytest.mark.parametrize("prefix", [[], ["--config"]])
def test_every_option_can_stand_in_a_yaml(config, prefix):
    options = parse(*prefix, config)
    assert options == Options(name="from-yaml", rate=1e-4, steps=[1, 2], extra='{"a": 1}', flag=True)


def test_command_line_overrides_yaml(config):
    options = parse(config, "--rate", "2", "--steps", "3")
    assert (options.name, options.rate, options.steps) == ("from-yaml", 2.0, [3])


def test_unknown_yaml_keys_are_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: x\nlerning_rate: 1\nepoch: 2\n")
    with pytest.raises(ValueError, match=r"config.yaml: no such option: epoch, lerning_rate"):
        parse(str(path))


def test_a_yaml_with_an_error_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: [1, 2\nname: x\n")
    with pytest.raises(ValueError, match="config.yaml is no YAML: [^\\n]*line 2") as caught:
        parse(str(path))
    assert "\n" not in str(caught.value)


def test_a_yaml_that_is_no_mapping_is_an_error(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("- name\n")
    with pytest.raises(ValueError, match="got a list"):
        parse(str(path))


@pytest.mark.parametrize("words", [["--rate", "fast"], ["--name", "x", "--nonsense", "1"], []])
def test_wrong_options_end_with_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2
    assert "usage: imagewam test" in capsys.readouterr().err


def test_yaml_values_are_checked_like_options(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text("name: x\nrate: fast\n")
    with pytest.raises(SystemExit):
        parse(str(path))
    assert "invalid float value: 'fast'" in capsys.readouterr().err


def test_a_yaml_behind_the_options_is_not_ignored(config, capsys):
    with pytest.raises(SystemExit):
        parse("--name", "x", config)
    assert f"unexpected word '{config}': a YAML file is the first word, or follows" in capsys.readouterr().err


def test_values_can_be_adjusted_before_they_are_checked(config):
    def double(values):
        values["rate"] *= 2

    assert parse_options((Options,), [config, "--rate", "3"], "test", "", double)[0].rate == 6


def test_sizes():
    assert parse_size("224x448") == (224, 448)
    for wrong in ("224", "224x", "x224", "224x-1", "2.5x3"):
        with pytest.raises(ValueError, match=f"camera size '{wrong}' is not HEIGHTxWIDTH"):
            parse_size(wrong)


def test_tables_line_up(capsys):
    show_table([["policy", "0.1"], ["mean action", "12.25"]])
    assert capsys.readouterr().out == "policy         0.1\nmean action  12.25\n"
