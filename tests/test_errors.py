import pytest

from nocturnal_kedro import plugins
from nocturnal_kedro.errors import InputError, require_known


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown model 'tttm'; known: chronos2, ttm.*'ttm'\?"):
        require_known("model", "tttm", ["ttm", "chronos2"])


def test_folders_are_the_lists() -> None:
    assert set(plugins.names("model")) >= {"ttm", "chronos2"}
    assert set(plugins.names("source")) >= {"simulated", "azt1d"}
    assert plugins.names("baseline") == (
        "auto_ets",
        "climatology",
        "damped_trend",
        "gradient_boosting",
        "last_value",
        "subject_mean",
    )


def test_unknown_option_is_named_with_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"options of model 'ttm': 'd_modl'.*Allowed:.*network"):
        plugins.options("model", "ttm", {"d_modl": 3})


def test_an_unknown_option_within_an_option_lists_that_ones() -> None:
    with pytest.raises(InputError, match=r"'network\.d_modl'.*Allowed: patch_length, d_model"):
        plugins.options("model", "ttm", {"network": {"d_modl": 3}})


def test_an_address_is_not_told_since_it_may_hold_a_password() -> None:
    with pytest.raises(InputError, match=r"'urll' .*given an address") as raised:
        plugins.options("source", "gluroo", {"urll": "postgresql://me:secret@host/db"})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("kind", sorted(plugins.KINDS))
def test_every_plugin_offers_its_contract(kind: str) -> None:
    needed = {
        "source": ("TITLE", "Options", "find", "read"),
        "model": ("Options", "configure", "build"),
        "baseline": ("Options", "fit", "forecast"),
        "sweep": ("TITLE", "METHOD", "Options", "plan", "groups", "sections"),
    }[kind]
    for name in plugins.names(kind):
        module = plugins.load(kind, name)
        service = kind == "model" and plugins.is_service(name)
        parts = ("Options", "answer") if service else needed
        assert [part for part in parts if not hasattr(module, part)] == []
        module.Options()  # every option has a default
        # Kedro makes a value of such a name absolute, wherever it stands in the catalog.
        assert not {"path", "filepath", "filename"} & set(module.Options.model_fields), name
