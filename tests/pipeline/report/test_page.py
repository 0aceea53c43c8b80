"""The report: one page that stands alone, whose numbers are the store's."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import zarr

import pipeline
from pipeline.analysis.kmers import strongest_kmers
from pipeline.cli.main import dispatch
from pipeline.exports.motifs import motif_step
from pipeline.exports.registry import export_steps, exports
from pipeline.messages.visible import is_visible, visible
from pipeline.report.formatting import MINUS, TIMES, number, share, tick
from pipeline.report.measure import RUN_ROWS, sample
from pipeline.report.steps import next_steps
from pipeline.store.backends.registry import open_backend
from tests.pipeline.conftest import Inputs
from tests.pipeline.exports.stores import relabel
from tests.pipeline.object_store import Bucket
from tests.pipeline.report.stores import Synthetic, codes_of, random_codes

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page that has been read: its elements are closed, and what it would fetch, its ids and its values are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.labels: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "srcset", "action")]
        link = given.get("href")
        if link is not None:
            kept = self.targets if link.startswith("#") else self.links if tag == "a" else self.fetched
            kept.append(link)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "data":
            self.values.setdefault(str(given.get("id") or given.get("class")), []).append(str(given["value"]))
        if tag == "svg":
            self.labels.append(given.get("aria-label"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def value(self, name: str, at: int = 0) -> float:
        return float(self.values[name][at])


def page_of(store: Path, tmp_path: Path, *options: str) -> Page:
    out = tmp_path / "page.html"
    assert dispatch(["report", str(store), "-o", str(out), *options]) == 0
    return Page(out.read_text(encoding="utf-8"))


def assert_stands_alone(page: Page, text: str) -> None:
    assert page.open == []
    assert page.fetched == []
    assert page.tags.isdisjoint({"script", "link", "iframe", "img"})
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets} <= set(page.ids)
    assert page.labels
    assert all(page.labels)


@pytest.fixture(scope="module")
def two_targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows on a genome, two targets."""
    codes = random_codes(40, 60)
    loci = [(f"chr{1 + row % 2}", 1000 + 100 * row, "+-"[row % 2]) for row in range(40)]
    store = Synthetic(codes, targets=(3, 11), loci=loci, dataset={"kind": "loci", "loci": "p.bed", "genome": "g.fa"})
    return store.write(tmp_path_factory.mktemp("two") / "two.zarr")


def test_a_page_stands_alone_and_its_numbers_are_the_stores(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = page_of(finished, tmp_path)
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    store = pipeline.open_store(finished)
    prediction, references = np.asarray(store.prediction[:, 0]), np.asarray(store.reference_prediction[:, 0])
    deltas = np.abs(np.asarray(store.convergence_delta[:, 0]))
    assert page.value("n-rows") == len(store)
    assert page.value("length") == store.codes.shape[1]
    assert page.value("n-references") == 3
    assert page.value("mean-prediction") == pytest.approx(prediction.mean(), rel=1e-6)
    assert page.value("mean-reference") == pytest.approx(references.mean(), rel=1e-6)
    assert page.value("n-above") == (prediction > references.mean(axis=1, dtype=np.float64)).sum()
    assert page.value("n-pairs") == deltas.size
    assert page.value("largest") == page.value("largest-delta") == deltas.max()
    attribution = np.asarray(store.attribution[:, 0])
    sums = np.lib.stride_tricks.sliding_window_view(attribution.astype(np.float64), 20, axis=1).sum(axis=-1)
    strongest = np.sort(sums.max(axis=1))[::-1][:8]
    found = [float(value) for value in page.values["site-sum"]]
    np.testing.assert_allclose(found[:8], strongest, rtol=1e-6)
    np.testing.assert_allclose(found[8:], np.sort(sums.min(axis=1))[:4], rtol=1e-6)
    for kmer in strongest_kmers(np.asarray(store.codes[:]), attribution, top=12):
        assert kmer.text in page.text
    worst = store.rows["name"][np.argmax(deltas.max(axis=1))]
    assert f"row largest delta prediction {worst}" in page.text


def test_a_page_says_what_was_run(finished: Path, tmp_path: Path) -> None:
    text = page_of(finished, tmp_path).text
    attrs = pipeline.open_store(finished).attrs
    prints = attrs["fingerprint"]
    for said in [prints["model.weights"], prints["input.sha256"], "dinucleotide shuffle"]:
        assert said in text
    assert "pipeline.models.example.ExampleNet" in text
    assert "seeds of numpy 0 to 2, one for each" in text
    assert f"torch {attrs['versions']['torch']}" in text
    for line in attrs["audit"]["operations"]:
        assert f"{line['operation']} {line['module']} {line['treatment']} {line['count']}" in text
    commands = re.findall(r"dlshap export (\w+)", text)
    assert commands
    assert set(commands) <= set(exports())


def test_a_page_says_what_is_unusual_of_the_model(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "copy.zarr"
    shutil.copytree(finished, store)
    group = zarr.open_group(store, mode="r+")
    unusual = {"with_bias": True, "bias": ["/a/bias.torch"], "bases": "AGCT", "input_layout": "nc1l"}
    group.attrs["model"] = group.attrs["model"] | unusual
    group.attrs["plan"] = group.attrs["plan"] | {"folds": ["one", "two"], "reverse_complement": True}
    text = page_of(store, tmp_path).text
    said = ["bias included: bias.torch", "bases of its channels AGCT", "axes of its input nc1l"]
    said += ["folds 2, their mean is attributed: one, two", "strands both", "of the mean over folds and strands"]
    assert [phrase for phrase in said if phrase not in text] == []


def test_exports_that_lie_beside_a_page_are_linked(two_targets: Path, tmp_path: Path) -> None:
    assert page_of(two_targets, tmp_path).links == []
    for kind, out in [("modisco", "two_modisco"), ("bigwig", "two.bw"), ("tsv", "a b#1.tsv")]:
        options = [] if kind == "tsv" else ["--target", "3"]
        assert dispatch(["export", kind, str(two_targets), str(tmp_path / out), *options]) == 0
    page = page_of(two_targets, tmp_path, "--link", str(tmp_path / "a b#1.tsv"))
    assert page.links == [
        "./a%20b%231.tsv",
        "./two.bw",
        *(f"./two_modisco/{name}" for name in ("ohe.npz", "attr.npz", "rows.tsv", "rows.bed")),
    ]
    assert all((tmp_path / unquote(link)).is_file() for link in page.links)
    assert f"Made already: {tmp_path}/a b#1.tsv" in page.text
    assert dispatch(["report", str(two_targets), "--link", "nowhere.bw"]) == 2


def test_the_commands_of_a_page_write_what_it_links_to(
    two_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = pipeline.open_store(two_targets)
    steps = next_steps(store, "3", [motif_step(store, "3"), *export_steps(store, "3")])
    assert [step.command.split()[:3] for step in steps] == [
        ["dlshap", "motifs", str(two_targets)],
        ["dlshap", "export", "bigwig"],
        ["dlshap", "export", "finemo"],
        ["dlshap", "export", "hub"],
        ["dlshap", "export", "modisco"],
        ["dlshap", "export", "tsv"],
        ["dlshap", "logo", str(two_targets)],
        ["dlshap", "verify", str(two_targets)],
    ]
    for step in steps:
        command, *arguments = shlex.split(step.command)
        if command == "dlshap" and step.files and arguments[0] != "motifs":
            assert dispatch(arguments) == 0
            assert [file for file in step.files if not (tmp_path / file).is_file()] == []


def test_the_same_store_gives_the_same_page(finished: Path, tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        page_of(finished, tmp_path)
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1]


def test_targets_have_sections_of_their_own(two_targets: Path, tmp_path: Path) -> None:
    store = pipeline.open_store(two_targets)
    page = page_of(two_targets, tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    for target in range(2):
        mean = float(np.asarray(store.prediction[:, target]).mean())
        assert page.value("mean-prediction", target) == pytest.approx(mean, rel=1e-5)
    assert "Target 3" in page.text
    assert "chr2:1,100-1,160" in page.text
    assert "dlshap export bigwig" in page.text
    chosen = page_of(two_targets, tmp_path, "--target", "11")
    assert len(chosen.values["mean-prediction"]) == 1
    assert "Of 2 targets, 1 are shown. Not shown: 3." in chosen.text


def test_of_many_targets_the_first_have_sections_and_the_rest_are_named(tmp_path: Path) -> None:
    store = Synthetic(random_codes(5, 30), targets=range(60)).write(tmp_path / "many.zarr")
    page = page_of(store, tmp_path)
    assert len(page.values["mean-prediction"]) == 4
    assert "Of 60 targets, 4 are shown. Not shown: 4, 5, 6," in page.text


def test_names_are_text(tmp_path: Path) -> None:
    names = ['<script>alert("1")</script>', "a & b", "x'\"><img src=//e.vil>", "$x_1$"]
    left_out = ["row 3 <b>bad</b> (in.fa, line 4): too short"]
    made = Synthetic(random_codes(4, 40), names=names, dataset={"n_left_out": 5, "left_out": left_out})
    store = made.write(tmp_path / "<i>store.zarr")
    page = page_of(store, tmp_path)
    assert page.open == []
    assert page.fetched == []
    assert page.tags.isdisjoint({"script", "img", "b", "i"})
    for name in names:
        assert name in page.text
    assert any(label and names[0] in label for label in page.labels)
    assert left_out[0] in page.text
    assert page.value("n-left-out") == 5
    assert dispatch(["logo", str(store), names[0], "-o", str(tmp_path / "l.svg")]) == 0


ACTING = [
    "\x1b]8;;http://localhost\x07\x9b31m",
    "a\u202egnp\u2066",
    "z\u200b\ufeff\x00",
    "p\x1b[201~\ntouch x\n",
    "-oX.png",
]


def test_names_do_not_act(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Control characters, directions of text and what is not seen are escapes; very long names are cut."""
    names = [*ACTING, "N" * 100_000]
    loci = [(name[:200], 100 * i, "+") for i, name in enumerate(names)]
    store = Synthetic(random_codes(len(names), 40), names=names, loci=loci).write(tmp_path / "a\u202eb.zarr")
    relabel(store, ["0\x1b[2J\u2067"])
    group = zarr.open_group(store, mode="r+")
    evil = "".join(ACTING)
    changed = {"target_names": [evil], "not_exact": [evil], "head": evil, "versions": {"dlshap": evil}}
    group.attrs.update(changed | {"config": {evil: [evil]}, "notes": [evil]})
    page = page_of(store, tmp_path)
    assert [line for line in page.text.split("\n") if not is_visible(line)] == []
    assert [label for label in page.labels if label and not is_visible(label.replace("\n", ""))] == []
    assert r"a\u202egnp\u2066" in page.text
    assert f"{'N' * 200}... (100,000 characters)" in page.text
    assert len(page.text) < 1_000_000
    for name in names[:1]:
        assert dispatch(["logo", str(store), name, "-o", str(tmp_path / "l.svg")]) == 0
        drawn = (tmp_path / "l.svg").read_text()
        assert is_visible(drawn.replace("\n", ""))
        assert visible(name) in drawn
        ElementTree.fromstring(drawn)  # XML holds no control characters
    told = capfd.readouterr()
    assert is_visible((told.out + told.err).replace("\n", ""))


def test_a_step_takes_no_name_for_an_option(tmp_path: Path) -> None:
    store = pipeline.open_store(Synthetic(random_codes(1, 40), names=["-oX.png"]).write(tmp_path / "-oX.zarr"))
    (logo,) = [step for step in next_steps(store, "0", []) if step.command.startswith("dlshap logo")]
    assert logo.command == f"dlshap logo {store.url} -o ./-oX.png -- -oX.png"


@pytest.mark.parametrize(("n_rows", "length"), [(1, 1), (2, 5), (1, 6), (2, 21)])
def test_short_stores(n_rows: int, length: int, tmp_path: Path) -> None:
    made = Synthetic(random_codes(n_rows, length), n_references=1)
    page = page_of(made.write(tmp_path / "s.zarr"), tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    assert page.value("n-rows") == n_rows


def test_nothing_to_see(tmp_path: Path) -> None:
    zeros = {"attribution": (3, 1, 30), "prediction": (3, 1), "reference_prediction": (3, 1, 3)}
    values = {name: np.zeros(shape, np.float32) for name, shape in zeros.items()}
    values["convergence_delta"] = np.zeros((3, 1, 3), np.float32)
    page = page_of(Synthetic(random_codes(3, 30), values=values).write(tmp_path / "s.zarr"), tmp_path)
    assert_stands_alone(page, (tmp_path / "page.html").read_text())
    assert "Strongest sites" not in page.text
    assert "6-mers" not in page.text


def test_unknown_bases_count_as_nothing_and_are_said(tmp_path: Path) -> None:
    codes = codes_of("NNNNNNNNNNNNNNN", "ACGTACGTANNNNNN")
    attribution = np.ones((2, 1, 15), np.float32) * (codes != 4)[:, None]
    store = Synthetic(codes, values={"attribution": attribution}).write(tmp_path / "n.zarr")
    page = page_of(store, tmp_path)
    assert page.value("n-unknown") == 21
    assert "ACGTAC GTACGT" in page.text
    assert "AAAAAA" not in page.text
    assert dispatch(["logo", str(store), "s0", "-o", str(tmp_path / "l.png")]) == 0


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    made = Synthetic(random_codes(6, 30))
    values = made.drawn(0, 6)
    for array, row in [(values["prediction"], 0), (values["attribution"], 1), (values["convergence_delta"], 2)]:
        array[row] = np.nan
    values["reference_prediction"][3, 0, 1] = np.inf
    made.values = values
    page = page_of(made.write(tmp_path / "nan.zarr"), tmp_path)
    assert page.value("n-not-finite") == 2
    assert page.value("n-attributed") == 5
    assert page.value("mean-prediction") == pytest.approx(values["prediction"][[1, 2, 4, 5]].mean(), rel=1e-6)
    assert "1 row left out of what follows: an attribution is not finite." in page.text
    assert "3 pairs have none that is finite" in page.text
    assert "Look closer." in page.text


def test_nothing_is_finite(tmp_path: Path) -> None:
    made = Synthetic(random_codes(2, 30))
    made.values = {name: np.full_like(array, np.nan) for name, array in made.drawn(0, 2).items()}
    page = page_of(made.write(tmp_path / "nan.zarr"), tmp_path)
    assert page.open == []
    assert page.value("n-not-finite") == 2
    assert "Attribution by position" not in page.text


def test_a_store_that_is_not_complete(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "part.zarr"
    pipeline.run(inputs.overrides(store, "run.shards=1-2"))
    capsys.readouterr()
    out = tmp_path / "page.html"
    assert dispatch(["report", str(store), "-o", str(out)]) == 2
    assert not out.exists()
    error = capsys.readouterr().err
    assert "is not complete" in error
    assert error.count("\n") == 1
    page = page_of(store, tmp_path, "--allow-incomplete")
    shown = pipeline.open_store(store, allow_incomplete=True)
    assert page.value("n-rows") == shown.present.sum()
    assert page.value("mean-prediction") == pytest.approx(
        np.asarray(shown.prediction[:])[shown.present].mean(), rel=1e-6
    )
    assert "Not complete." in page.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "page.txt"], "expected a name that ends with .html, .htm"),
        (["-o", "s3://bucket/page.html"], "give a path"),
        (["-o", "there/is/a/page.html/x.html", "--target", "7"], "--target 7: "),
        (["-o", "x.html", "--option", "region"], "expected name=value"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    options: list[str], said: str, finished: Path, capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    assert dispatch(["report", str(finished), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(in_folder.iterdir()) == []


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_without_the_extra(
    missing: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert dispatch(["report", str(finished), "-o", str(tmp_path / "page.html")]) == 2
    assert "pip install 'dlshap[report]'" in capsys.readouterr().err


def test_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["report", str(tmp_path / "none.zarr"), "-o", str(tmp_path / "page.html")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_large_stores_are_read_in_runs_spread_evenly() -> None:
    rows = np.arange(100 * RUN_ROWS + 5)
    chosen = sample(rows, length=10, max_bases=RUN_ROWS * 10 * 7)
    assert len(chosen) == 6 * RUN_ROWS + 5
    assert chosen[0] == 0
    assert chosen[-1] == rows[-1]
    assert np.array_equal(sample(rows, length=10, max_bases=len(rows) * 10), rows)
    assert len(sample(rows, length=10**9, max_bases=1)) == RUN_ROWS


def test_a_sample_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.page.sample", lambda rows, length: rows[:10])
    page = page_of(Synthetic(random_codes(20, 30)).write(tmp_path / "s.zarr"), tmp_path)
    assert "come from 10 rows, in runs spread evenly over the store: 50.0% of it" in page.text
    assert page.value("n-attributed") == 10
    assert page.value("n-pairs") == 60


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234.5, "1,234"),
        (-0.0123, "\N{MINUS SIGN}0.0123"),
        (3.66e-7, "3.66 x 10⁻⁷"),
        (float("nan"), "not finite"),
        (None, "not finite"),
        (1.5e12, "1.50 x 10¹²"),
    ],
)
def test_numbers_for_people(value: float | None, text: str) -> None:
    assert number(value).replace("\N{NARROW NO-BREAK SPACE}", " ").replace("\N{MULTIPLICATION SIGN}", "x") == text


def test_numbers_at_an_axis() -> None:
    assert [tick(value) for value in (0.0, 0.25, -0.002, 1500.0, 9999.0)] == [
        "0",
        "0.25",
        f"{MINUS}0.002",
        "1,500",
        "9,999",
    ]
    assert [tick(value) for value in (2e4, -2.5e-6)] == [f"2{TIMES}10⁴", f"{MINUS}2.5{TIMES}10⁻⁶"]


def test_shares_that_are_not_quite_none_or_all() -> None:
    assert [share(part, 10**6) for part in (0, 1, 5000, 999_999, 10**6)] == [
        "0%", "under 0.01%", "0.50%", "over 99.99%", "100%",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_hundred_thousand_rows_in_a_minute(tmp_path: Path) -> None:
    n, length = 100_000, 2114
    made = Synthetic(random_codes(n, length), n_references=20, rows_per_shard=512)
    store = made.write(tmp_path / "big.zarr")
    started = time.monotonic()
    page = page_of(store, tmp_path)
    took = time.monotonic() - started
    shutil.rmtree(store)  # a gigabyte
    assert took < 60
    assert page.value("n-rows") == page.value("n-attributed") == n
    assert page.value("n-pairs") == 20 * n
    assert (tmp_path / "page.html").stat().st_size < 2_000_000


def test_a_store_in_an_object_store(finished: Path, bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/whole.zarr"
    backend = open_backend(url, bucket.options)
    for path in finished.rglob("*"):
        if path.is_file():
            backend.write(path.relative_to(finished).as_posix(), path.read_bytes())
    options = [part for name, value in bucket.options.items() for part in ("--option", f"{name}={value}")]
    out = tmp_path / "page.html"
    assert dispatch(["report", url, "-o", str(out), *options]) == 0
    assert Page(out.read_text(encoding="utf-8")).value("n-rows") == 22
    assert dispatch(["logo", url, "s3", "-o", str(tmp_path / "l.png"), *options]) == 0
