"""A process that has imported everything and forks: one trial of a command costs its own work, not the imports.

It reads requests from its standard input, a JSON object a line: ``words`` of the command line or ``code`` to run,
with ``cwd``, ``out`` and ``err`` (files). It answers with the process number of the child, and later, asked by
``wait``, with its exit status or null.
"""

import json
import os
import sys
import time
import traceback


def child(request):
    os.setsid()
    os.chdir(request["cwd"])
    # not the request line's: a command must not read what is meant for the zygote
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    status = 1
    try:
        if "code" in request:
            exec(compile(request["code"], "<trial>", "exec"), {"__name__": "__trial__"})
            status = 0
        else:
            from foveal.cli import main

            status = main(request["words"])
    except SystemExit as request_to_end:
        status = request_to_end.code if isinstance(request_to_end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def waited(pid, seconds):
    """The exit status, minus the signal's number where one ended it; None if it is still running then."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.02)


def main():
    import torch

    import foveal.cli.commands
    import foveal.cli.look
    import foveal.cli.serve
    import foveal.compare
    import foveal.evaluate
    import foveal.look.pictures
    import foveal.predict
    import foveal.published.verb
    import foveal.tasks.classify.loss
    import foveal.tasks.classify.metric
    import foveal.tasks.classify.prediction
    import foveal.tasks.segment.loss
    import foveal.tasks.segment.metric
    import foveal.tasks.segment.prediction
    import foveal.train.run  # noqa: F401
    from foveal.data.scenes.render import sources
    from foveal.ops.whole_gate import compile_kernels

    torch.set_num_threads(1)
    compile_kernels()
    for split in ("train", "val", "test"):
        sources(split, 64)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps(waited(request["wait"], request["seconds"])), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(request)
        print(json.dumps(pid), flush=True)


if __name__ == "__main__":
    main()
