"""How a row comes by its hyper-parameters, its name and its role."""

from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.method_choice import Invocation, MethodSettings, Unmerged, method_settings
from methods.ota_ffg import OtaFfg
from methods.ties import Ties

TIES = {"name": "ties", "path": None, "role": "method", "weights": {}, "density": 0.2, "scope": "model", "scale": 1.0}
TUNED = {"ties": {"values": {"density": 0.55, "scale": 1.5}, "trials": 9, "split": "validation"}}
TUNED_FFG = {"ota_ffg": {"values": {"density": 0.6}, "trials": 9, "split": "validation"}}


def settings(node: dict[str, Any], choice: str, given: dict[str, str], **options: Any) -> MethodSettings:
    return method_settings(node, Invocation({"method": choice}, given), **options)


def test_defaults_are_said_to_be_defaults() -> None:
    found = settings(TIES, "ties", {})
    assert (found.method, found.label, found.role, found.selection) == (Ties(), "ties", "method", {"how": "default"})


def test_published_values_name_their_source_unless_others_are_given() -> None:
    node = TIES | {"published": "Yadav et al. 2023"}
    assert settings(node, "ties_published", {}).selection == {"how": "published", "source": "Yadav et al. 2023"}
    assert settings(node | {"density": 0.3}, "ties_published", {"density": "0.3"}).selection == {"how": "given"}


def test_another_seed_is_no_choice_of_a_value() -> None:
    node = {"name": "dare", "path": None, "role": "method", "seed": 1}
    assert settings(node, "dare", {"seed": "1"}).selection == {"how": "default"}
    assert settings(node, "dare", {"seed": "1", "scale": "2"}).selection == {"how": "given"}
    tuned = {"dare": {"values": {"scale": 0.5}, "trials": 9, "split": "validation", "seconds": 70.5, "objective": 60.0}}
    expected = {"how": "tuned", "trials": 9, "split": "validation", "seconds": 70.5}
    assert settings(node, "dare", {"seed": "1"}, tuned=tuned).selection == expected


def test_what_is_given_by_hand_is_in_the_name() -> None:
    found = settings(TIES | {"density": 0.3}, "ties", {"density": "0.3"})
    assert (found.method, found.label, found.selection) == (Ties(density=0.3), "ties density=0.3", {"how": "given"})


def test_tuned_values_replace_defaults_and_are_counted() -> None:
    found = settings(TIES, "ties", {}, tuned=TUNED)
    assert found.method == Ties(density=0.55, scale=1.5)
    assert found.selection == {"how": "tuned", "trials": 9, "split": "validation"}


def test_what_is_given_by_hand_wins_over_what_was_tuned() -> None:
    found = settings(TIES | {"density": 0.3}, "ties", {"density": "0.3"}, tuned=TUNED)
    assert found.method == Ties(density=0.3, scale=1.5)
    assert found.selection == {"how": "given"}


def test_a_control_takes_what_was_tuned_for_its_method() -> None:
    node = {"name": "ota_ffg", "path": None, "role": "control", "weight_by": "uniform"}
    found = settings(node, "ffg_uniform", {}, tuned=TUNED_FFG)
    assert (found.method, found.label, found.role) == (
        OtaFfg(density=0.6, weight_by="uniform"),
        "ffg_uniform",
        "control",
    )


def test_a_named_configuration_is_tuned_for_itself() -> None:
    node = {"name": "ota_ffg", "path": None, "role": "method", "curvature": "compressed"}
    assert settings(node, "ota_ffg_compressed", {}, tuned=TUNED_FFG).method == OtaFfg(curvature="compressed")


def test_no_method_is_a_model_of_the_zoo() -> None:
    found = settings({"name": "none", "model": "math"}, "none", {})
    assert (found.method, found.label, found.role) == (Unmerged("math"), "math", "expert")
    assert settings({"name": "none", "model": "base"}, "none", {}).role == "base"


def test_a_label_of_ones_own_wins() -> None:
    assert settings(TIES, "ties", {}, label="mine").label == "mine"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(GraftbenchError, match="unknown method 'tis'; did you mean 'ties'"):
        settings({"name": "tis"}, "tis", {})
