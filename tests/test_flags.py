"""The command line is small and frozen: a new flag is a decision, made here."""

from vitrail.cli import app

FROZEN = {
    "data check": {"--json", "--out", "--quiet"},
    "data fetch": {"--origin", "--out"},
    "data preview": {"--out", "--recipe", "--seed"},
    "data split": {"--out", "--quiet", "--relabel", "--seed", "--test", "--val"},
    "data stylise": {"--out", "--quiet", "--seed"},
    "demo": {"--json", "--out", "--overwrite", "--plan", "--quiet", "--seed"},
    "train": {
        *("--recipe", "--model", "--weights", "--image-size", "--epochs", "--batch-size", "--lr", "--seed", "--set"),
        *("--time-limit", "--find-lr"),
        *("--out", "--overwrite", "--plan", "--workers", "--track", "--device", "--json", "--quiet"),
    },
    "eval": {
        *("--data", "--split", "--image-size", "--family", "--out", "--device", "--json"),
        *("--protocol", "--set", "--beside", "--engine", "--precision"),
    },
    "embed": {"--out", "--image-size", "--family", "--device", "--json"},
    "search": {"--model", "--top", "--image-size", "--family", "--device", "--json"},
    "predict": {"--image-size", "--family", "--top", "--device", "--engine", "--precision", "--json"},
    "explain": {
        *("--method", "--class", "--layer", "--head", "--query", "--check", "--data", "--split", "--images", "--seed"),
        *("--out", "--image-size", "--family", "--device", "--json"),
    },
    "bench": {"--batch", "--engine", "--precision", "--seconds", "--data", "--image-size", "--plan", "--json"},
    "report": {"--json"},
    "compare": {"--split", "--out", "--json"},
    "models": {"--image-size", "--json"},
    "models inspect": {"--image-size", "--family", "--json"},
    "convert": {"--format", "--image-size", "--family", "--json"},
    "export": {
        *(
            "--to",
            "--precision",
            "--image-size",
            "--inside",
            "--out",
            "--data",
            "--max-drop",
            "--overwrite",
            "--family",
        ),
        "--json",
    },
    "doctor": {"--json"},
    "recipes": {"--json"},
    "reproduce": {
        *("--model", "--data", "--split", "--out", "--image-size", "--family", "--set", "--device", "--json"),
    },
}


def verbs_of(command, prefix=""):
    """Every verb that does something, with the flags it takes; a family such as `data` is not one itself, `models` is."""
    found = {}
    for name in (name for name in command if not name.startswith("-")):
        inner = verbs_of(command[name], f"{prefix}{name} ")
        found |= inner
        if command[name].default_command is not None:
            arguments = command[name].assemble_argument_collection()
            found[prefix + name] = {flag for a in arguments for flag in a.names if flag.startswith("--")}
    return found


def test_verbs_and_flags_are_frozen():
    assert verbs_of(app) == FROZEN
