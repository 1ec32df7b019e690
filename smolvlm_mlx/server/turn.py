"""A question and its answer on their way into the history."""

from threading import Lock

from ..inputs.messages import Message
from ..tasks.history import History
from ..tasks.saving import Saved
from .answer import Answer, Keeping


class Turn:
    """Keeps them. One step at a time, in threads: a step for which nobody waits any more does
    nothing after the end."""

    def __init__(self, history: History, id: str, answer: Answer, model: str):
        self.answer, self._history, self._id, self._model = answer, history, id, model
        self._asked: Saved | None = None  # the question
        self._came: tuple[int, Message] | None = None  # the answer where and as it is kept
        self._seen: set[int | None] | None = None  # where the leaf is that may move to the answer
        self._lock, self._is_over = Lock(), False

    def begin(self) -> None:
        """Keep the question."""
        with self._lock:
            if not self._is_over:
                self._begin()

    def _begin(self) -> None:
        saved = self._save()
        self.answer.after = saved.path[-1] if saved.path else None
        self._asked = saved
        self._seen = {*saved.path, saved.leaf}

    def go_on(self, came: Message) -> None:
        """Keep the answer as far as it has come, as one that was interrupted: it is one, should
        this process be killed."""
        with self._lock:
            if self._is_over:
                return
            if self._seen is None:  # the history was locked before
                self._begin()
            if self._came is not None:
                at, before = self._came
                is_there = self._history.extend(self._id, at, before, came)
                self._came = (at, came) if is_there else None  # else it is kept anew
            elif self.answer.choices[0].text.strip():
                self._came = self._save(came).path[-1], came

    def end(self) -> Keeping:
        """Keep the answer, if there is a word of it."""
        with self._lock:
            self._is_over = True
            if self.answer.has_failed:
                if self._asked is not None and not self.answer.is_left:
                    self._history.take_back(self._id, self._asked)  # and whoever asked has it
                return Keeping(None)
            message = self.answer.message()
            saved = self._save(*([message] if message.text or not message.interrupted else []))
        return Keeping(self._history.places(self._id, saved.path[-1] if saved.path else None))

    def _save(self, *more: Message) -> Saved:
        messages = [*self.answer.messages, *more]
        saved = self._history.save(self._id, messages, self._model, self._seen)
        if self._seen is not None:
            self._seen.update(saved.path)
        return saved
