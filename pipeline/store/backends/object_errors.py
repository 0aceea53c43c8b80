"""What an object store answers, as an error for a person: one line of OSError's family.

obstore's messages are many lines long, with the answer's XML and a dump of the request in them.
"""

import re

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from pipeline.messages.secrets import without_credentials

# What obstore raises: its own family, and FileNotFoundError.
OBJECT_STORE_ERRORS = (BaseError, OSError)
# Of these, what another try may mend.
TRANSIENT = (TimeoutError, ConnectionError)
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
# Where machines of a cloud get credentials; the last that is tried.
METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal")
SKEWED = "RequestTimeTooSkewed|RequestExpired|Request date header too old"  # signatures hold the time
NEEDED = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)"
CHECK_ACCESS = "check the credentials in the environment, and what they may do there"


def is_without_credentials(error: Exception) -> bool:
    """Whether a request failed since nothing has credentials, where a cloud's machines would give them."""
    return any(host in str(error) for host in METADATA_HOSTS)


def as_os_error(error: Exception, url: str, key: str) -> OSError:
    """The failure of a request, naming the backend and the key.

    Returns:
        FileNotFoundError: nothing is at the key.
        FileExistsError: a conditional write met something else there.
        PermissionError: the credentials do not allow it.
        TimeoutError, ConnectionError: no answer, or one that says "later".
        OSError: everything else, a missing bucket among it.
    """
    text = without_credentials(str(error))
    where = f"{url}/{key}" if key else url
    found = re.search(r"status code: (\d+)", text)
    status = int(found[1]) if found else 0
    if any(sign in text for sign in NO_BUCKET):
        return OSError(
            f"{where}: the bucket does not exist at this endpoint; make it, or check the URL and the endpoint"
        )
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{where}: nothing is there")
    if isinstance(error, AlreadyExistsError | PreconditionError) or status in (409, 412):
        return FileExistsError(f"{where}: someone else has written it")
    if is_without_credentials(error):
        return PermissionError(f"{where}: no credentials in the environment, and this machine has none; set {NEEDED}")
    if re.search(SKEWED, text):
        return PermissionError(
            f"{where}: refused, as this machine's clock is off ({_reason(text)}); set its clock right"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        return PermissionError(f"{where}: access denied ({_reason(text)}); {CHECK_ACCESS}")
    if status in (408, 429) or status >= 500:
        return ConnectionError(f"{where}: the store cannot serve it now ({_reason(text)})")
    if status == 0 and re.search(r"kind: Timeout|TimedOut", text):
        return TimeoutError(f"{where}: no answer in time ({_reason(text)})")
    if status == 0 and re.search(r"error sending request|connection|HTTP error", text, re.IGNORECASE):
        return ConnectionError(f"{where}: the store cannot be reached ({_reason(text)})")
    return OSError(f"{where}: {_reason(text)}")


def _reason(text: str) -> str:
    """The first line of a message; of an answer in XML its code and message."""
    code, message = (re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("Code", "Message"))
    if code and message:
        status = re.search(r"status code: (\d+)", text)
        return " ".join(f"{status[1] if status else ''} {code[1]}: {message[1]}".split())
    first = text.partition("\n")[0].strip()
    return re.sub(r"^Generic \w+ error: |, max_retries: .*?(?= - )", "", first)[:400]
