import subprocess
import sys

import pytest

from imagewam.cli import COMMANDS, main


def test_help_lists_the_commands(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_imports_no_command():
    code = "import sys; from imagewam.cli import main; main(['--help']); print('imagewam.commands' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.endswith("False\n")


def test_unknown_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fly"])
    assert caught.value.code == 2
    assert "no command 'fly'" in capsys.readouterr().err
