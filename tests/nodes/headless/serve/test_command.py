"""`uniworld serve` on the command line: options, output, and errors at startup."""

from __future__ import annotations

import argparse
import importlib.util
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from uniworld.__main__ import main
from uniworld.command_line import Parser
from uniworld.nodes.headless.serve import command
from uniworld.nodes.headless.serve.config import ServerConfig, add_options, parse_bytes, read_config
from uniworld.nodes.headless.serve.temp_folder import create_temp, locked_temp


def parsed(*options: str) -> argparse.Namespace:
    parser = Parser()
    add_options(parser)
    arguments = parser.parse_args(options)
    arguments.models, arguments.pack = Path("models"), []
    return arguments


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("8GiB", 8 * 2**30), ("1.5g", 15 * 10**8), ("500", 500), ("7 MB", 7 * 10**6)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "0", "1XB", "GB", "1e9"])
def test_invalid_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match="Write for example"):
        parse_bytes(text)


def test_defaults_are_safe():
    config = read_config(parsed())
    assert (config.listen, config.port, config.token) == ("127.0.0.1", 8188, None)
    assert config.loopback
    assert config.temp == Path("temp")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--listen", "0.0.0.0"], "Add --token SECRET, or --no-token"),
        (["--listen"], "With --listen 0.0.0.0, others can reach"),
        (["--listen", "::"], "Add --token"),
        (["--token", "short"], "too short"),
        (["--token", "long enough", "--no-token"], "contradicts"),
        (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
        (["--history", "-1"], "'-1' is not a whole number"),
        (["--allow-host", "http://my.machine"], "is not a host name"),
        (["--allow-host", "my.machine:80"], "is not a host name"),
        (["--allow-host", ""], "is not a host name"),
        (["--cache-lru", "-1"], "'-1' is not a whole number"),
    ],
)
def test_invalid_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_config(parsed(*options))


def test_on_the_network_with_and_without_a_token():
    assert read_config(parsed("--listen", "0.0.0.0", "--token", "long enough")).token == "long enough"
    assert read_config(parsed("--listen", "--no-token")).token is None
    assert read_config(parsed("--listen", "::1")).loopback


@pytest.mark.parametrize("package", command.NEEDED)
def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys, tmp_path, package):
    monkeypatch.chdir(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        command.importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    assert main(["serve"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.strip()) == ("", command.INSTALL)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_and_a_missing_editor_are_reported(monkeypatch, capsys, tmp_path, frontend):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--frontend", str(frontend), "--port", port]) == 2
        assert f"Cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", "--frontend", str(tmp_path), "--port", "0"]) == 2
    assert "has no index.html" in capsys.readouterr().err


def test_a_missing_models_folder_and_an_invalid_address_are_reported(capsys, tmp_path, frontend, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--models", str(tmp_path / "nowhere"), "--frontend", str(frontend)]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["serve", "--listen", "300.1.2.3", "--no-token", "--frontend", str(frontend)]) == 2
    assert "an address of this computer with --listen" in capsys.readouterr().err


def config_of(folder: Path) -> ServerConfig:
    made = ServerConfig(
        input=folder / "input",
        output=folder / "output",
        temp=folder / "temp",
        user=folder / "user",
        models=folder / "models",
    )
    create_temp(made.temp)
    return made


def test_a_second_server_leaves_the_previews_of_the_first(tmp_path):
    config = config_of(tmp_path)
    with locked_temp(config):
        (config.temp / "a.png").touch()
        (tmp_path / "link").symlink_to(config.temp)
        for same in (config, replace(config, user=tmp_path / "user2"), replace(config, temp=tmp_path / "link")):
            with (
                pytest.raises(ValueError, match=r"Another server uses .* for its previews.* with --temp"),
                locked_temp(same),
            ):
                pass
        assert (config.temp / "a.png").is_file()
    with locked_temp(config):  # another server, after the first one has stopped
        assert not (config.temp / "a.png").exists()


def test_a_temp_folder_that_cannot_be_locked_is_not_emptied(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    (config.temp / "a.png").touch()

    def no_locks(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked_temp(config):
        assert (config.temp / "a.png").is_file()
