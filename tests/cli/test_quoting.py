"""Values that Hydra's grammar cannot read as they stand are put in quotes; names that it cannot read are refused."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness.errors import GraftbenchError
from harness.overrides import read_command_line


@pytest.mark.parametrize("value", ["~/merged", "a(1)", "日本", "a=b", "a#b", "models/é"])
def test_a_path_reaches_its_option_as_it_was_written(value: str) -> None:
    (override,) = read_command_line([f"out={value}"]).overrides
    parsed = OverridesParser.create().parse_override(override)
    assert str(parsed.value()).strip("'") == value


@pytest.mark.parametrize("written", ["method.density=0.3", "zoo.name=a b", "zoo.experts.x=[a,b]"])
def test_what_hydra_reads_stays_as_it_is(written: str) -> None:
    (override,) = read_command_line([written]).overrides
    assert override.lstrip("+") == written


def test_a_name_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(GraftbenchError, match=r"'\+\+zoo\.experts\.é': names on the command line"):
        read_command_line(["zoo.experts.é=m/x"])
