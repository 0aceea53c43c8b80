"""Credentials are refused where they are given and never repeated; texts of errors are without them."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.cli.main import dispatch
from pipeline.config.compose import compose_config
from pipeline.config.validate import from_mapping
from pipeline.messages.errors import UserError
from pipeline.messages.progress import LOG
from pipeline.messages.secrets import credential_in, names_credential, one_line, without_credentials
from pipeline.messages.visible import visible_streams
from pipeline.store.backends.object_store import Timeouts, make_store
from pipeline.store.backends.registry import open_backend
from pipeline.store.event_log import event_log
from tests.pipeline.conftest import Inputs

WEB = "https:" + "//"
SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzzz"
PASSWORD = "hunter2hunter2"
KEY = "AKIA" + "IOSFODNN7EXAMPLE"
URLS = {
    f"s3://{KEY}:{PASSWORD}@bucket/x": "the user or the password",
    f"s3://user:{SECRET}@bucket/x": "the user or the password",  # with a slash in it
    f"S3://user:{PASSWORD}@bucket": "the user or the password",
    f"s3://{PASSWORD}@bucket": "the user or the password",
    f"s3://user%3A{PASSWORD}%40bucket/x": "the user or the password",
    f"s3://user%253A{PASSWORD}%2540bucket/x": "the user or the password",
    f"s3://user:{PASSWORD}\uff20bucket/x": "the user or the password",
    f"s3\uff1a//user:{PASSWORD}@bucket/x": "the user or the password",
    f"s3:/user:{PASSWORD}@bucket/x": "the user or the password",
    f"s3:\\\\user:{PASSWORD}@bucket/x": "the user or the password",
    f"{WEB}:{PASSWORD}@localhost/a.fa": "the user or the password",
    f"{WEB}user:{PASSWORD}@[::1]:9000/": "the user or the password",
    f"abfss://user:{PASSWORD}@account.dfs/x": "the user or the password",
    f"s3:user:{PASSWORD}@bucket/x": "the user or the password",
    f"s3//user:{PASSWORD}@bucket/x": "the user or the password",
    f"user:{PASSWORD}@bucket/x": "the user or the password",
    f"s3://user:{PASSWORD}": "the user or the password",
    f"s3://user:{PASSWORD}/x": "the user or the password",
    f"ftp:user:{PASSWORD}@host/x": "the user or the password",
    f"https://localhost/a.fa?X-Amz-Algorithm=A&X-Amz-Signature={PASSWORD}": "a signed URL",
    f"https://localhost/a.fa?x%2Damz%2Dsecurity%2Dtoken={PASSWORD}": "a signed URL",
    f"az://c/x?sv=2022&SIG={PASSWORD}": "a signed URL",
    f"gs://b/x?X-Goog-Credential={PASSWORD}": "a signed URL",
    f"https://localhost/m.pt?download=1&access_token={PASSWORD}": "a signed URL",
    f"{KEY}": "a key",
    f"hf_{PASSWORD * 3}": "a key",
    f"-----BEGIN RSA PRIVATE KEY-----{PASSWORD}": "a key",
}
HONEST = [
    "s3://bucket/prefix/a@b",
    "http://127.0.0.1:9000",
    f"{WEB}minio:9000/bucket@v2",
    "abfss://container@account.dfs.core.windows.net/prefix",
    "file:///a@b",
    "/data/a@b:c/x?y=1",
    "C:/a@b",
    "https://localhost/a.fa?download=1&version=2",
    "model.init.token_dim=64",
    "model.init={n_tokens:8,private:true}",
    "chr1:100-200@peak",
    "chr1:1,000-2,000(-)",
    "model.init={author:me@home,x:y}",
    "model.init={a:{b:c}}",
    f"store.options={{endpoint:{WEB}a-token:9000,region:eu}}",
    f"{WEB}[::1]:9000/x",
    "s3://bucket:443/x",
    "dataset.columns.name=a:b",
    "~/tokens/x.fa",
    f"store.options.endpoint={WEB}my-token-host:9000",
    f"store.options={{endpoint:'{WEB}token:9000',region:eu}}",
    "references.n_shuffles=20",
    "ACGT" * 20,
]


@pytest.mark.parametrize("text", URLS)
def test_what_is_recognised(text: str) -> None:
    assert URLS[text] in str(credential_in(text))


@pytest.mark.parametrize("text", HONEST)
def test_what_is_none(text: str) -> None:
    assert credential_in(text) is None
    assert without_credentials(text) == text


LINES = [
    *([*command, f"{before}{url}"] for url in URLS for command, before in [(["status"], ""), (["run"], "store.path=")]),
    *(
        ["plan", f"{key}={next(iter(URLS))}"]
        for key in ("dataset.path", "dataset.genome", "model.checkpoint", "typo.path")
    ),
    ["plan", f"model.init={{a: [{{b: '{next(iter(URLS))}'}}]}}"],
    ["run", f"store.options.endpoint={WEB}u:{PASSWORD}@localhost:9000"],
    ["run", "--config-from", next(iter(URLS))],
    ["run", "--config-dir", next(iter(URLS))],
    ["report", "a", "--link", next(iter(URLS))],
    ["export", "tsv", "a", next(iter(URLS))],
    [f"{WEB}u:{PASSWORD}@localhost/"],
    *(
        ["run", text.replace("VALUE", PASSWORD)]
        for text in [
            "store.options.secret_access_key=VALUE",
            "store.options.'aws-secret'=VALUE",
            "++store.options.SECRET_ACCESS_KEY=VALUE",
            "store.options.aws_session_token=VALUE",
            "store.options.sse_customer_key_base64=VALUE",
            "store.options.sas%5Ftoken=VALUE",
            "store.options.secret_access_key=VALUE{",  # no setting at all
            "store.options.secret_access_key=[VALUE,{a:VALUE}]",
            "store.options={secret_access_key:VALUE}",
            "store.options={region:eu,'session_token':VALUE",
            "store.option.secret_acess_key=VALUE",
            "store.optoins.secret_access_key=VALUE",
            "sotre.options.access_key_id='VALUE",
            "AWS_SECRET_ACCESS_KEY=VALUE",
            "+password=VALUE",
            "store.options=VALUE",
            "store.options.account_key: VALUE",
        ]
    ),
    ["status", "s3://b/x", "--option", f"secret_access_key={PASSWORD}"],
    ["status", "s3://b/x", f"--option=session_token={PASSWORD}"],
    ["status", "s3://b/x", "--option", PASSWORD],
    ["verify", "s3://b/x", "--option", f"endpoint={WEB}u:{PASSWORD}@localhost"],
    ["status", "s3://b/x", "--optoin", f"secret_access_key={PASSWORD}"],
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_no_command_repeats_one(number: int, capfd: pytest.CaptureFixture[str], in_folder: Path) -> None:
    assert dispatch([*LINES[number], "--json"]) == 2
    told = capfd.readouterr()
    for part in (PASSWORD, SECRET, KEY, "wJalr", "bPxRf"):
        assert part not in told.out + told.err
    assert told.err.startswith("dlshap: error: ")
    assert told.err.count("\n") == 1
    assert list(in_folder.iterdir()) == []


def test_the_refusal_says_where_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["run", f"dataset.path={WEB}u:{PASSWORD}@localhost/x.fa"]) == 2
    told = capfd.readouterr().err
    assert "dataset.path holds the user or the password of a URL, which is not repeated here" in told
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert dispatch(["status", f"s3://u:{PASSWORD}@b"]) == 2
    assert "argument 2 holds the user or the password of a URL" in capfd.readouterr().err


@pytest.mark.parametrize("url", list(URLS)[:14])
def test_no_call_repeats_one(url: str) -> None:
    nested = {"model": {"name": "module", "init": {"a": [{"b": url}]}}}
    calls = [
        lambda: compose_config([f"store.path='{url}'"]),
        lambda: from_mapping({"store": {"path": url}}),
        lambda: from_mapping({"dataset": {"name": "fasta", "loci": url}}),  # a setting of another choice
        lambda: from_mapping(nested),
        lambda: from_mapping({"cluster": {"name": "address", "address": url}}),
        lambda: pipeline.open_store(url),
        lambda: open_backend(url),
    ]
    for call in calls:
        with pytest.raises(UserError) as error:
            call()
        assert PASSWORD not in str(error.value)
        assert "bPxRf" not in str(error.value)


def test_mappings_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"session_token": PASSWORD}, {"SECRET_ACCESS_KEY": {"a": PASSWORD}}, {"key": PASSWORD}):
        with pytest.raises(UserError, match=r"store\.options\.\w+ looks like a credential") as error:
            from_mapping({"store": {"path": "s3://b/x", "options": options}})
        assert PASSWORD not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{WEB}u:{PASSWORD}@localhost:9000")
    with pytest.raises(UserError, match="the environment variable AWS_ENDPOINT_URL holds the user") as error:
        make_store("s3://b/x", {}, Timeouts())
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["aws_secret_access_key", "TOKEN", "sse_customer_key_base64", "key", "bearer_token", "sas%5fkey", "\uff53ecret"],
)
def test_names_of_options(name: str) -> None:
    assert names_credential(name)
    assert not any(
        map(names_credential, ["region", "endpoint", "bucket", "sse_kms_key_id", "virtual_hosted_style_request"])
    )


TEXTS = {
    f"GET {WEB}u:{PASSWORD}@localhost/x failed": f"GET {WEB}***@localhost/x failed",
    f"s3://u:{SECRET}@b/x: gone": "s3://***@b/x: gone",
    f"(https://localhost/x?X-Amz-Signature={PASSWORD}&a=1): 403": "(https://localhost/x?X-Amz-Signature=***&a=1): 403",
    f'headers: {{"authorization": "AWS4-HMAC-SHA256 Credential={KEY}/x, Signature={PASSWORD}", "host": "b"}}': (
        'headers: {"authorization": "***", "host": "b"}'
    ),
    f"x-amz-security-token: {PASSWORD}, host: b": "x-amz-security-token: ***, host: b",
    f"secret_access_key={PASSWORD} region=eu": "secret_access_key=*** region=eu",
    f'"aws_secret_access_key": "{SECRET}9", "a": 1': '"aws_secret_access_key": "***", "a": 1',
    f"the key {KEY} does not exist": "the key *** does not exist",
    f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId>": "<AWSAccessKeyId>***</AWSAccessKeyId>",
    f"-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n-----END PRIVATE KEY----- x": "*** x",
    "size mismatch for cls_token: copying a param with shape torch.Size([1])": (
        "size mismatch for cls_token: copying a param with shape torch.Size([1])"
    ),
    "model.init.token=64; expected 32": "model.init.token=64; expected 32",
    "tokens: 12 of 30": "tokens: 12 of 30",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_without_them(text: str) -> None:
    assert without_credentials(text) == TEXTS[text]


def test_what_the_environment_holds_is_in_no_text(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Whatever an error of a library says: on the terminal, in records, in the log beside the store."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("RAY_AUTH_TOKEN", PASSWORD)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/a/file")
    error = OSError(f"signed with\n{SECRET} and {PASSWORD} of /var/run/a/file")
    assert one_line(error) == "signed with *** and *** of /var/run/a/file"
    LOG.warning("%s", error)
    assert caplog.messages[-1] == r"signed with\n*** and *** of /var/run/a/file"
    with visible_streams():
        sys.stderr.write(f"Traceback: {SECRET}\n")
    assert capfd.readouterr().err.endswith("Traceback: ***\n")
    backend = open_backend(tmp_path / "a.zarr.run")
    with pytest.raises(OSError), event_log(backend, store="x"):
        raise error
    (log,) = (tmp_path / "a.zarr.run" / "logs").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["error"] == "signed with *** and *** of /var/run/a/file"


@pytest.mark.parametrize(
    "part", ["A", "ab://", "a://b:c", "token:", "&a", "x=y:z", "=a:b", "%25", "-----BEGIN PRIVATE KEY-----"]
)
def test_long_texts_take_no_time(part: str) -> None:
    text, started = part * (300_000 // len(part)), time.process_time()
    without_credentials(text)
    credential_in(text)
    assert time.process_time() - started < 5


def test_a_store_holds_none(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ACCESS_KEY_ID": KEY, "RAY_AUTH_TOKEN": PASSWORD}
    for name, value in held.items():
        monkeypatch.setenv(name, value)
    pipeline.run(inputs.overrides(tmp_path / "a.zarr"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".jsonl"}
    assert [path for path in files for value in held.values() if value.encode() in path.read_bytes()] == []


def test_a_logger_of_ones_own_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("other").warning("token=%s", PASSWORD)
    assert caplog.messages == [f"token={PASSWORD}"]
