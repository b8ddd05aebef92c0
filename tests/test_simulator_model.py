"""The model server of the core's simulator answers as real servers do: one file says how."""

from __future__ import annotations

from support import transcript


def test_a_server_answers_as_the_simulators_model_does(own_server):
    pairs = transcript.pairs()
    commands = [command for command, _ in pairs]
    answers = list(transcript.answers(own_server.redis(), commands))
    told = list(zip(commands, answers, strict=True))
    assert told == pairs
