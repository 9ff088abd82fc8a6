"""The command line, in process: what reaches the command, and how each mistake is told."""

import subprocess
import sys

import pytest

from jaxalign.cli import commands, values
from jaxalign.cli.commands import COMMANDS, UsageError, read_signature
from jaxalign.cli.flags import other_names, parse_flags
from jaxalign.cli.main import _best, main, run_with_one_line_errors

STANDARD = """
MODEL_DIR = %gin.REQUIRED
STEPS = 3
UNRELATED = 1
example_command.drive.model_dir = %MODEL_DIR
example_command.drive.engine = @example_command.Engine()
example_command.drive.steps = %STEPS
example_command.Engine.size = 4
"""


def error_line(capsys) -> str:
    """The one line on stderr, without the program's name; fails if there are more."""
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert captured.out == ""
    return lines[0].removeprefix("jaxalign: ")


class TestHelp:
    def test_lists_every_command(self, capsys):
        assert main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in commands.COMMANDS)

    def test_of_a_command_lists_parameters_types_defaults_and_their_lines(self, calls, capsys):
        assert main(["drive", "--help"]) == 0
        words = " ".join(capsys.readouterr().out.split())
        assert "Drives. A second paragraph." in words
        assert "--model_dir, --output where to go, on two lines. (str; required)" in words
        assert "--steps how many steps. (int; default 10)" in words
        assert "--gin_file" in words
        assert calls == []

    def test_without_arguments_is_on_stderr_with_the_code_of_a_mistake(self, capsys):
        assert main([]) == 2
        assert "usage:" in capsys.readouterr().err

    def test_imports_neither_jax_nor_tensorflow_nor_gin(self):
        script = (
            "import sys; from jaxalign.cli.main import main; main(['--help']); main(['vocabulary', '--help']);"
            "assert not {'jax', 'tensorflow', 'numpy', 'gin', 'seqio'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)

    @pytest.mark.parametrize("name", sorted(commands.COMMANDS))
    def test_every_command_exists_and_explains_its_parameters(self, name):
        signature = commands.read_signature(commands.COMMANDS[name])
        assert signature.summary
        for parameter in signature.parameters.values():
            assert parameter.annotation and parameter.description, parameter.name

    def test_parameters_documented_together_share_their_description(self):
        text = "Does.\n\nArgs:\n  a, b: two\n    lines.\n  c (int): one."
        _, found = commands.split_docstring(text)
        assert found == {"a": "two lines.", "b": "two lines.", "c": "one."}


def test_the_end_of_a_run_names_its_best_step():
    best = {"step": 20, "metric": "validation/loss", "value": 1.23456}
    assert _best({"step": 40, "best": best}) == "; the best is step 20 (validation/loss 1.235)"
    assert _best({"best": {}, "ended_early_with_patience": 3}).startswith(", early, after 3 ")
    assert _best({"best": {}}) == _best(None) == ""


class TestFlags:
    def test_become_typed_parameters(self, calls):
        arguments = (
            "--model_dir=x --steps 7 --rate=1e-3 --loud --places=a,b --places=c --limit=4 --at=12"
        )
        assert main(["drive", *arguments.split()]) == 0
        assert calls == [
            {
                "model_dir": "x",
                "engine": None,
                "steps": 7,
                "rate": 1e-3,
                "loud": True,
                "places": ["a", "b", "c"],
                "limit": 4,
                "at": 12,
            }
        ]

    def test_a_list_is_split_at_commas_but_an_existing_path_is_not(self, calls, tmp_path):
        odd = tmp_path / "lr=1,warm=2"
        odd.mkdir()
        assert main(["drive", "--model_dir=x", f"--places=a,b={odd},{odd},c"]) == 0
        assert calls[0]["places"] == ["a", f"b={odd}", str(odd), "c"]

    def test_dashes_negation_and_none_are_understood(self, calls):
        assert main(["drive", "--model-dir=x", "--noloud", "--limit=none", "--at=best"]) == 0
        assert (calls[0]["loud"], calls[0]["limit"], calls[0]["at"]) == (False, None, "best")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["drvie"], "unknown command drvie; did you mean drive?"),
            (["--gin_file=x"], "the command comes first"),
            (["drive", "--setps=3"], "unknown flag --setps; did you mean --steps?"),
            (["drive", "--gin_fiel=x"], "unknown flag --gin_fiel; did you mean --gin_file?"),
            (["drive", "here"], "unexpected argument 'here'"),
            (["drive", "--train_stepz=3"], "set by its name in capitals: --TRAIN_STEPZ=..."),
            (["drive", "--steps=many"], "--steps=many is not of type int"),
            (["drive", "--loud=perhaps"], "--loud=perhaps is not a boolean"),
            (["drive", "--steps"], "--steps needs a value"),
            (["drive", "--engine=x"], "--engine cannot be given as a plain flag"),
            (["drive", "--gin.STEPS"], "--gin.STEPS needs a name and a value"),
            (["drive"], "drive needs --model_dir"),
        ],
    )
    def test_mistakes_are_one_line_and_code_2(self, calls, capsys, arguments, message):
        assert main(arguments) == 2
        assert message in error_line(capsys)
        assert calls == []


class TestGin:
    def test_files_bindings_and_plain_flags_win_in_this_order(self, calls, gin_file):
        first = gin_file(STANDARD, "first.gin")
        second = gin_file("STEPS = 4", "second.gin")
        files = [f"--gin_file={first}", f"--gin_file={second}", "--gin.MODEL_DIR='m'"]
        for extra, steps in ([], 4), (["--gin.STEPS=5"], 5), (["--gin.STEPS=5", "--steps=6"], 6):
            arguments = [*files, *extra] if steps != 6 else [*files, "--steps=6"]
            assert main(["drive", *arguments]) == 0
            assert calls[-1]["steps"] == steps
            assert (calls[-1]["model_dir"], calls[-1]["engine"].size) == ("m", 4)

    def test_a_plain_flag_satisfies_a_required_macro(self, calls, gin_file):
        assert main(["drive", f"--gin_file={gin_file(STANDARD)}", "--model_dir=m"]) == 0
        assert calls[0]["model_dir"] == "m"

    def test_gin_bindings_is_the_long_form(self, calls, gin_file):
        files = [f"--gin_file={gin_file(STANDARD)}", "--gin_bindings=MODEL_DIR = 'm'"]
        assert main(["drive", *files, "--gin_bindings", "Engine.fuel='coal'"]) == 0
        assert calls[0]["engine"].fuel == "coal"

    @pytest.mark.parametrize(
        ("flag", "name", "value"),
        [
            ("--MODEL_DIR=runs/x", "model_dir", "runs/x"),
            ("--MODEL_DIR='runs/x'", "model_dir", "runs/x"),
            ("--MODEL_DIR=12", "model_dir", "12"),
            ("--MODEL_DIR=it's 50% @home", "model_dir", "it's 50% @home"),
            ("--MODEL_DIR=~/x,~y", "model_dir", "/home/me/x,~y"),
            ("--gin.MODEL_DIR='~/x'", "model_dir", "/home/me/x"),
            ("--model_dir=~/x", "model_dir", "/home/me/x"),
            ("--gin.MODEL_DIR=runs/x", "model_dir", "runs/x"),
            ("--STEPS=100", "steps", 100),
            ("--gin.drive.rate=1e-3", "rate", 1e-3),
            ("--gin.drive.loud=true", "loud", True),
            ("--gin.drive.limit=none", "limit", None),
            ("--gin.drive.places=a,~/b", "places", ["a", "/home/me/b"]),
            ("--gin.drive.at=best", "at", "best"),
            ("--gin.Engine.fuel=coal", "engine", "coal"),
        ],
    )
    def test_a_word_number_or_path_needs_no_quotes(
        self, calls, gin_file, monkeypatch, flag, name, value
    ):
        monkeypatch.setenv("HOME", "/home/me")
        arguments = ["drive", f"--gin_file={gin_file(STANDARD)}", "--MODEL_DIR=m", flag]
        assert main(arguments) == 0
        got = calls[-1][name]
        assert (got.fuel if name == "engine" else got) == value

    def test_a_plain_flag_sets_the_macro_that_stands_for_it(self, calls, gin_file):
        body = STANDARD + "example_command.Engine.fuel = %MODEL_DIR\n"
        assert main(["drive", f"--gin_file={gin_file(body)}", "--model_dir=m"]) == 0
        assert calls[0]["engine"].fuel == "m"

    def test_a_reference_given_by_a_flag_decides_who_reads_the_macros(self, calls, gin_file):
        body = "WHERE = 1\nexample_command.drive.model_dir = 'm'\nexample_command.Engine.size = 1"
        flags = ["--WHERE=7", "--gin.drive.engine=@Engine()", "--gin.Engine.fuel=%WHERE"]
        assert main(["drive", f"--gin_file={gin_file(body)}", *flags]) == 0
        assert calls[0]["engine"].fuel == "7"

    def test_a_named_module_may_be_imported(self, calls, gin_file, tmp_path, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "my_engines.py").write_text("def steam():\n    return 'steam'\n")
        body = STANDARD + "import my_engines\nexample_command.Engine.fuel = @my_engines.steam()\n"
        arguments = ["drive", f"--gin_file={gin_file(body)}", "--MODEL_DIR=m"]
        assert main(arguments) == 2
        assert main([*arguments, "--gin_import=my_engines"]) == 0
        assert calls[0]["engine"].fuel == "steam"

    def test_a_dry_run_calls_no_function_of_a_file(
        self, calls, gin_file, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "my_traps.py").write_text("def trap():\n    raise SystemExit('called')\n")
        body = STANDARD + "import my_traps\nexample_command.Engine.fuel = @my_traps.trap()\n"
        body += "REGISTER_TASKS = [@my_traps.trap]\n"
        flags = ["--MODEL_DIR=m", "--gin_import=my_traps", "--dry_run"]
        assert main(["drive", f"--gin_file={gin_file(body)}", *flags]) == 0
        assert "does not call @trap(), so the values" in capsys.readouterr().err

    def test_search_paths_come_first(self, calls, gin_file, tmp_path):
        gin_file(STANDARD + "STEPS = 9\n", "found.gin")
        paths = f"--gin_search_paths=/nowhere,{tmp_path}"
        assert main(["drive", paths, "--gin_file=found.gin", "--gin.MODEL_DIR='m'"]) == 0
        assert calls[0]["steps"] == 9

    def test_dry_run_builds_and_prints_but_does_not_call(self, calls, gin_file, capsys):
        arguments = [
            "drive",
            f"--gin_file={gin_file(STANDARD)}",
            "--gin.MODEL_DIR='m'",
            "--dry_run",
        ]
        assert main(arguments) == 0
        assert "drive.steps = %STEPS" in capsys.readouterr().out
        assert main([*arguments, "--gin.Engine.size=-1"]) == 2
        assert error_line(capsys) == "Engine: size is -1; it must not be negative"
        assert calls == []

    def test_runs_do_not_share_bindings(self, calls, gin_file):
        assert main(["drive", f"--gin_file={gin_file(STANDARD)}", "--gin.MODEL_DIR='m'"]) == 0
        assert main(["drive", "--model_dir=other"]) == 0
        assert calls[1]["engine"] is None

    @pytest.mark.parametrize(
        ("body", "flags", "message"),
        [
            (STANDARD, [], "MODEL_DIR has no value; set --MODEL_DIR=..."),
            (STANDARD, ["--gin.STEP=5"], "nothing reads the macro STEP; did you mean STEPS?"),
            (STANDARD, ["--gin.UNRELATED=5"], "--gin.UNRELATED has no effect"),
            (STANDARD, ["--gin.Unused.size=5"], "this configuration does not use Unused"),
            (STANDARD, ["--gin.drive.stepz=5"], "drive has no parameter stepz; did you mean steps?"),
            (STANDARD, ["--gin.Engin.size=5"], "nothing is called Engin; did you mean Engine?"),
            (STANDARD, ["--STEP=5"], "--STEP has no effect: nothing reads the macro STEP; did you mean STEPS?"),
            (STANDARD, ["--STEPS"], "--STEPS needs a value"),
            (STANDARD, ["--MODEL_DIR=m", "--STEPS=many"], "STEPS = 'many', but drive.steps takes a whole number"),
            (STANDARD, ["--MODEL_DIR=m", "--gin.drive.engine=@Engine"], "it takes what that makes: write @Engine()"),
            (STANDARD, ["--gin.STEPS=(3,"], "could not read the value of --gin.STEPS=(3,"),
            (STANDARD, ["--gin.drive.engine=@Motor()"], "nothing is called Motor"),
            (STANDARD, ["--gin_bindings=STEPS"], "not of the form NAME = VALUE"),
            ("RATES = 1\nexample_command.drive.rate = %RATE", [], "RATE has no value; set --RATE=...; did you mean RATES?"),
            ("example_command.drive.engine = %MODEL", [], "MODEL has no value; add a --gin_file of models/"),
            ("example_command.drive.rats = 1", [], "drive.gin:3: example_command.drive has no parameter rats; did you mean rate?"),
            ("example_command.dive.rate = 1", [], "drive.gin:3: example_command has no dive; did you mean drive?"),
            ("sample.drive.rate = 1", [], "drive.gin:3: 'sample' was not provided by an import"),
            ("import no_such_module", ["--gin_import=no_such_module"], "--gin_import=no_such_module: No module named 'no_such_module'"),
            ("import os", [], "drive.gin:3: this file imports os, which is not a module of jaxalign"),
            ("import os.path", [], "if you trust file and module, add --gin_import=os.path"),
            ("from os import path", [], "imports os.path, which"),
            ("A = %B\nB = %A", [], "macros refer to each other in a circle: A -> B -> A"),
            ("A = [%B]\nB = (%A, 1)\nexample_command.drive.steps = %A", [], "in a circle: A -> B -> A"),
            ("example_command.drive.fail = @example_command.dataclasses.inspect.stack()", [], "defined in inspect and not in jaxalign"),
            (STANDARD + "example_command.Engine.fuel = @example_command.Engine()", ["--MODEL_DIR=m"], "the configuration refers to itself"),
            ("STEPS = (1,\n\nRATE = 2", [], "drive.gin:"),
            ("STEPS = three", [], "drive.gin:3:"),
            ("include 'nowhere.gin'", [], "drive.gin:3: gin file nowhere.gin not found"),
        ],
    )  # fmt: skip
    def test_mistakes_are_one_line_and_code_2(self, calls, gin_file, capsys, body, flags, message):
        assert main(["drive", f"--gin_file={gin_file(body)}", *flags]) == 2
        assert message in error_line(capsys)
        assert calls == []

    def test_a_missing_file_is_named_with_the_nearest_one(self, calls, capsys):
        assert main(["drive", "--gin_file=models/t5_1_1_bas.gin"]) == 2
        expected = "gin file models/t5_1_1_bas.gin not found; did you mean models/t5_1_1_base.gin?"
        assert error_line(capsys) == expected


class TestFailures:
    def test_a_platform_that_is_not_there_is_one_line(self, calls, capsys, monkeypatch):
        def fail():
            raise RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no TPU\n (set ...)")

        assert run_with_one_line_errors(fail) == 2
        assert "JAX finds no device of the platform 'tpu'" in error_line(capsys)

    def test_a_users_error_is_one_line(self, calls, capsys):
        assert main(["drive", "--model_dir=x", "--fail=user"]) == 2
        assert error_line(capsys) == "records.jsonl:3: feedback is NaN; remove the record"

    def test_a_missing_input_file_is_one_line(self, calls, capsys):
        assert main(["drive", "--model_dir=x", "--fail=file"]) == 2
        assert error_line(capsys) == "no/such/file.jsonl: No such file or directory"

    def test_an_interrupt_is_130(self, calls, capsys):
        assert main(["drive", "--model_dir=x", "--fail=interrupt"]) == 130
        assert error_line(capsys) == "interrupted"

    def test_a_defect_keeps_its_traceback(self, calls):
        with pytest.raises(ValueError, match="a defect of the program"):
            main(["drive", "--model_dir=x", "--fail=defect"])

    def test_verbose_shows_the_traceback(self, calls):
        with pytest.raises(Exception, match=r"records.jsonl:3"):
            main(["drive", "--model_dir=x", "--fail=user", "--verbose"])


class TestTypes:
    @pytest.mark.parametrize(
        ("binding", "message"),
        [
            (
                "STEPS='many'",
                "STEPS = 'many', but drive.steps takes a whole number",
            ),
            ("STEPS=1e3", "STEPS = 1000.0, but drive.steps takes a whole number"),
            ("drive.rate='big'", "drive.rate = 'big'; it takes a number"),
            ("drive.loud=2", "drive.loud = 2; it takes True or False"),
            ("drive.places=[1]", "drive.places = [1]; it takes list[str]"),
            ("drive.at=[5]", "drive.at = [5]; it takes a whole number or text"),
            ("Engine.fuel=[3]", "Engine.fuel = [3]; it takes text"),
        ],
    )
    def test_a_value_of_another_type_is_one_line(self, calls, gin_file, capsys, binding, message):
        arguments = ["drive", f"--gin_file={gin_file(STANDARD)}", "--gin.MODEL_DIR='m'"]
        assert main([*arguments, f"--gin.{binding}"]) == 2
        assert error_line(capsys) == message
        assert calls == []

    @pytest.mark.parametrize(
        ("value", "annotation", "fits"),
        [
            (1, "float", True),
            (True, "int | None", False),
            (None, "int | None", True),
            ({"advantages": 3}, "Mapping[str, str]", False),
            ({"a": 1}, "dict[str, int] | None", True),
            (("a", "b"), "tuple[str, ...]", True),
            (("a", 1.0), "Sequence[str | tuple[str, float]]", True),
            ("x", "Callable[..., Any] | int", True),
            ("x", "Literal['x', 'y']", True),
            ("z", "Literal['x', 'y']", False),
        ],
    )
    def test_only_annotations_of_plain_types_refuse(self, value, annotation, fits):
        assert values.fits(value, annotation) == fits


def test_the_module_form_of_t5x_gives_the_same_line_and_code():
    done = subprocess.run(
        [sys.executable, "-m", "jaxalign.train", "--gin_fiel=x"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "jaxalign: unknown flag --gin_fiel; did you mean --gin_file?\n"


@pytest.mark.parametrize(
    ("command", "flag", "parameter"),
    [
        ("evaluate", "output", "output_dir"),
        ("generate", "output_dir", "output"),
        ("train", "output", "model_dir"),
        ("push", "output", "to"),
        ("convert", "output", "output"),
        ("advantages", "checkpoint", "value_checkpoint"),
        ("inspect", "input", "file"),
    ],
)
def test_the_same_word_means_the_same_in_every_command(command, flag, parameter):
    signature = read_signature(COMMANDS[command])
    assert parse_flags([f"--{flag}=x"], signature).parameters == {parameter: "x"}
    if flag != parameter:
        assert flag in other_names(parameter, signature)


def test_evaluate_takes_one_checkpoint_by_the_name_of_the_others():
    signature = read_signature(COMMANDS["evaluate"])
    assert parse_flags(["--checkpoint=a=runs/a"], signature).parameters == {
        "checkpoints": ["a=runs/a"]
    }


def test_a_flag_of_another_command_is_still_unknown():
    with pytest.raises(UsageError, match="unknown flag --checkpoint"):
        parse_flags(["--checkpoint=x"], read_signature(COMMANDS["vocabulary"]))
