"""The documentation site: built from here without a network, every link and picture there, search in both languages."""

import functools
import importlib.util
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    """A script beside the pages, which is in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


translations = script("translations")


# ------------------------------------------------------------------------------------------------------- translations


@pytest.mark.parametrize("page", translations.translated(), ids=lambda page: page.page)
def test_the_code_of_a_chinese_page_is_that_of_the_english_one(page):
    english, chinese = (
        translations.code_of((ROOT / name).read_text("utf-8")) for name in (page.english, page.page)
    )
    assert chinese == english, f"{page.page} must show the code of {page.english}"


def test_pages_that_are_behind_are_listed(tmp_path, monkeypatch):
    (tmp_path / "docs" / "zh").mkdir(parents=True)
    (tmp_path / "docs" / "a.md").write_text("# A\n")
    now = translations.hash_of(tmp_path / "docs" / "a.md")
    (tmp_path / "README.zh.md").write_text("<!-- follows no English page -->\n\n# R\n")
    monkeypatch.setattr(translations, "ROOT", tmp_path)
    for named, late in ((now, []), ("0" * 12, ["docs/zh/a.md"])):
        (tmp_path / "docs" / "zh" / "a.md").write_text(f"<!-- follows docs/a.md {named} -->\n\n# 甲\n")
        assert [page.page for page in translations.behind()] == late
    (tmp_path / "docs" / "zh" / "a.md").write_text("# 甲\n")
    with pytest.raises(ValueError, match="must begin with"):
        translations.behind()


def test_a_page_that_is_behind_leads_to_the_english_one(tmp_path, monkeypatch):
    build, pages = script("build"), translations.translated()
    monkeypatch.setattr(build, "behind", lambda: pages)
    build.gather(tmp_path, "zh")
    for page in pages:
        there, english = build.site_path(page.page, "zh"), build.site_path(page.english, "en")
        shown = (tmp_path / there).read_text("utf-8")
        here, wanted = (name.removesuffix("index.md").removesuffix(".md") for name in (there, english))
        link = shown.partition("[英文版](")[2].partition(")")[0]
        assert normpath(f"zh/{here}/{link}") == normpath(wanted), page.page


def test_code_is_told_from_words():
    shown = (
        "    foveal train --lr 1 \\\n        --epochs 2    # two\n\nwords\n\n```python\nx = 1  # one\n```\n"
    )
    assert translations.code_of(shown) == [
        "    foveal train --lr 1 \\\n        --epochs 2",
        "```python\nx = 1\n```",
    ]


# --------------------------------------------------------------------------------------------------------------- site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("zensical", reason='pip install "foveal[docs]"')
    folder = tmp_path_factory.mktemp("site") / "site"
    script("build").build(folder)
    return folder


class Page(HTMLParser):
    """What a page links to and shows, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.places.add(given["id"])
        self.links += [given[name] for name in ("href", "src") if given.get(name)]


def test_every_link_anchor_and_picture_is_there(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 40
    lost = []
    for path, page in pages.items():
        here = f"http://site/{path.relative_to(site).as_posix()}"
        for link in page.links:
            parts = urlsplit(urljoin(here, link))
            if parts.scheme not in ("http", "https") or parts.netloc != "site":
                continue
            target = site / unquote(parts.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and (
                target not in pages
                or unquote(parts.fragment) in pages[target].places
                or parts.fragment.startswith("__")
            )
            lost += [] if there else [f"{path.relative_to(site)}: {link}"]
    assert lost == []


def test_the_site_asks_no_other_host(site):
    """Fonts, scripts and styles are its own; only a person's click leaves it."""
    outside = [
        f"{path.relative_to(site)}: {line.strip()[:120]}"
        for path in site.rglob("*.html")
        for line in path.read_text(encoding="utf-8").splitlines()
        if 'src="http' in line or ('rel="stylesheet"' in line and 'href="http' in line)
    ]
    assert outside == []


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_page_is_in_the_navigation(lang, tmp_path):
    """A page that nobody finds need not be written; one that the list does not name is added by its title."""
    build = script("build")
    config = (ROOT / "docs" / f"site-{lang}.toml").read_text("utf-8")
    (tmp_path / "new.md").write_text("# A new page\n")
    assert ('{ "A new page" = "new.md" },' in build.with_all_pages(config, tmp_path)) == (lang == "en")
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "zh").rglob("*.md")}
    assert lang == "en" or not [page for page in pages if f'"{build.site_path(page, lang)}"' not in config]


def test_search_finds_words_in_both_languages(site, browser):
    """Chinese has no spaces: a word in the middle of a sentence is found all the same."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    found = """() => [...document.querySelectorAll("*")].filter(e => e.shadowRoot)
        .flatMap(e => [...e.shadowRoot.querySelectorAll("li a")].map(a => a.getAttribute("href")))"""
    try:
        page = browser.new_page()
        for place, word, wanted in (
            ("", "position attention", "blocks/dual_attention"),
            ("zh/", "感受野以外不存在的词", None),
            ("zh/", "对照组", "zh/comparing"),
            ("zh/", "交叉注意力", "zh/detection"),
        ):
            page.goto(address + place)
            page.wait_for_load_state("networkidle")
            page.keyboard.press("/")
            page.wait_for_timeout(300)
            page.keyboard.insert_text(word)
            if wanted is None:
                page.wait_for_timeout(1000)
                assert page.evaluate(found) == []
            else:
                page.wait_for_function(
                    f"() => ({found})().some(link => link.includes('{wanted}'))", timeout=20_000
                )
        page.close()
    finally:
        server.shutdown()
        server.server_close()
