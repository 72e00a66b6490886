"""Files of tokens and manifests of others: read, or refused before the work."""

import json

import pytest

from speechbrain_vq.evaluation import evaluate
from speechbrain_vq.evaluation.tokens import TokenFile, read_tokens
from tests.commands import cli

from .synthetic import spans

GOOD = {"id": "u", "tokens": [0, 3, 1], "token_rate": 50}


@pytest.fixture
def write(tmp_path):
    def written(*lines):
        path = tmp_path / "tokens.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return written


def test_what_is_needed_is_enough(write):
    two = {"path": "a/v.wav", "tokens": [[1, 2]], "token_rate": 12.5}
    lines = list(read_tokens(write(GOOD | {"model": "another"})))
    assert lines[0].tokens.tolist() == [[0], [3], [1]]
    assert lines[0].seconds == 3 / 50
    (line,) = read_tokens(write(two | {"num_samples": 9, "sample_rate": 90}))
    assert line.tokens.tolist() == [[1, 2]] and line.seconds == 0.1
    (line,) = read_tokens(write(two | {"seconds": 0.2}))
    assert (line.id, line.path, line.seconds) == (None, "a/v.wav", 0.2)
    with pytest.raises(ValueError, match=r"1 tokens in 7.00 s .* 12.5 per"):
        list(read_tokens(write(two | {"seconds": 7})))


def test_tokens_of_others_are_evaluated(write, tmp_path):
    """By the name in the manifest, or by the file."""
    entries = {
        "u": {"wav": "/x/1.wav", "phones": [[0, 0.04, "a"], [0.04, 0.06, "b"]]},
        "w": {"wav": "/x/2.wav", "phones": [[0, 0.04, "a"], [0.04, 0.06, "b"]]},
        "empty": {"wav": "/x/3.wav"},
    }
    (tmp_path / "test.json").write_text(json.dumps(entries))
    by_path = {"path": "/x/2.wav", "tokens": [0, 0, 1], "token_rate": 50}
    empty = by_path | {"path": "/x/3.wav", "tokens": []}
    good = GOOD | {"tokens": [0, 0, 1]}
    path = write(good, by_path, good | {"tokens": [0, 1, 1]})
    with pytest.raises(ValueError, match="two lines for u"):
        evaluate(path, tmp_path / "test.json", replicates=0)
    path = write(good, by_path, good, empty)
    evaluation = evaluate(path, tmp_path / "test.json", replicates=0)
    assert evaluation.settings["utterances"] == 2
    reason = f"1 its tokens in {path} are empty"
    assert evaluation.settings["reasons"] == reason
    assert evaluation.metrics["phones"]["pnmi"].value == pytest.approx(1)
    assert any("empty: its tokens" in note for note in evaluation.left_out)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": None}, '"id" .* or "path"'),
        ({"token_rate": None}, '"token_rate" is None: expected a number'),
        ({"token_rate": 0}, "above 0, token frames per second"),
        ({"num_samples": 9}, '"sample_rate" is missing'),
        ({"seconds": -1}, '"seconds" is -1'),
        ({"tokens": [1, -1]}, "-1 is below 0"),
        ({"tokens": [1.5, 2]}, "integers"),
        ({"tokens": [[1, 2], [3]]}, "of equal length"),
        ({"tokens": 3}, "integers"),
        ({"tokens": [1, 8]}, "8 is not below the codebook size of 8.*above 8"),
        ({"tokens": [[1, 2]]}, "2 codebooks, but earlier lines have 1"),
        (b'{"id": "u", "tokens": [1]}', '"token_rate" is missing'),
        (b'{"id": "u", "token_rate": 50}', '"tokens" is missing'),
        (b"[1]", "a json object"),
        ({"tokens": [1 << 40]}, "not below"),
        (json.dumps(GOOD).encode()[:-9], "this is not json"),
        (b"\xff\xfe\n", "this is not json"),
    ],
)
def test_what_is_none_is_named_before_the_work(write, change, message):
    path = write(GOOD)
    if isinstance(change, dict):
        change = json.dumps(GOOD | change).encode()
    with open(path, "ab") as file:
        file.write(change)
    with pytest.raises(ValueError, match=f"tokens.jsonl, line 2: .*{message}"):
        list(read_tokens(path, codebook_size=8))


def test_lines_match_by_path_and_must_fit_the_length(write):
    manifest = {
        "slt-1": {"wav": "/x/slt/1.wav", "phones": []},
        "slt-2": {"wav": "/x/slt/2.wav", "phones": [], "length": 0.06},
        "again": {"wav": "/x/slt/2.wav", "phones": []},
        "slt-3": {"wav": "/x/slt/3.wav", "phones": [], "length": 0.5},
    }
    lines = [
        {"path": f"/x/{place}.wav", "tokens": [n, 1, 2], "token_rate": 50}
        for n, place in enumerate(["bdl/1", "slt/3", "slt/../slt/2"])
    ]
    file = TokenFile(write(*lines))
    tokens = {u.name: u.tokens[0, 0] for u in file.utterances(manifest)}
    assert tokens == {"slt-2": 2, "again": 2}
    assert "no tokens with its id or path" in file.errors["slt-1"]
    assert (
        "0.06 s, but its length in the manifest is 0.5" in file.errors["slt-3"]
    )


@pytest.mark.parametrize(
    "sizes, option, used",
    [
        ((512, 512), None, 100 * 3 / 512),
        ((512, 512), 4, 75),
        ((None, None), 6, 50),
        ((None, None), None, None),
        (("64", 512), None, "is '64': expected an integer from 1"),
        ((2, 512), None, "the token 2 is not below the codebook size of 2"),
    ],
)
def test_a_collapse_is_judged_by_the_codes_that_there_are(
    write, tmp_path, sizes, option, used
):
    """Those of the lines or the option; without either there is no verdict,
    as the codes that occur are all used."""
    (tmp_path / "test.json").write_text('{"u": {"wav": "u.wav"}}')
    line = GOOD | {"tokens": [0, 1, 2] * 999}
    path = write(
        line | {"codebook_size": sizes[0]},
        line | {"id": "v", "codebook_size": sizes[1]},
    )
    command = ["evaluate", path, f"--manifest={tmp_path}/test.json"]
    command += [f"--codebook-size={option}"] * (option is not None)
    result = cli(*command, code=int(isinstance(used, str)))
    if isinstance(used, str):
        assert used in result.output
        return
    evaluation = evaluate(path, tmp_path / "test.json", codebook_size=option)
    cost = evaluation.metrics["cost"]
    assert ("Verdict" in result.output) == (used is not None)
    assert ("give --codebook-size" in result.output) == (used is None)
    assert ("bits_per_second_log2_codes" in cost) == (used is not None)
    if used is None:
        assert "used_codes_percent" not in cost
    else:
        assert cost["used_codes_percent"].value == pytest.approx(used)
        collapsed = "the codebook has collapsed" in result.output
        assert collapsed == (used < 15)


def test_without_speakers_there_is_no_abx(write, tmp_path):
    """Rather than that of everybody as one."""
    entries = {"u": {"wav": "u.wav", "phones": spans("abab", 50)}}
    (tmp_path / "test.json").write_text(json.dumps(entries))
    path = write(GOOD | {"tokens": [0, 1, 0, 1]})
    evaluation = evaluate(path, tmp_path / "test.json", replicates=0)
    assert "abx" not in evaluation.metrics
    notes = "\n".join(evaluation.left_out)
    assert "ABX items of 1 of 1 utterances with phones" in notes
    # Once, not for each condition.
    assert notes.count("there are no items") == 1
    assert not [name for name in evaluation.settings if "abx" in name]


def test_each_condition_that_is_missing_is_reported(write, tmp_path):
    names = "abcabcacb"
    phones = {"phones": spans(names, 50), "spk_id": 3}
    entries = {"u": {"wav": "u.wav", **phones}}
    (tmp_path / "test.json").write_text(json.dumps(entries))
    path = write(GOOD | {"tokens": [ord(name) for name in names]})
    evaluation = evaluate(path, tmp_path / "test.json", replicates=0)
    (name,) = evaluation.metrics["abx"]
    assert name == "abx_within_speaker_any_context_units"
    notes = "\n".join(evaluation.left_out)
    assert "ABX across speaker any context: no two items" in notes
    assert "ABX within speaker same context: no two items" in notes
    assert "ABX within speaker any context" not in notes
    settings = evaluation.settings
    assert settings["abx_items"] == settings["abx_items_of"]
    assert "phones" in settings["abx_items_from"]["any"]
