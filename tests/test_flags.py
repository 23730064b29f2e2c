"""The command line is small and frozen: a new flag is a decision, made here."""

from vitrail.cli import app

FROZEN = {
    "models": {"--image-size"},
}


def flags_of(name: str) -> set[str]:
    arguments = app[name].assemble_argument_collection()
    return {flag for argument in arguments for flag in argument.names if flag.startswith("--")}


def test_verbs_and_flags_are_frozen():
    verbs = {name for name in app if not name.startswith("-")}
    assert verbs == set(FROZEN)
    assert {verb: flags_of(verb) for verb in verbs} == FROZEN
