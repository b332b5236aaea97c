"""What a command's exit code says, to people in the help and the reference, and to scripts."""

DONE, FAULT, REFUSED, INTERRUPTED = 0, 1, 2, 130

# Code, in a word, and when.
CODES = (
    (DONE, "done", "All that was asked for is there."),
    (REFUSED, "refused in one sentence on stderr",
     "Something given is not as it must be: a setting, a file, a model, data, a budget that cannot be met, a full disk."),
    (INTERRUPTED, "interrupted", "By Ctrl-C. The same `fit`, `measure` or `export` continues from what is done."),
    (FAULT, "a fault of modicum's own, with its traceback", "`modicum env` tells what a report of it needs; `--log-file` keeps the traceback."),
)  # fmt: skip
