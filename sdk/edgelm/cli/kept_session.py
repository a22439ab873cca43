"""KeptSession: the place of a chat among the saved sessions."""

from __future__ import annotations

from edgelm.chat_session import ChatSession
from edgelm.language_model import LanguageModel
from edgelm.saved_session import CONVERSATION_FILE, SavedSessions


class KeptSession:
    """Keep a chat on the disk, turn by turn, under a name made of its first words.

    with_cache: what `finish` writes of it has its keys and values too, so that nothing is computed again later.
    """

    def __init__(self, *, with_cache: bool = False) -> None:
        self.name: str | None = None  # None: nothing is kept yet
        self.is_whole = True  # until the disk refuses what was said last
        self._with_cache = with_cache
        self._written: tuple[int, int] | None = None

    def resume(self, name: str, model: LanguageModel) -> ChatSession:
        """Go on with a saved session, also one that another model held.

        Raises:
            ConfigError: there is none of that name.
            PackageError: it is broken.
        """
        session = SavedSessions().load(name, model, any_model=True)
        self.name, self._written, self.is_whole = name, self._state(name), True
        return session

    def begin_anew(self) -> None:
        """Leave the session that is kept as it is, and keep what comes next as another one."""
        self.name, self._written, self.is_whole = None, None, True

    def keep(self, session: ChatSession, *, with_cache: bool = False) -> str | None:
        """Write the session; return a remark where it had to take another name.

        Raises:
            ConfigError: the disk cannot be written.
        """
        if not session.messages:
            return None
        saved, former, name = SavedSessions(), self.name, self.name
        self.is_whole = False
        with saved.lock():  # several chats that begin with the same words end at once, as those of a script do
            # Two chats that went on with one session: the second must not write over what the first has said.
            changed = former is not None and self._state(former) not in (None, self._written)
            if name is None:
                name = saved.new_name(session.messages[0]["content"] or "")
            elif changed:
                name = saved.new_name(name)
            saved.save(name, session, with_cache=with_cache)
            self.name, self._written, self.is_whole = name, self._state(name), True
        return f"{former} was changed by another chat; this one is kept as {name}." if changed else None

    def finish(self, session: ChatSession) -> None:
        """Write the keys and values of a session that is left, where they are wanted.

        Raises:
            ConfigError: the disk cannot be written.
        """
        if self._with_cache:
            self.keep(session, with_cache=True)

    def _state(self, name: str) -> tuple[int, int] | None:
        """Tell one state of a saved session from another; None: it is gone."""
        try:
            status = (SavedSessions().root / name / CONVERSATION_FILE).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
