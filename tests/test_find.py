"""Folders are walked as git walks them; a path given by the user is listed or is an error."""

import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import pytest
from samples import write

from m3mlx.documents import LeftOut, Worker, find, read
from m3mlx.errors import DocumentError
from m3mlx.store.folder import CATALOG
from m3mlx.store.lock import FILE as LOCK


def names(root: Path, *paths: str | Path, **patterns) -> list[str]:
    """Names of the files found, relative to a folder; there must be no errors."""
    found = list(find(paths or [root], **patterns))
    assert not [error for error in found if isinstance(error, DocumentError)]
    return [path.relative_to(root.resolve()).as_posix() for path in found]


def only_error(*paths: Path) -> DocumentError:
    found = list(find(paths))
    assert len(found) == 1
    assert isinstance(found[0], DocumentError)
    return found[0]


@pytest.fixture
def nobody(tmp_path) -> Iterator[Path]:
    """A folder used without the rights of root, who may read every file."""
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp()).resolve() if root else tmp_path
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_files_come_once_in_the_order_of_their_names(tmp_path):
    for name in ("b.md", "a/z.txt", "a/b/c.py", "c.txt"):
        write(tmp_path / name)
    assert names(tmp_path) == ["a/b/c.py", "a/z.txt", "b.md", "c.txt"]
    everything = [tmp_path / "c.txt", tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "b.md"]
    assert names(tmp_path, *everything) == ["c.txt", "a/b/c.py", "a/z.txt", "b.md"]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    write(tmp_path / "a.md")
    monkeypatch.chdir(tmp_path)
    for path in (".", "a.md", "./a.md", Path("a.md")):
        assert list(find([path])) == [tmp_path.resolve() / "a.md"]


def test_hidden_binary_and_unknown_files_in_folders_are_left_out_and_named(tmp_path):
    for name in (".hidden.md", ".git/a.md", "a/.b/c.md", "photo.jpg", "movie.xyz", "LICENSE"):
        write(tmp_path / name)
    write(tmp_path / "data.txt", b"zero\0byte")
    write(tmp_path / "movie.xyz", b"\x1f\x03moving")
    write(tmp_path / "program", b"\x7fELF")
    write(tmp_path / "py.typed", b"")
    write(tmp_path / "backup.tar.gz", b"\x1f\x8b\x08")
    write(tmp_path / "package/__init__.py", "")  # empty code means something
    write(tmp_path / "wide.txt", "wide".encode("utf-16"))
    write(tmp_path / "old.doc", b"\xd0\xcf\x11\xe0\0")
    write(tmp_path / ".gitignore", "*.log\n")
    write(tmp_path / "a.log")
    for name in (CATALOG, LOCK):
        write(tmp_path / "store" / name, "123")
    write(tmp_path / "a.md~", "an older a.md")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "link.md").symlink_to(tmp_path / "LICENSE")
    left: list[LeftOut] = []
    assert names(tmp_path, leave_out=left.append) == ["LICENSE", "wide.txt"]
    root = tmp_path.resolve()
    assert {Path(path).relative_to(root).as_posix(): kind for path, kind, _ in left} == {
        ".hidden.md": "hidden",
        ".git": "hidden",
        ".gitignore": "hidden",
        "a/.b": "hidden",
        "a.log": "ignored by git",
        "data.txt": "binary files",
        "store": "stores of m3mlx",
        "a.md~": "leftovers of editors and downloads",
        "link": "linked folders",
        "link.md": "links",
        "backup.tar.gz": "archives",
        "movie.xyz": "binary files",
        "program": "binary files",
        "py.typed": "empty files",
        "old.doc": "old Word documents",
        "package/__init__.py": "empty source files",
        "photo.jpg": "pictures",
    }
    advised = {kind for _, kind, advice in left if advice}
    assert advised == {"linked folders", "links", "old Word documents", "pictures", "archives"}


def test_files_without_a_known_name_are_found_if_they_are_text(tmp_path):
    texts = {
        "README.Debian": b"plain",
        "README.source": "größer, naïve façade".encode("cp1252"),
        "notes": "naïve — 日本語".encode() * 800,  # cut within a character
        "log.1": b"\x1b[31mred\x1b[0m\r\n\f",
        "wide.dat": "wide".encode("utf-16"),
        "NEWS.gz": gzip.compress(b"* packed"),
        "changelog.Debian.gz": gzip.compress(b"packed too"),
        "page.html.gz": gzip.compress(b"<p>a <b>page</b>"),
    }
    for name, content in texts.items():
        write(tmp_path / name, content)
    for name, content in (("a.gz", b"\0\1"), ("b.bin.gz", b"\x7fELF"), ("c.txt.gz", b"a\0b")):
        write(tmp_path / name, gzip.compress(content))
    write(tmp_path / "cut.gz", texts["NEWS.gz"][:12])
    write(tmp_path / "c", b"\xfe\x93\xff\xe1" * 9)
    left: list[LeftOut] = []
    assert names(tmp_path, leave_out=left.append) == sorted(texts)
    assert len(left) == 5
    with Worker() as worker:
        for name, word in (
            *(("README.source", "größer"), ("log.1", "red"), ("wide.dat", "wide")),
            *(("NEWS.gz", "* packed"), ("changelog.Debian.gz", "packed too")),
            ("page.html.gz", "a page"),
        ):
            assert word in worker.read(tmp_path / name).text
        with pytest.raises(DocumentError, match="binary"):
            worker.read(tmp_path / "c.txt.gz")
        with pytest.raises(DocumentError, match="broken"):
            worker.parse("a.md.gz", texts["NEWS.gz"][:-9])
        with pytest.raises(DocumentError, match="too many for its size"):
            worker.parse("a.md.gz", gzip.compress(b"a " * 10_000_000))


def test_an_empty_text_is_found_so_that_it_can_be_reported(tmp_path):
    write(tmp_path / "empty.txt", "")
    assert names(tmp_path) == ["empty.txt"]


def test_a_named_file_is_read_even_if_hidden_or_of_unknown_suffix(tmp_path):
    hidden = write(tmp_path / ".journal" / ".today.md")
    unknown = write(tmp_path / "song.xyz")
    assert names(tmp_path, hidden, unknown) == [".journal/.today.md", "song.xyz"]
    assert names(tmp_path, tmp_path / ".journal") == []
    assert read(unknown).text == "text\n"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.jpg", b"\xff\xd8\xff\0", "all pictures; --ocr"),
        ("a.txt", b"a\0b", "binary"),
        ("a.doc", b"\xd0\xcf\x11\xe0\0", ".docx"),
        ("a.msg", b"\xd0\xcf\x11\xe0\0", ".eml"),
    ],
)
def test_a_named_binary_file_is_an_error(tmp_path, name, content, word):
    path = write(tmp_path / name, content)
    error = only_error(path)
    assert error.path == str(path)
    assert word in error.reason


def test_missing_and_special_paths_are_errors_and_the_others_are_found(tmp_path):
    good = write(tmp_path / "good.md")
    (tmp_path / "loop.md").symlink_to("loop.md")
    (tmp_path / "dangling.md").symlink_to("nowhere.md")
    os.mkfifo(tmp_path / "pipe.md")
    odd = {"none.md": "exist", "loop.md": "links", "dangling.md": "exist", "pipe.md": "neither"}
    found = list(find([tmp_path / "none.md", *(tmp_path / name for name in odd), good]))
    assert found[-1] == good
    for error, name in zip(found[1:-1], odd, strict=True):
        assert isinstance(error, DocumentError)
        assert error.path == str(tmp_path / name)
        assert odd[name] in error.reason
    assert names(tmp_path) == ["good.md"]
    with pytest.raises(DocumentError, match="not a file"):
        read(tmp_path / "pipe.md")


def test_unreadable_files_and_folders_are_errors_and_the_others_are_found(nobody):
    write(nobody / "a" / "x.md").chmod(0)
    write(nobody / "b" / "y.md")
    (nobody / "b").chmod(0)
    good = write(nobody / "c" / "z.md")
    try:
        found = list(find([nobody]))
        assert [str(e.path) for e in found[:2]] == [str(nobody / "a" / "x.md"), str(nobody / "b")]
        assert all("Permission denied" in error.reason for error in found[:2])
        assert found[2:] == [good]
        with pytest.raises(DocumentError, match="Permission denied"):
            read(nobody / "a" / "x.md")
    finally:
        (nobody / "b").chmod(0o700)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path):
    try:
        write(tmp_path / os.fsdecode(b"caf\xe9.md"))
    except OSError:
        pytest.skip("the file system refuses such names itself, as on a Mac")
    error = only_error(tmp_path)
    assert "UTF-8" in error.reason
    str(error).encode()


# --- links


def test_links_in_folders_are_not_followed(tmp_path):
    outside = write(tmp_path / "outside" / "secret.md").parent
    folder = write(tmp_path / "folder" / "a.md").parent
    (folder / "out").symlink_to(outside)
    (folder / "file.md").symlink_to(outside / "secret.md")
    (folder / "again.md").symlink_to(folder / "a.md")
    (folder / "loop").symlink_to(folder)
    assert names(folder) == ["a.md"]


def test_a_link_named_itself_is_followed_under_its_own_name(tmp_path):
    target = write(tmp_path / "far" / "a.md")
    (tmp_path / "link.md").symlink_to(target)
    (tmp_path / "folder").symlink_to(tmp_path / "far")
    assert list(find([tmp_path / "link.md"])) == [tmp_path / "link.md"]
    assert read(tmp_path / "link.md").path == str(tmp_path / "link.md")
    assert list(find([tmp_path / "folder"])) == [target]
    assert list(find([tmp_path / "folder" / "a.md"])) == [target]
    assert list(find([tmp_path / "link.md", target])) == [tmp_path / "link.md"]


# --- patterns


def tree(root: Path, *files: str, **rules: str) -> Path:
    """Files, and a .gitignore in each folder named (``top`` is the root, ``__`` a slash)."""
    for name in files:
        write(root / name)
    for folder, lines in rules.items():
        below = "" if folder == "top" else folder.replace("__", "/")
        write(root / below / ".gitignore", lines)
    return root


CASES = [  # files, rules, and what `git ls-files --others --exclude-standard` says
    (["a.log", "b.md", "x/c.log"], {"top": "*.log\n"}, ["b.md"]),
    (
        ["a.log", "keep.log", "x/keep.log"],
        {"top": "*.log\n!keep.log\n"},
        ["keep.log", "x/keep.log"],
    ),
    (["build/a.md", "x/build/b.md", "build.md"], {"top": "build/\n"}, ["build.md"]),
    (["build/a.md", "build/keep.md"], {"top": "build/\n!build/keep.md\n"}, []),
    (["build/a.md", "build/keep.md"], {"top": "build/*\n!build/keep.md\n"}, ["build/keep.md"]),
    (["docs/a.md", "x/docs/b.md", "top.md"], {"top": "/docs\n"}, ["top.md", "x/docs/b.md"]),
    (["docs/a.md", "docs/x/b.md", "top.md"], {"top": "/*\n!/docs\n"}, ["docs/a.md", "docs/x/b.md"]),
    (["a.md", "x/b.md", "x/c.txt"], {"top": "*\n!*/\n!*.md\n"}, ["a.md", "x/b.md"]),
    (["x/a.md", "x/b.md", "a.md"], {"x": "a.md\n"}, ["a.md", "x/b.md"]),
    (["logs/a.log", "logs/tmp/b.md", "logs/c.md"], {"top": "*.log\ntmp\n!logs/\n"}, ["logs/c.md"]),
    (["x/a.md", "y/a.md", "z.md"], {"top": "*/\n!y/\n"}, ["y/a.md", "z.md"]),
    (["x/a.md", "x/y/a.md", "x/y/b.md"], {"top": "a.md\n", "x__y": "!a.md\nb.md\n"}, ["x/y/a.md"]),
    (["a.md", "#b.md", "c d.md"], {"top": "# comment\n\\#b.md\nc\\ d.md\n\n"}, ["a.md"]),
    (["a/x/b/c.md", "a/b/c.md", "a/c.md"], {"top": "a/**/c.md\n"}, []),
    (["foo/bar/a.md", "x/foo/bar/b.md"], {"top": "foo/bar\n"}, ["x/foo/bar/b.md"]),
    (["a1.md", "a2.md", "ab.md"], {"top": "a[0-9].md\r\n"}, ["ab.md"]),
    (
        ["a1.md", "b.md", "c].md"],
        {"top": "[^[:alpha:]x]1.md\n[!\\]a-z]*\nc[]].md"},
        ["a1.md", "b.md"],
    ),
    (
        ["a.md", "a/b/c.md", "a/d.md", "e.md"],
        {"top": "/a/**\n!/a/d.md\n"},
        ["a.md", "a/d.md", "e.md"],
    ),
    (["a!.md", "!b.md", "c?.md", "cd.md"], {"top": "\\!b.md\nc\\?.md\na!.md"}, ["cd.md"]),
    # what is no pattern is passed over
    (["a.log", "z.md", "a.md"], {"top": "!\n*.log\\\n[z-a]\n[\n/\n*.log\n"}, ["a.md", "z.md"]),
]


@pytest.mark.parametrize(("files", "rules", "left"), CASES)
def test_gitignore_means_what_it_means_to_git(tmp_path, files, rules, left):
    assert sorted(names(tree(tmp_path, *files, **rules))) == left


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize(("files", "rules", "left"), CASES)
def test_the_cases_are_what_git_says(tmp_path, files, rules, left):
    tree(tmp_path, *files, **rules)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = ["git", "-C", str(tmp_path), "ls-files", "-z", "--others", "--exclude-standard"]
    said = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    assert sorted(name for name in said if name and ".gitignore" not in name) == left


def test_patterns_with_many_stars_take_no_time(tmp_path):
    stars, folders = "*a" * 12 + "b\n", "**/a/" * 12 + "b\n"
    write(tmp_path / ".gitignore", stars + folders)
    path = write(tmp_path / ("a/" * 30) / ("a" * 200 + ".md"))
    start = process_time()
    assert names(tmp_path) == [path.relative_to(tmp_path).as_posix()]
    assert process_time() - start < 2


def test_the_excludes_of_a_repository_and_of_its_user_count(tmp_path, monkeypatch):
    home = tree(tmp_path / "home", "my-ignore")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    repo = tree(tmp_path / "repo", "a.md", "b.md", "c.md", "d/a.md", "d/e.md")
    write(repo / ".git" / "info" / "exclude", "/a.md\n!c.md\n")
    write(home / "config" / "git" / "ignore", "b.md\nc.md\n")
    assert names(repo) == ["c.md", "d/a.md", "d/e.md"]
    assert names(repo, repo / "d") == ["d/a.md", "d/e.md"]
    write(home / ".gitconfig", "[core]\n\texcludesFile = ~/my-ignore\n")
    write(home / "my-ignore", "e.md\n")
    assert names(repo) == ["b.md", "c.md", "d/a.md"]
    write(tmp_path / "linked" / ".git", f"gitdir: {repo}/.git/worktrees/linked\n")
    write(repo / ".git/worktrees/linked/commondir", "../..\n")
    tree(tmp_path / "linked", "a.md", "f.md")
    assert names(tmp_path / "linked") == ["f.md"]


def test_two_spellings_of_a_name_are_one_document(tmp_path):
    composed, split = "Caf\u00e9.md", "Cafe\u0301.md"
    path = write(tmp_path / "Re\u0301sume\u0301" / split)
    spelled = tmp_path / "R\u00e9sum\u00e9" / composed
    if not spelled.exists():  # a file system that knows the bytes only
        assert list(find([spelled, path, path.parent])) == [path.resolve()]
    plain = write(tmp_path / split)
    if not (tmp_path / composed).exists():
        os.link(plain, tmp_path / composed)  # now the same file, as on a Mac
    assert list(find([plain])) == [tmp_path.resolve() / composed]
    assert names(tmp_path, exclude=[composed]) == []


def test_rules_above_a_folder_count_within_its_repository_only(tmp_path):
    tree(tmp_path, "repo/docs/a.md", "repo/docs/a.log", top="*.md\n", repo="*.log\ndraft/\n")
    write(tmp_path / "repo" / "draft" / "b.md")
    (tmp_path / "repo" / ".git").mkdir()
    assert names(tmp_path, tmp_path / "repo" / "docs") == ["repo/docs/a.md"]
    # a folder that is named is meant, whatever the repository thinks of it
    assert names(tmp_path, tmp_path / "repo" / "draft") == ["repo/draft/b.md"]


def test_include_takes_only_what_matches(tmp_path):
    tree(tmp_path, "a.md", "a.txt", "x/b.md", "x/y/c.md", "notes/d.txt", top="x/b.md\n")
    assert names(tmp_path, include=["*.md"]) == ["a.md", "x/y/c.md"]
    assert names(tmp_path, include=["notes/", "/a.*"]) == ["a.md", "a.txt", "notes/d.txt"]
    assert names(tmp_path, include=["*.md", "!a.md"]) == ["x/y/c.md"]


def test_exclude_leaves_out_what_matches(tmp_path):
    tree(tmp_path, "a.md", "x/b.md", "x/y/c.md", "d.txt")
    assert names(tmp_path, exclude=["x/"]) == ["a.md", "d.txt"]
    assert names(tmp_path, exclude=["*.md"]) == ["d.txt"]
    assert names(tmp_path, include=["*.md"], exclude=["x/y"]) == ["a.md", "x/b.md"]
    assert names(tmp_path, tmp_path / "a.md", tmp_path / "d.txt", exclude=["*.txt"]) == ["a.md"]


def test_with_near_only_those_paths_are_looked_at(tmp_path):
    for name in ("a/one.md", "a/b/two.md", "a/b/c/three.md", "d/four.md", "five.md"):
        write(tmp_path / name)
    write(tmp_path / "a/b/.gitignore", "three.md\n")
    assert names(tmp_path, near=[tmp_path / "a/b"]) == ["a/b/two.md"]
    assert names(tmp_path, near=[tmp_path / "five.md", tmp_path / "d"]) == ["d/four.md", "five.md"]
    assert names(tmp_path, near=[tmp_path / "a/b/c/three.md"]) == []
    assert names(tmp_path, near=[tmp_path]) == names(tmp_path)
    assert names(tmp_path, near=[tmp_path / "gone"]) == names(tmp_path, near=[]) == []
    assert names(tmp_path, tmp_path / "d", tmp_path / "five.md", near=[tmp_path / "five.md"]) == [
        "five.md"
    ]
