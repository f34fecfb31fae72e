"""The library names arguments, the command line its options."""

import pytest

from freeprune.engine.command.wording import in_options


@pytest.mark.parametrize(
    ("command", "sentence", "said"),
    [
        ("prune", "`trials` is -1; give 0 or more", "--trials is -1; give 0 or more"),
        ("prune", "`epochs` is -1", "--finetune-epochs is -1"),
        ("train", "`epochs` is -1", "--epochs is -1"),
        ("inspect", "`example='1,8'` is no shape", "--input 1,8 is no shape"),
        ("prune", "`only='a b'` matches nothing", "--only 'a b' matches nothing"),
        ("prune", "go on with `resume=True`, or `rehearsal=False`", "go on with --resume, or --no-rehearsal"),
        ("report", "make the run again with `force=True`", "make the run again with --force"),
        ("pick", "the `sweep_folder` is none", "the SWEEP is none"),
        ("prune", "`ray start --head` and `nothing` stay", "`ray start --head` and `nothing` stay"),
    ],
)
def test_a_sentence_in_options(command, sentence, said):
    assert in_options(sentence, command) == said
