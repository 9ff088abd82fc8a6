"""Plug-ins: how a specification is read, and what is told about a wrong one."""

import dataclasses

import pytest

from jaxalign.errors import UserError
from jaxalign.plugins import Registry, parse_spec


@pytest.fixture
def registry():
    made = Registry("selector", lambda name, function: (name, function))

    @made.register("best")
    @dataclasses.dataclass(frozen=True)
    class Best:
        annotation: str
        margin: float = 0.0
        count: int | None = None
        ties: bool = False

    @made.register("nothing")
    def nothing():
        return "nothing"

    return made


def test_a_specification_has_a_name_and_an_argument_or_settings():
    assert parse_spec("best").name == "best"
    assert parse_spec("best:runs/a").argument == "runs/a"
    spec = parse_spec("best:annotation=judge, margin=0.5")
    assert (spec.argument, dict(spec.settings)) == ("", {"annotation": "judge", "margin": "0.5"})
    assert parse_spec("best:path=a=b").settings == {"path": "a=b"}
    with pytest.raises(UserError, match=r"'0\.5' must be written key=value"):
        parse_spec("best:margin=1,0.5")


def test_a_registry_without_settings_passes_all_of_the_text():
    registry = Registry("judge", lambda name, function: function, settings=False)
    registry.register("run")(lambda text: f"<{text}>")
    assert registry.build("run:runs/lr=1e-3,b") == "<runs/lr=1e-3,b>"
    assert registry.build("run") == "<>"
    with pytest.raises(
        UserError, match="no judge named 'walk': use one of run, or module:function"
    ):
        registry.build("walk")


def test_settings_get_the_types_of_the_factory(registry):
    made = registry.build("best:annotation=judge,margin=1e-1,count=3,ties=true")
    assert (made.annotation, made.margin, made.count, made.ties) == ("judge", 0.1, 3, True)
    assert registry.build("best:annotation=j,count=None").count is None


def test_a_plain_argument_sets_the_first_parameter_and_overrides_win(registry):
    assert registry.build("best:judge").annotation == "judge"
    assert registry.build("best", annotation="x", margin=2.0).margin == 2.0
    assert registry.build("nothing") == "nothing"
    assert "best" in registry and registry.names() == ["best", "nothing"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("worst", "no selector named 'worst': use one of best, nothing, or module:function"),
        ("best", "'best' needs annotation: best:annotation=..."),
        ("best:annotation=a,size=3", "no setting 'size'; its settings: annotation, margin"),
        ("best:annotation=a,margin=much", "margin is 'much', which is not a number"),
        ("best:annotation=a,count=1.5", "count is '1.5', which is not an integer"),
        ("best:annotation=a,ties=maybe", "ties is 'maybe', which is not true or false"),
        ("nothing:x", "'nothing' takes no argument, got 'x'"),
        ("no_such_module:f", "cannot import module 'no_such_module'"),
        ("json:absent", "module 'json' has no function 'absent'"),
    ],
)
def test_a_wrong_specification_is_told_in_one_line(registry, spec, message):
    with pytest.raises(UserError) as caught:
        registry.build(spec)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_of_ones_own_is_wrapped_with_its_name(registry):
    import json

    assert registry.build("json:dumps") == ("dumps", json.dumps)


def test_a_name_is_registered_once(registry):
    with pytest.raises(ValueError, match="registered already"):
        registry.register("best")(dict)


@pytest.mark.parametrize("spec", [":function", ".module:function"])
def test_a_module_without_a_proper_name_is_a_mistake_of_the_user(spec):
    with pytest.raises(UserError, match="cannot import module"):
        Registry("annotator", lambda name, function: function).build(spec)
