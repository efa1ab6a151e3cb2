"""A token in the environment comes out nowhere: not printed, not written, not in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_hf.core.redaction import redact

CANARY = "hf_CanaryCanaryCanaryCanary0123456789"
PLAIN = "canary-of-a-plain-kind-77"
PASSWORD = "canary%20password-55"
SECRETS = {
    "HF_TOKEN": CANARY,
    "WANDB_API_KEY": PLAIN,
    "PIP_INDEX_URL": f"http://user:{PASSWORD}@127.0.0.1:9/simple",
    "PIP_RETRIES": "0",
}


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "my_token", "X_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "SECRET"]
)
def test_values_are_known_by_the_name_of_their_variable(monkeypatch, name):
    monkeypatch.setenv(name, "Tr0ub4dor&3")
    assert redact("before Tr0ub4dor&3, after") == "before ***, after"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "TOKENS", "SECRETARY", "PASSWORDLESS_LOGIN"])
def test_other_variables_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "innocent value")
    assert redact("an innocent value") == "an innocent value"


def test_short_values_are_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "1")
    assert redact("step 1 of 11") == "step 1 of 11"


def test_what_looks_like_a_secret_is_one():
    assert redact("https://me:pa55@host/x?y") == "https://***@host/x?y"
    assert redact(f"token {CANARY}!") == "token ***!"


def test_the_token_of_the_login_is_known(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("a-stored-token-of-old\n")
    assert redact("it is a-stored-token-of-old") == "it is ***"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CRASH = f"""
import sys
import sft_hf.jobs.inputs
def broken(*arguments, **options):
    try:
        raise KeyError("{CANARY} {PLAIN}")
    except KeyError as error:
        raise RuntimeError("the request with {CANARY} at http://user:{PASSWORD}@host failed") from error
sft_hf.jobs.inputs.load_splits = broken
from sft_hf.cli import main
main(sys.argv[1:])
"""
UNCAUGHT = f"""
import threading
from sft_hf.cli import main
try:
    main(["recipes"])
except SystemExit:
    pass
def fail():
    raise RuntimeError("{PLAIN}")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise RuntimeError("{CANARY}")
"""


def test_no_canary_in_any_output_or_file(commands, recipe_file, tmp_path):
    def run(*arguments):
        return commands.python(*arguments, cwd=tmp_path, **SECRETS, XDG_CACHE_HOME=str(tmp_path / "cache"))

    (tmp_path / "crash.py").write_text(CRASH)
    (tmp_path / "uncaught.py").write_text(UNCAUGHT)
    written = everything(tmp_path)
    sft_hf = ["-m", "sft_hf"]
    outcomes = {
        "success": (run(*sft_hf, "finetune", recipe_file, "train.max_steps=2"), 0),
        "mistake": (run(*sft_hf, "finetune", recipe_file, f"model.name={PLAIN}"), 2),
        "in the recipe": (run(*sft_hf, "show", recipe_file, f"model.revision={CANARY}"), 2),
        "override": (run(*sft_hf, "show", recipe_file, f"modle.name={CANARY}"), 2),
        "download": (
            run(*sft_hf, "finetune", recipe_file, "model={name: 'pypi://x==1/y', sha256: " + "0" * 64 + "}"),
            2,
        ),
        "bug": (run(tmp_path / "crash.py", "finetune", recipe_file, "--output-dir", "crashed"), 1),
        "uncaught": (run(tmp_path / "uncaught.py"), 1),
    }
    for name, (done, code) in outcomes.items():
        assert done.returncode == code, (name, done.stderr)
        for secret in (CANARY, PLAIN, PASSWORD, PASSWORD.replace("%20", " ")):
            assert secret not in done.stdout + done.stderr, (name, done.stderr)
    assert "Traceback" in outcomes["bug"][0].stderr and "the request with ***" in outcomes["bug"][0].stderr
    assert outcomes["uncaught"][0].stderr.count("RuntimeError: ***") == 2
    assert "model.revision: holds a token" in outcomes["in the recipe"][0].stderr
    files = everything(tmp_path)
    assert (tmp_path / "runs" / Path(recipe_file).stem / "metrics.json") in files
    for path, content in files.items():
        if path not in written:
            for secret in (CANARY, PLAIN, PASSWORD):
                assert secret.encode() not in content, path
