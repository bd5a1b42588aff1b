"""Bad input, all of it: one clear line that says what to do, exit code 2, nothing half-written."""

import json

import pytest

from zorn.cli import main

TINY = ["--batch", "4", "--hidden-size", "4", "--steps", "1"]
COPY = [*TINY, "--task", "copy", "--minimum-length", "1", "--maximum-length", "2"]
CD_RGE = [*COPY, "--estimator", "cd-rge", "--population", "4"]

BAD_COPY = [
    ("--frobnicate", "unknown flag --frobnicate: see zorn train --help"),
    ("--hiden-size 8", "unknown flag --hiden-size (did you mean --hidden-size?)"),
    ("-x", "unknown flag -x: see zorn train --help"),
    ("frobnicate", "unexpected word 'frobnicate'"),
    (
        "--task chess",
        "task must be one of text, copy, reverse, sort, repeat-copy, add, or path/to/file.py:Na",
    ),
    ("--task coppy", "got 'coppy': did you mean copy?"),
    ("--cell rnn", "cell must be one of lstm, gru, min-gru, dnc"),
    (
        "--estimator es",
        "estimator must be one of activity, bridge, cd-rge, fd-rge, spsa-1.5, pes, nres, bptt",
    ),
    ("--estimator {tmp}/absent.py:Mine", "there is no file "),
    ("--optimizer lion", "optimizer must be one of adam, adamw, sgd, fused-sgd"),
    ("--objective bleu", "objective must be one of cross-entropy"),
    ("--hidden-size", "--hidden-size needs a value, a whole number"),
    ("--hidden-size --seed 1", "--hidden-size needs a value, a whole number"),
    ("--hidden-size many", "--hidden-size must be a whole number, got 'many'"),
    ("--hidden-size 1.5", "--hidden-size must be a whole number, got '1.5'"),
    ("--hidden-size 0", "hidden_size must be a whole number of at least 1, got 0"),
    (
        "--hidden-size 100000000000000000000",
        "hidden_size must be a whole number of at least 1 and at most 2147483647, got 1000",
    ),
    ("--hidden-size 1000000000", "zorn plan with these settings and --fit 8GiB"),
    ("--hidden-size 10 --num-heads 4", "hidden_size 10 is not a multiple of num_heads 4"),
    ("--num-heads -1", "num_heads must be a whole number of at least 1, got -1"),
    ("--parameters 3", "parameters is 3, but the smallest such model"),
    ("--embedding-size 3 --tie-embedding", "embedding_size 3 differs from hidden_size 4"),
    (
        "--memory-slots 8",
        "--memory-slots is no setting of model lstm, but of dnc: leave it out, or take --cell d",
    ),
    ("--cell min-gru --num-heads 2", "num_heads"),
    ("--maximum-repeats 4", "--maximum-repeats is no setting of task copy, but of repeat-copy"),
    ("--stream 4", "--stream is no setting of task copy, but of text"),
    ("--batch 0", "batch must be a whole number of at least 1, got 0"),
    ("--batch 2147483648", "batch must be a whole number of at least 1 and at most 2147483647"),
    ("--maximum-length 0", "maximum_length must be a whole number of at least 1, got 0"),
    ("--learning-rate 0", "learning_rate must be a number above 0 and at most 1e+30, got 0.0"),
    ("--learning-rate 1e300", "learning_rate must be a number above 0 and at most 1e+30"),
    ("--momentum 0.9", "auto, which is adam here and has no momentum: take --optimizer sgd"),
    ("--optimizer fused-sgd --clip-norm 1", "clip_norm must be None with fused-sgd"),
    ("--dtype bfloat16 --optimizer adam", "dtype must be float32 with adam"),
    ("--dtype float16", "--dtype must be one of float32, bfloat16"),
    ("--tie-epsilon --epsilon-schedule cosine", "epsilon_schedule must be constant with --tie-epsilon"),
    ("--tie-epsilon yes", "unexpected word 'yes'"),
    ("--tie-epsilon=yes", "--tie-epsilon takes no value, got 'yes'"),
    ("--steps 0", "steps must be a whole number of at least 1, got 0"),
    ("--steps ten", "--steps must be a whole number or None, got 'ten'"),
    ("--seconds 5", "the budget must be steps or seconds, exactly one of them"),
    ("--seed -1", "seed must be a whole number of at least 0 and at most 18446744073709551615, got -1"),
    (
        "--seed 99999999999999999999999",
        "seed must be a whole number of at least 0 and at most 18446744073709",
    ),
    ("--threads 0", "threads must be a whole number of at least 1"),
    ("--threads 100000", "threads must be at most"),
    ("--device abacus", "device abacus cannot be used here"),
    ("--device meta", "device meta cannot be used here"),
    ("--keep 0", "keep must be a whole number of at least 1"),
    ("--estimator tbptt", "estimator tbptt needs truncation: for example --truncation 8"),
    (
        "--estimator bptt --objective token-error",
        "estimator bptt needs an objective that torch can differenti",
    ),
    (
        "--estimator bptt --population 4",
        "--population is no setting of estimator bptt, but of cd-rge, fd-rge",
    ),
    ("--estimator bptt --tie-epsilon", "tie_epsilon must be False with estimator bptt, which has no epsilon"),
    ("--estimator activity --shaping sign", "--shaping is no setting of estimator activity, but of cd-rge"),
    ("--estimator nres", "estimator nres needs windows of a stream (--stream), got no stream"),
    (
        "--population 4 --discount 0.5",
        "none of activity, cd-rge, spsa-1.5, nres has all that is given (--disc",
    ),
    (
        "--truncation 4",
        "none of activity, cd-rge, spsa-1.5, nres has all that is given (--truncation is of brid",
    ),
    ("--preset speedstart", "preset must be one of quickstart, quickstart-bptt, copy, copy-adamw,"),
    ("--preset", "--preset needs a value"),
    ("--config {tmp}/absent.json", "absent.json cannot be read (No such file or directory): name a"),
    ("--config {tmp}/short.txt", "short.txt is not valid JSON"),
    ("--config {tmp}/short.txt --preset copy", "--preset and --config both name the settings to start from"),
    ("--out=", "--out must be a path, got an empty text: for example --out runs/mine"),
    ("--out {tmp}/empty.txt", "empty.txt is a file: choose another --out"),
    ("--out {tmp}/empty.txt/run", "empty.txt is a file: choose another --out"),
    ("--out /proc/zorn/run", "cannot write to /proc"),
    ("--out {tmp}/taken", "is not empty: choose another --out"),
    ("--out {tmp}/taken --overwrite", "holds other files than a run's: choose another --out"),
]

BAD_CD_RGE = [
    ("--population 0", "population must be a whole number of at least 1, got 0"),
    (
        "--population 6",
        "population must be a multiple of 4 for a batch of 4 sequences in groups of 1, so that all",
    ),
    ("--final-population 6", "final_population must be a multiple of 4"),
    ("--group-size 3", "group_size must be a divisor of the batch, 4 sequences"),
    ("--epsilon 0", "epsilon must be a number above 0, got 0.0: 0.001 to 0.1 suits most models"),
    ("--epsilon -0.1", "epsilon must be a number above 0, got -0.1"),
    ("--epsilon=nan", "epsilon must be a number above 0, got nan"),
    ("--epsilon inf", "epsilon must be a number above 0, got inf"),
    ("--epsilon small", "--epsilon must be a number, got 'small'"),
    ("--perturbation sparse", "--perturbation must be one of rank-one, dense, got 'sparse'"),
    ("--curvature-power 1", "--curvature-power is no setting of estimator cd-rge, but of spsa-1.5"),
    ("--epsilon", "--epsilon needs a value, a number"),
    ("--group-size yes", "--group-size must be a whole number or None, got 'yes'"),
    ("--optimizer adam --momentum 0.9", "--momentum is no setting of optimizer adam, but of sgd"),
]

BAD_TEXT = [
    ("--source {tmp}/absent.txt", "absent.txt' does not exist; give the path of a text file"),
    ("--source {tmp}/empty.txt", "empty.txt' is empty; give the path of a text file"),
    ("--source {tmp}/short.txt", "short.txt' is too short"),
    ("--source {tmp}", "is a folder, not a file"),
    ("--source=", "is a folder, not a file; give the path of a text file"),
    ("--stream 4 --overfit", "stream must be None with overfit, got 4"),
    ("--stream 4 --estimator cd-rge", "stream must be None with estimator cd-rge, which carries no state"),
    ("--tokenizer words", "--tokenizer must be one of bytes, alphabet, bpe"),
    (
        "--tokenizer bpe --vocabulary-size 256",
        "vocabulary_size must be a whole number of at least 257, got 256",
    ),
    ("--maximum-length 3", "--maximum-length is no setting of task text, but of copy, reverse, sort"),
]

BAD_TRAINING = [
    *((COPY, *each) for each in BAD_COPY),
    *((CD_RGE, *each) for each in BAD_CD_RGE),
    *((TINY, *each) for each in BAD_TEXT),
]

BAD_COMMANDS = [
    ("trian", "unknown command 'trian': did you mean train?"),
    (
        "--out runs/a",
        "unknown command '--out': did you mean one of train, evaluate, generate, inspect, ",
    ),
    ("evaluate", "the run's folder is missing: see zorn evaluate --help"),
    ("evaluate {tmp}/absent", "absent is not the folder of a run: it has no config.json"),
    ("evaluate {tmp}/taken", "taken is not the folder of a run"),
    ("evaluate {run} {run}", "unexpected word"),
    (
        "evaluate {run} --split tset",
        "--split must be one of train, validation, test, validation-longer, test-longer, got",
    ),
    ("evaluate {run} --split tset", "got 'tset': did you mean test?"),
    ("evaluate {run} --smoothed-epsilon 0", "smoothed_epsilon must be a number above 0, got 0.0"),
    (
        "evaluate {run} --smoothed-epsilon 0.1 --members 1",
        "members must be a whole number of at least 2, got 1",
    ),
    ("evaluate {run} --members 8", "--members belongs to --smoothed-epsilon, which is missing"),
    ("evaluate {run} --spilt test", "unknown flag --spilt (did you mean --split?)"),
    ("evaluate {other}", "config.json was changed since the run started: hidden_size is 8, was 4"),
    ("evaluate {damaged}", "model.safetensors is damaged: it has 100 bytes"),
    ("evaluate {hollow}", "no checkpoint in "),
    ("evaluate {garbled}", "config.json is not valid JSON"),
    ("generate", "the run's folder is missing"),
    ("generate {run} --prompt 1234", "the copy task knows the letters a to z"),
    ("generate {run} --prompt abc", "the separator '|', got 'abc': for example --prompt 'abc|'"),
    ("generate {run} --prompt a| --length 0", "length must be a whole number of at least 1, got 0"),
    ("generate {run} --prompt a| --length x", "--length must be a whole number, got 'x'"),
    ("generate {run} --prompt a| --temperature -1", "temperature must be a number of at least 0, got -1.0"),
    ("generate {run} --prompt a| --temperature nan", "temperature must be a number of at least 0, got nan"),
    (
        "generate {run} --prompt a| --seed -1",
        "seed must be a whole number of at least 0 and at most 18446744073709551615, got -1",
    ),
    ("generate {other} --prompt a|", "config.json was changed since the run started: hidden_size"),
    ("inspect {tmp}/absent", "absent is not the folder of a run"),
    ("inspect {run} {run}", "unexpected word"),
    ("inspect {run} --hiden-size 8", "unknown flag --hiden-size (did you mean --hidden-size?)"),
    ("inspect {run} --hidden-size 8 --task sort", "a model of its own: leave out --hidden-size, --task"),
    ("inspect {run} --preset copy", "brings a model of its own: leave out --preset"),
    ("inspect --preset speedstart", "preset must be one of quickstart,"),
    ("inspect --memory-slots 8", "--memory-slots is no setting of model lstm, but of dnc"),
    ("tune --tune-seconds 0", "seconds must be a number above 0, got 0.0"),
    ("tune --tune-secnds 3", "unknown flag --tune-secnds (did you mean --tune-seconds?)"),
    ("tune --out {tmp}", "is a folder: choose another --out"),
    ("plan --fit much", "--fit"),
    ("plan --hiden-size 8", "unknown flag --hiden-size (did you mean --hidden-size?)"),
    ("diagnose --hiden-size 8", "unknown flag --hiden-size (did you mean --hidden-size?)"),
    ("resume", "the run's folder is missing"),
    ("resume {tmp}/absent", "absent is not the folder of a run"),
    ("resume {run}", "is finished after 1 steps"),
    ("resume {run} --steps 0", "steps must be a whole number of at least 1, got 0"),
    ("resume {run} --steps 5 --seconds 5", "exactly one of them"),
    ("resume {run} --seconds never", "--seconds must be a number or None, got 'never'"),
    ("resume {other} --steps 5", "config.json was changed since the run started: hidden_size is 8"),
    ("resume {damaged} --steps 5", "model.safetensors is damaged"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is finished after one step."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *CD_RGE, "--out", str(out)]) == 0
    return out


@pytest.fixture
def places(tmp_path, trained):
    """The folders and files that the tables name."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("mine")
    made = {"tmp": tmp_path}
    for name in ("run", "other", "damaged", "hollow", "garbled"):
        made[name] = tmp_path / f"{name} folder"
        _copy(trained, made[name])
    settings = json.loads((made["other"] / "config.json").read_text())
    settings["resolved"]["model"]["hidden_size"] = 8
    (made["other"] / "config.json").write_text(json.dumps(settings))
    for weights in (made["damaged"] / "checkpoints").glob("*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:100])
    for manifest in (made["hollow"] / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    (made["garbled"] / "config.json").write_text("{")
    return made


def _copy(source, target):
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def assert_refused(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("zorn: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert message in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("start", "words", "message"), BAD_TRAINING, ids=[words for _, words, _ in BAD_TRAINING]
)
def test_bad_training(start, words, message, places, tmp_path, capsys, monkeypatch):
    words = [word.format(**places) for word in words.split()]
    out = [] if "--out" in words else ["--out", str(tmp_path / "new" / "run")]
    assert_refused(["train", *start, *out, *words], message, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(("words", "message"), BAD_COMMANDS, ids=[words for words, _ in BAD_COMMANDS])
def test_bad_commands(words, message, places, tmp_path, capsys, monkeypatch):
    words = [word.format(**places) for word in words.split()]
    assert_refused(words, message, tmp_path, capsys, monkeypatch)
