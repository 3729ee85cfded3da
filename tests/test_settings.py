from pathlib import Path

import pytest

from rpla.core.errors import RplaError
from rpla.core.home import Home, find_home
from rpla.core.settings import load_settings, parse_setting, resolve_settings, setting_keys, write_setting


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "config.toml").write_text(
        '# mine\nmodel = "scripted:"\n\n[sampling]\n# cool\ntemperature = 0.2\n', "utf-8"
    )
    return Home(tmp_path)


def origins(home: Home, flags: dict | None = None) -> dict[str, tuple[object, str]]:
    return {setting.key: (setting.value, setting.origin) for setting in resolve_settings(home, flags)[1]}


def test_each_layer_beats_the_one_below_and_says_so(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPLA_SAMPLING__TOP_P", "0.5")
    monkeypatch.setenv("RPLA_SAMPLING__TEMPERATURE", "0.4")
    found = origins(home, {"sampling.seed": 3, "sampling.min_p": None})
    assert found["model"] == ("scripted:", "config.toml line 2")
    assert found["sampling.temperature"] == (0.4, "RPLA_SAMPLING__TEMPERATURE")
    assert found["sampling.top_p"] == (0.5, "RPLA_SAMPLING__TOP_P")
    assert found["sampling.seed"] == (3, "flag")
    assert found["sampling.min_p"][1] == "default"
    assert set(found) == set(setting_keys())


def test_a_wrong_type_names_key_file_and_line(home: Home) -> None:
    home.config.write_text('[sampling]\ntop_p = 0.9\ntemperature = "warm"\n', "utf-8")
    with pytest.raises(RplaError) as error:
        load_settings(home)
    assert "sampling.temperature" in error.value.message
    assert f"{home.config}, line 3" in error.value.message
    assert "'warm'" in error.value.message


def test_a_wrong_variable_names_the_variable(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPLA_SAMPLING__TEMPERATURE", "warm")
    with pytest.raises(RplaError, match="RPLA_SAMPLING__TEMPERATURE"):
        load_settings(home)


def test_an_unknown_key_offers_the_nearest(home: Home) -> None:
    home.config.write_text("[sampling]\ntemprature = 1\n", "utf-8")
    with pytest.raises(RplaError) as error:
        load_settings(home)
    assert "line 2" in error.value.message
    assert "sampling.temperature" in error.value.hint


def test_a_value_where_an_area_should_be_is_named(home: Home) -> None:
    home.config.write_text("sampling = 3\n", "utf-8")
    with pytest.raises(RplaError, match=r"sampling.*line 1"):
        load_settings(home)


def test_broken_toml_is_named(home: Home) -> None:
    home.config.write_text("model = \n", "utf-8")
    with pytest.raises(RplaError, match="not valid TOML"):
        load_settings(home)


def test_writing_a_setting_keeps_comments_and_the_rest(home: Home) -> None:
    write_setting(home, "sampling.top_p", parse_setting("sampling.top_p", "0.8"))
    write_setting(home, "user", "sam")
    text = home.config.read_text("utf-8")
    assert "# mine" in text
    assert "# cool" in text
    settings = load_settings(home)
    assert (settings.sampling.top_p, settings.sampling.temperature, settings.user) == (0.8, 0.2, "sam")


def test_a_wrong_value_is_refused_and_the_file_stays(home: Home) -> None:
    before = home.config.read_bytes()
    with pytest.raises(RplaError, match=r"sampling\.top_p"):
        write_setting(home, "sampling.top_p", parse_setting("sampling.top_p", "7"))
    assert home.config.read_bytes() == before


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RPLA_HOME", str(tmp_path / "file"))
    with pytest.raises(RplaError, match="not a folder"):
        find_home()
