"""Credentials: refused where they are given, without being repeated, and taken out of the texts of errors and messages.

Everyone on a machine sees its command lines, and whoever gets a store its configuration. Credentials belong into the
environment or the provider's own files.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from pipeline.messages.errors import UserError

GONE = "***"
SHORTEST = 8  # characters of a value of the environment that is looked for in texts
_WAY_OUT = (
    "leave it out, and set the environment variables of your provider (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY) on every machine"
)
_STRICT = (  # in any name
    r"secret|passw(?:or)?d|access_?key|account_?key|api_?key|master_?key|customer_?key|sas_?key|"
    r"(?:session|security|sas|bearer|auth|access)_?token"
)
_WIDE = rf"{_STRICT}|token|credential|sas|bearer|signature|private|service_?account"  # in that of a store's option
_OPTION = re.compile(rf"{_WIDE}|^key$", re.IGNORECASE)
_ARGUMENT = re.compile(  # the words of a command line, before their values
    rf"[\w.+~\"'-]*(?:{_STRICT})[\w\"'-]*\s*[=:]|"
    rf"[+~]*store\.opt\w*(?:\.[\w.-]*|=\{{(?:.*[{{,\s\"'])?[\w-]*)(?:{_WIDE})[\w-]*[\"']?\s*[=:]",
    re.IGNORECASE,
)
# Every repetition has a limit: texts may be millions of characters long, and a search must not be quadratic in that.
_NO_PORT = r"(?!\d{0,9}(?:[/\\?#\s,;}\])\"']|$))"
_USER = re.compile(
    r"(?P<name>(?P<scheme>[a-z][a-z0-9+.-]{1,20}):[/\\]{1,3})"
    rf"(?P<user>[^\s/\\?#@\"'<>]{{0,1000}}@|[^\s/\\?#@:\"'<>]{{0,200}}:{_NO_PORT}[^\s@\"'<>]{{0,1000}}@)",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(  # user:password without what a URL needs around it: a scheme, slashes, or @
    rf"(?:^|[=/\\:\"'\s])[^\s/\\?#@:=\"'<>{{}},\[\]]{{1,200}}:(?![\d,-]{{1,99}}@)[^\s/\\@:\"'<>]{{1,1000}}@|"
    rf"[a-z][a-z0-9+.-]{{1,20}}:[/\\]{{2}}[^\s/\\?#@:\"'<>\[]{{1,200}}:{_NO_PORT}",
    re.IGNORECASE,
)
_SIGNED = re.compile(
    r"(?P<name>[?&;](?:x-(?:amz|goog|ms)-[\w-]{1,40}|sig|awsaccesskeyid|googleaccessid|key-pair-id|policy|"
    rf"[\w-]{{0,40}}(?:{_WIDE})[\w-]{{0,40}})=)[^&;\s\"'<>]*",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:A(?:KIA|SIA)[A-Z0-9]{16}|gh[opsu]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,})(?![A-Za-z0-9])|"
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*-----|.*)",
    re.DOTALL,
)
_HEADER = re.compile(r"(?P<name>authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\n]+", re.IGNORECASE)
_ASSIGNED = re.compile(  # `token = ab12cd34`, `x-amz-security-token: ab12cd34`, `"secret_access_key": "ab12cd34"`
    rf"(?P<name>(?:{_STRICT}|token|credentials?|signature)(?:_?(?:id|base64))?[\"']?\s*(?:=|(?P<colon>:))\s*[\"']?)"
    r"(?!\d+(?:\.\d+)?\b)(?(colon)(?=[^\s\"']{0,200}\d)[^\s\"',;&}\])<>]{6,}|[^\s\"',;&}\])<>]{8,})",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(rf"(?:{_STRICT}|token)(?!.*(?:file|path|uri|url|dir)$)", re.IGNORECASE)


# --- refusing -------------------------------------------------------------------------------------------------------


def credential_in(text: str) -> str | None:
    """What a text holds that looks like a credential, in words, however it is encoded; None where nothing does."""
    for form in _forms(text):
        if any(map(_is_user, _USER.finditer(form))) or _UNFINISHED.search(form):
            return "the user or the password of a URL"
        if _SIGNED.search(form):
            return "a signed URL"
        if _KEY.search(form):
            return "a key"
    return None


def _forms(text: str) -> Iterator[str]:
    """The text as it is, and decoded as often as it can be."""
    for _ in range(4):
        yield text
        decoded = unquote(unicodedata.normalize("NFKC", text))
        if decoded == text:
            return
        text = decoded


def _is_user(found: re.Match[str]) -> bool:
    """Not the container of abfs://container@account, nor a file that is called a@b."""
    scheme = found["scheme"].lower()
    return scheme != "file" and (":" in found["user"] or scheme not in ("abfs", "abfss"))


def names_credential(option: str) -> bool:
    """Whether an option of a store that is called so holds a credential."""
    return any(_OPTION.search(form) for form in _forms(option))


def refuse_options(names: Iterable[str], where: str) -> None:
    """Raises UserError for the first of the names of a store's options that holds a credential."""
    for name in names:
        if names_credential(name):
            raise _refusal(f"{where}{name} looks like a credential")


def refuse_values(values: Any, key: str) -> None:
    """Raises UserError for a credential in a text or in what mappings and lists hold; `key` is told in its place."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            refuse_values(str(name), f"a name in {key or 'the configuration'}")
            refuse_values(value, f"{key}.{name}".lstrip("."))
    elif isinstance(values, list | tuple):
        for value in values:
            refuse_values(value, key)
    elif isinstance(values, str | os.PathLike) and (kind := credential_in(os.fspath(values))) is not None:
        raise _refusal(f"{key} holds {kind}")


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Raises UserError for a credential among the words of a command line, before anything repeats them."""
    for number, argument in enumerate(arguments, start=1):
        word = argument.removeprefix("--option=")
        name, sign, _ = word.partition("=")
        told = name if sign and re.fullmatch(r"[\w.+~-]{1,80}", name) else f"argument {number}"
        if any(map(_ARGUMENT.match, _forms(word))):
            raise _refusal(f"{told} looks like a credential")
        refuse_values(word, told if credential_in(told) is None else f"argument {number}")


def _refusal(what: str) -> UserError:
    return UserError(
        f"{what}, which is not repeated here: it would be written into the store, and be seen in lists of processes; "
        f"{_WAY_OUT}"
    )


# --- taking out -----------------------------------------------------------------------------------------------------


def without_credentials(text: str) -> str:
    """A text in which *** stands for what looks like a credential, and for those of this process's environment."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and value in text and _ENVIRONMENT.search(name):
            text = text.replace(value, GONE)
    text = _USER.sub(lambda found: f"{found['name']}{GONE}@" if _is_user(found) else found[0], text)
    for pattern in (_SIGNED, _HEADER, _ASSIGNED):
        text = pattern.sub(rf"\g<name>{GONE}", text)
    return _KEY.sub(GONE, text)


def one_line(error: BaseException) -> str:
    """What an error says, in a line and without credentials."""
    return without_credentials(" ".join(str(error).split()))
