"""A window that answers while it stays alive: python examples/tk_window.py [MODEL]"""

import queue
import sys
import threading
import tkinter as tk

import edgelm

session = edgelm.ChatSession(edgelm.load(sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"))
config = session.model.generation_config.replace(context_shift=0)  # a long conversation drops its oldest part
arrived, turn, window = queue.Queue[str](), threading.Lock(), tk.Tk()  # the main thread alone may touch Tk's widgets
conversation, question = tk.Text(window, wrap="word"), tk.Entry(window)


def answer(text: str) -> None:
    with turn:  # a session answers one question after the other
        arrived.put(f"> {text}\n")
        for chunk in session.send(text, config):
            arrived.put(chunk.text)
        arrived.put("\n\n")


def ask(_event: object) -> None:
    threading.Thread(target=answer, args=(question.get(),), daemon=True).start()
    question.delete(0, "end")


def show() -> None:
    while not arrived.empty():
        conversation.insert("end", arrived.get())
    window.after(30, show)


conversation.pack(fill="both", expand=True)
question.pack(fill="x")
question.bind("<Return>", ask)
question.focus()
show()
window.mainloop()
