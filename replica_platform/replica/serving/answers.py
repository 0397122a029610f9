"""The last good answer to each question, for when no generation can be read."""

import threading
from collections import OrderedDict
from typing import Any

ANSWERS = 64
ROWS = 100_000

# The answer's form (rows, arrow or df), the SQL, and its parameters.
Question = tuple[str, str, str]


class Answers:
    """The last answers, up to `ANSWERS` of at most `ROWS` rows each; thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._answers: OrderedDict[Question, Any] = OrderedDict()

    def remember(self, question: Question, answer: Any) -> None:
        """Keep an answer, and forget the one that was asked longest ago."""
        if len(answer) > ROWS:
            return
        if question[0] == "df":
            answer = answer.copy()  # the caller may change their own
        with self._mutex:
            self._answers[question] = answer
            self._answers.move_to_end(question)
            while len(self._answers) > ANSWERS:
                self._answers.popitem(last=False)

    def __contains__(self, question: Question) -> bool:
        return question in self._answers

    def __getitem__(self, question: Question) -> Any:
        return self._answers[question]
