import dataclasses
import datetime
import errno
import json
import os
import re
import shutil
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import invoke
from json_files import change_json, edited_json
from tiny_adapter import write_tiny_adapter

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel, SavedSessions, saved_session
from edgelm.cli.cache import complete_session, rm
from edgelm.cli.chat_commands import suggestions
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.memory.saved_cache import SavedCache
from edgelm.package.manifest import Manifest, describe_file
from edgelm.package.package import open_package
from edgelm.testing import scripted_model, tiny_model_path

CONFIG = GenerationConfig(max_new_tokens=12, ignore_eos=True)


def fresh_model() -> LanguageModel:
    model = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))
    model.prefixes = PrefixCache(model.config, 0)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fresh_model()


@pytest.fixture
def session(model: LanguageModel) -> ChatSession:
    session = ChatSession(model, system="Be kind, and speak of the sea. " * 5)
    list(session.send("Hello", CONFIG))
    return session


def offered(incomplete: str) -> list[str]:
    """Complete the name of a session."""
    context = click.Context(rm)
    return [item.value for item in complete_session(context, rm.params[0], incomplete)]


def test_a_session_goes_on_in_another_process_as_it_would_have_here(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    restored = ChatSession.load(fresh_model(), tmp_path / "chat")
    assert (restored.messages, restored.system) == (session.messages, session.system)
    assert restored.context_used == session.context_used > 0
    here, there = (list(chat.send("And then?", CONFIG)) for chat in (session, restored))
    assert [chunk.token_ids for chunk in here] == [chunk.token_ids for chunk in there]
    assert here[-1].usage == there[-1].usage
    assert there[-1].usage is not None
    assert there[-1].usage.cached_tokens > 100


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps who may read in other ways")
def test_conversations_are_kept_for_their_user_alone(session: ChatSession) -> None:
    sessions = SavedSessions()
    sessions.save("sea", session)
    assert sessions.root.stat().st_mode & 0o777 == 0o700


def test_without_its_cache_a_session_computes_the_conversation_once_more(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    (tmp_path / "chat" / "cache.npz").unlink()
    restored = ChatSession.load(session.model, tmp_path / "chat")
    assert (restored.messages, restored.context_used) == (session.messages, 0)
    usage = list(restored.send("And then?", CONFIG))[-1].usage
    assert usage is not None
    assert usage.cached_tokens == 0


def test_a_path_may_begin_in_the_users_home(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    session.save("~/chat")
    assert ChatSession.load(session.model, "~/chat").messages == session.messages
    SavedSessions("~/chats").save("one", session)
    assert [saved.folder for saved in SavedSessions(Path("~/chats")).sessions()] == [home / "chats" / "one"]
    cache = session.model.new_cache()
    list(session.model.stream("The sea", CONFIG, cache=cache))
    cache.save("~/cache.npz", "x")
    assert KVCache.load("~/cache.npz", session.model.config, "x").token_ids == cache.token_ids
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("path", [None, 5, "~nobody-of-that-name/chat", Path("~nobody-of-that-name"), "a\0b"])
def test_what_is_no_path_is_refused(
    session: ChatSession, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = str(path) if isinstance(path, Path) else path
    with pytest.raises(edgelm.ConfigError, match=rf"^{re.escape(repr(shown))} is no path: .*[^.]\.$"):
        session.save(path)


def test_a_session_of_another_model_is_refused_by_name(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    other = tmp_path / "other"
    shutil.copytree(tiny_model_path(), other)
    (other / "generation_config.json").write_text('{"temperature": 0.5}')
    entry = describe_file(other / "generation_config.json")
    manifest = Manifest.load(tiny_model_path())
    dataclasses.replace(manifest, name="other-model", files=(*manifest.files, entry)).save(other)
    with pytest.raises(
        edgelm.PackageError, match=r"belongs to the model tiny-random \(\w{12}\), not to other-model \(\w{12}\)"
    ):
        ChatSession.load(edgelm.load(other), tmp_path / "chat")


def test_no_session_is_saved_into_a_model_package(session: ChatSession, tmp_path: Path) -> None:
    (tmp_path / "edgelm.json").touch()
    with pytest.raises(edgelm.ConfigError, match=f"chat is not written: {tmp_path} is a model package"):
        session.save(tmp_path / "chat")


def test_a_folder_that_the_system_refuses_to_look_at_is_an_error_of_edgelm(
    session: ChatSession, tmp_path: Path
) -> None:
    with pytest.raises(edgelm.ConfigError, match=r"chat (is not written|cannot be read): .*File name too long"):
        session.save(tmp_path / ("x" * 300) / "chat")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(edgelm.ConfigError, match=r"chat (is not written|cannot be read): .*[Ss]ym"):
        session.save(tmp_path / "circle" / "chat")


def test_a_folder_with_other_things_is_never_replaced(session: ChatSession, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(edgelm.ConfigError, match=r"exists and is not a saved session; it is left alone"):
        session.save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
    session.save(tmp_path / "chat")
    (tmp_path / "chat" / "notes.txt").write_text("on this chat")
    with pytest.raises(edgelm.ConfigError, match=r"chat is not replaced: it holds notes\.txt, which is no part of"):
        session.save(tmp_path / "chat")
    assert (tmp_path / "chat" / "notes.txt").read_text() == "on this chat"


@pytest.mark.usefixtures("open_files_stay")
def test_saving_again_replaces_the_session(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    list(session.send("More", CONFIG))
    session.save(tmp_path / "chat")
    assert len(ChatSession.load(session.model, tmp_path / "chat").messages) == 4


def test_where_no_session_was_saved_none_is_loaded(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("notes")
    for name in ("absent", ".", "file"):
        with pytest.raises(edgelm.PackageError, match=r"There is no saved session in .*ChatSession\.save writes"):
            ChatSession.load(model, tmp_path / name)


def test_a_broken_session_is_refused(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    path = tmp_path / "chat" / "conversation.json"
    whole = json.loads(path.read_text())
    for broken in ("", "[]", "{}", "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(edgelm.PackageError, match="Cannot read the saved session"):
            ChatSession.load(session.model, tmp_path / "chat")
    path.write_text(json.dumps(whole | {"messages": "none"}))
    with pytest.raises(edgelm.PackageError, match="has a messages that does not fit: 'none'"):
        ChatSession.load(session.model, tmp_path / "chat")
    path.write_text(json.dumps(whole | {"messages": [1]}))
    with pytest.raises(edgelm.PackageError, match=r"The saved session .*chat is broken: Turn 1 is 1; each has a role"):
        ChatSession.load(session.model, tmp_path / "chat")


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        ({"schema_version": 2}, r"has schema_version 2; this edgelm reads 1\. Update edgelm\."),
        ({"schema_version": 0}, r"has schema_version 0; this edgelm reads 1\. Begin a new session\."),
        ({"branches": []}, "has 'branches', which this edgelm does not know. If a newer one wrote it, update this one"),
        (
            {"messages": [{"role": "user", "content": "x", "images": []}]},
            "has 'images', which this edgelm does not know",
        ),
    ],
)
def test_a_session_that_a_newer_edgelm_has_saved_is_refused_before_it_is_written_anew(
    session: ChatSession, tmp_path: Path, change: dict[str, Any], way_out: str
) -> None:
    session.save(tmp_path / "chat", with_cache=False)
    change_json(tmp_path / "chat" / "conversation.json", **change)
    with pytest.raises(edgelm.PackageError, match=rf"The saved session .*conversation\.json {way_out}"):
        ChatSession.load(session.model, tmp_path / "chat")


def test_a_session_from_before_they_had_a_number_goes_on(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat", with_cache=False)
    with edited_json(tmp_path / "chat" / "conversation.json") as values:
        assert values.pop("schema_version") == 1
    assert ChatSession.load(session.model, tmp_path / "chat").messages == session.messages


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("name", ["conversation.json", "cache.npz"])
def test_a_pipe_in_a_session_is_not_waited_for(session: ChatSession, tmp_path: Path, name: str) -> None:
    session.save(tmp_path / "saved")
    (tmp_path / "saved" / name).unlink()
    os.mkfifo(tmp_path / "saved" / name)
    with pytest.raises(edgelm.PackageError, match=rf"{name}: (ValueError: )?it is not a regular file"):
        ChatSession.load(session.model, tmp_path / "saved")


def test_an_adapter_that_has_computed_nothing_and_is_gone_is_not_missed(session: ChatSession, tmp_path: Path) -> None:
    write_tiny_adapter(tmp_path / "adapter")
    session.model.load_adapter(tmp_path / "adapter", "added")
    session.clear()
    cancelled = threading.Event()
    cancelled.set()
    list(session.send("Hello", CONFIG.replace(adapter="added"), cancel=cancelled))
    session.model.unload_adapter("added")
    session.save(tmp_path / "chat")
    assert ChatSession.load(session.model, tmp_path / "chat").messages == []


def test_what_an_adapter_of_two_names_computed_goes_on_under_the_one_that_answers(tmp_path: Path) -> None:
    model = fresh_model()
    write_tiny_adapter(tmp_path / "adapter")
    for name in ("one", "two"):
        model.load_adapter(tmp_path / "adapter", name)
    session = ChatSession(model.adapted("one"))
    list(session.send("Hello", CONFIG.replace(adapter="one")))
    session.save(tmp_path / "chat")
    resumed = ChatSession.load(model.adapted("two"), tmp_path / "chat")
    (*_, last) = resumed.send("More", CONFIG.replace(adapter="two"))
    assert last.usage is not None
    assert last.usage.cached_tokens > 0


def test_half_a_surrogate_pair_is_kept_as_it_is(session: ChatSession, tmp_path: Path) -> None:
    session.restore([{"role": "user", "content": "Meer \U0001f30a, \ud83d"}])
    session.save(tmp_path / "chat")
    assert ChatSession.load(session.model, tmp_path / "chat").messages == session.messages


def test_sessions_are_kept_by_name(session: ChatSession, own_library: Path) -> None:
    saved = SavedSessions()
    assert saved.sessions() == []
    saved.save("first", session)
    saved.save("second", ChatSession(scripted_model("x")))
    first = next(one for one in saved.sessions() if one.name == "first")
    assert (first.model, first.messages, first.tokens) == ("tiny-random", 2, session.context_used)
    assert first.size > first.cache_size > session.context_used * 128
    assert first.folder == own_library / "sessions" / "first"
    assert saved.load("first", session.model).messages == session.messages
    (saved.root / ".edgelm-removed-1-0123abcd-third").mkdir()  # what a kill has left of another removal
    saved.remove("second")
    assert [path.name for path in saved.root.iterdir()] == ["first"]
    with pytest.raises(edgelm.ConfigError, match=r"There is no saved session 'second'\. Saved: first\."):
        saved.load("second", session.model)


def test_names_are_found_without_reading_a_conversation(own_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = SavedSessions()
    for age, name in enumerate(("newest", "middle", "oldest")):
        (saved.root / name).mkdir(parents=True)
        os.utime(saved.root / name, (10**9 - age, 10**9 - age))
    monkeypatch.setattr(saved_session, "_describe", None)
    assert saved.names() == ["newest", "middle", "oldest"]
    assert [one.text for one in suggestions("/resume m")] == ["middle"]
    with pytest.raises(edgelm.ConfigError, match=r"'midle'\. Did you mean middle\? Saved: newest, middle, oldest\.$"):
        saved.describe("midle")


@pytest.mark.parametrize("seconds", [-(10**12), 10**14])
def test_a_file_of_a_year_that_no_date_has_hides_neither_session_nor_package(
    seconds: int, session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, real = SavedSessions(), Path.stat
    saved.save("first", session)

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real(path, follow_symlinks=follow_symlinks)
        return os.stat_result((*found[:8], seconds, found[9]))  # most disks of tests keep no such year

    monkeypatch.setattr(Path, "stat", stat)
    modified = open_package(tiny_model_path()).modified  # the server writes it as a date
    years = {saved.sessions()[0].saved.year, datetime.datetime.fromtimestamp(modified, datetime.UTC).year}
    assert years <= {1969, 1970, 2999}


def test_of_many_sessions_an_error_names_a_few(own_library: Path) -> None:
    saved = SavedSessions()
    for number in range(500):
        (saved.root / f"talk-{number}").mkdir(parents=True)
    with pytest.raises(edgelm.ConfigError, match=r"and 490 more \(edgelm cache lists them\)\.$") as raised:
        saved.describe("other")
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", ".hidden", "x" * 101, "海" * 34, "a b", "\u0e48a", "a\u202eb", "con", "Com1.x", 5]
)
def test_a_name_that_could_leave_the_folder_is_refused(session: ChatSession, name: Any) -> None:
    with pytest.raises(edgelm.ConfigError, match="is not a name for a session: use letters, digits, and"):
        SavedSessions().save(name, session)


def test_a_folder_that_cannot_be_written_says_so(session: ChatSession, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(edgelm.ConfigError, match=r"cannot be written: .* Sessions are kept in EDGELM_HOME"):
        SavedSessions(tmp_path / "file").save("chat", session)


@pytest.mark.parametrize(
    "use",
    [
        lambda saved, _: saved.sessions(),
        lambda saved, session: saved.load("chat", session.model),
        lambda saved, _: saved.new_name("Why?"),
        lambda saved, session: session.save(saved.root),
    ],
)
def test_a_folder_that_cannot_be_read_says_so(
    session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[..., object]
) -> None:
    monkeypatch.chdir(tmp_path)
    way_out = r"cannot be read: .* Sessions are kept in EDGELM_HOME|is not written: .* Choose another folder\."
    with pytest.raises(edgelm.ConfigError, match=way_out):
        use(SavedSessions("x" * 300), session)
    assert list(tmp_path.iterdir()) == []


def test_a_session_that_cannot_be_read_says_so_and_hides_no_other(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = SavedSessions()
    for name in ("mine", "locked"):
        saved.save(name, session)
    folder, listed, opened = saved.root / "locked", Path.iterdir, Path.open

    def refuse(path: Path) -> None:
        if folder in (path, path.parent):  # what the system does to other users, and not to root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", lambda path: refuse(path) or listed(path))
    monkeypatch.setattr(Path, "open", lambda path, *mode, **options: refuse(path) or opened(path, *mode, **options))
    problem = {one.name: one.problem for one in saved.sessions()}
    assert problem["mine"] is None
    assert str(problem["locked"]).startswith(f"{folder} cannot be read: ")
    assert saved.describe("locked").problem == problem["locked"]
    result = invoke("cache")
    assert (result.exit_code, result.stderr) == (0, f"warning: locked: {problem['locked']}\n")
    with pytest.raises(edgelm.PackageError, match=f"Cannot read the saved session {folder}.*Permission denied"):
        saved.load("locked", session.model)


@pytest.mark.parametrize("step", ["is_dir", "names", "modified"])
def test_a_session_that_is_removed_while_they_are_listed_is_none(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    saved = SavedSessions()
    for name in ("mine", "gone"):
        saved.save(name, session)
    owner = {"is_dir": Path, "names": SavedSessions, "modified": saved_session}[step]
    original = getattr(owner, step)

    def removed_behind(*arguments: Any) -> Any:
        result = original(*arguments)
        if step != "is_dir" or arguments == (saved.root / "gone",):
            shutil.rmtree(saved.root / "gone", ignore_errors=True)
        return result

    monkeypatch.setattr(owner, step, removed_behind)
    assert [one.name for one in saved.sessions()] == ["mine"]


def test_the_command_says_that_the_sessions_cannot_be_read(own_library: Path) -> None:
    own_library.mkdir()
    (own_library / "sessions").touch()
    assert invoke("cache").stderr.startswith(f"error: {own_library / 'sessions'} cannot be read: ")
    assert offered("") == []


def test_the_command_lists_sessions(session: ChatSession) -> None:
    assert "No sessions are saved." in invoke("cache").stderr
    assert invoke("cache", "--json").stdout == "[]\n"
    SavedSessions().save("holidays", session)
    (SavedSessions().root / "broken").mkdir()
    (SavedSessions().root / ".edgelm-tmp-1-0123abcd-half").mkdir()  # what a kill has left
    result = invoke("cache")
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()}
    assert rows["NAME"] == ["NAME", "MODEL", "MESSAGES", "TOKENS", "SIZE", "SAVED"]
    assert rows["holidays"][1:4] == ["tiny-random", "2", str(session.context_used)]
    assert rows["broken"][1] == "(broken)"
    assert len(rows) == 3
    assert "warning: broken: There is no saved session in" in result.stderr
    listed = {row["name"]: row for row in json.loads(invoke("cache", "--json").stdout)}
    assert all(re.fullmatch(r"[\d-]{10}T[\d:.]+[+-]\d\d:\d\d", row["saved"]) for row in listed.values())
    assert listed["holidays"]["messages"] == 2
    assert offered("hol") == ["holidays"]


def test_a_session_writes_no_lines_of_the_list(own_library: Path) -> None:
    talk = {"model": "a\nb", "fingerprint": "", "system": None, "messages": [], "tokens": 0}
    for name, more in (("talk", {}), ("newer", {"c\nd": 1})):
        folder = SavedSessions().root / name
        folder.mkdir(parents=True)
        (folder / "conversation.json").write_text(json.dumps(talk | more))
    result = invoke("cache")
    assert [len(result.stdout.splitlines()), len(result.stderr.splitlines())] == [3, 1]
    assert "a⏎b" in result.stdout


def test_without_its_cache_a_session_is_small_and_goes_on(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat", with_cache=False)
    assert [path.name for path in (tmp_path / "chat").iterdir()] == ["conversation.json"]
    assert ChatSession.load(session.model, tmp_path / "chat").messages == session.messages


def test_a_cache_that_is_cleared_while_its_session_is_loaded_is_missing(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, read = SavedSessions(), SavedCache.read
    saved.save("sea", session)
    monkeypatch.setattr(SavedCache, "read", lambda *about: saved.forget_cache("sea") or read(*about))
    assert saved.load("sea", session.model).messages == session.messages


def test_another_model_goes_on_with_the_text_where_it_is_let(session: ChatSession, tmp_path: Path) -> None:
    session.save(tmp_path / "chat")
    other = fresh_model()
    files = (*other.manifest.files, describe_file(tmp_path / "chat" / "conversation.json"))
    other.manifest = dataclasses.replace(other.manifest, files=files)
    with pytest.raises(edgelm.PackageError, match="belongs to the model"):
        ChatSession.load(other, tmp_path / "chat")
    restored = ChatSession.load(other, tmp_path / "chat", any_model=True)
    assert (restored.messages, restored.system, restored.context_used) == (session.messages, session.system, 0)


def test_a_new_name_is_made_of_the_first_words(session: ChatSession) -> None:
    saved = SavedSessions()
    assert saved.new_name("Why is the sea blue, and the sky too?") == "why-is-the-sea-blue-and"
    assert saved.new_name("为什么海是蓝色的？") == "为什么海是蓝色的"
    assert saved.new_name("海" * 100) == "海" * 20
    assert saved.new_name("Почему море синее, а?") == "почему-море-синее-а"
    assert saved.new_name("ทำไม ที่นี่!") == "ทำไม-ที่นี่"
    assert saved.new_name("\u1112\u1161\u11ab\u1100\u1173\u11af ガ") == "한글-ガ"  # as macOS parts them
    assert saved.new_name("바다는" * 20) == "바다는" * 6 + "바다"  # each syllable whole, of up to three letters
    assert saved.new_name(unicodedata.normalize("NFD", "색" * 50)) == "색" * 20
    assert saved.new_name("☀️ 👍🏽!") == "chat"
    assert saved.new_name("❤️sea 1️⃣") == "sea-1"
    assert saved.new_name("Écris-moi un poème sur la fête") == "ecris-moi-un-poeme-sur-la"
    assert saved.new_name("e\u0301t\u00e9 stra\u00dfe \u0130stanbul") == "ete-strasse-istanbul"
    assert saved.new_name("ﬃ" * 40) == ("ffi" * 14)[:40]
    assert saved.new_name("a" * 500) == "a" * 40
    assert saved.new_name("Con?") == "con-2"  # Windows has no folder of the other name
    saved.save("chat", session)
    assert saved.new_name("") == "chat-2"
    assert saved.describe("chat").messages == 2
    for text in ("为什么海是蓝色的？", "ทำไมที่นี่", "हिन्दी में क्यों"):
        name = saved.new_name(text)
        saved.save(name, session)
        assert (saved.describe(name).messages, saved.names().count(name)) == (2, 1)


def test_a_new_name_is_one_that_the_disk_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("latin-1"))
    assert SavedSessions().new_name("漢字") == "chat"
    assert SavedSessions().new_name("sea") == "sea"
