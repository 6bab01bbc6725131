"""``foveal serve``: the page on this machine.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from foveal.errors import FovealError
from foveal.terminal import write_out


def serve(
    weights: list[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_hosts: list[str] | None = None,
    device: str = "auto",
    blocks: list[str] | None = None,
) -> int:
    """Open a page on this machine where one moves over an image or a clip and sees what each point attends to.

    It begins with a few validation images of the data that the first weights were trained on, where these are files of
    this machine, and with bundled images; any image can be dropped on it. Weights of clips play clips: animated images,
    and videos where PyAV is installed.

    Args:
        weights: Weights files of runs, or models with published weights; repeat the option to compare several side by
            side. Default: the small network that comes with foveal, trained on the bundled scenes.
        host: Address to listen on. The default is reachable from this machine alone; anybody who can reach the
            address may use the page.
        port: Port to listen on.
        allow_hosts: Names besides localhost and IP addresses by which the page may be called.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    import socket

    from foveal.inference import open_bundled, predictor
    from foveal.look.images import bundled_images, own_images
    from foveal.look.page.server import make_app, run_server

    if not 0 <= port <= 65535:
        raise FovealError(f"port must be from 0 to 65535, got {port}")
    ready = [predictor(path, device, blocks) for path in weights or []] or [open_bundled()]
    generates = any(hasattr(one.task, "sample") for one in ready)
    examples, note = ([], "") if generates else own_images(ready[0])
    if not generates:
        examples += bundled_images(ready[0])
    # before it listens, for it may refuse
    app = make_app(ready, examples, allow_hosts=tuple(allow_hosts or ()))
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    if note:
        write_out(f"{note}\n")
    print(f"open http://{shown}:{port} (Ctrl-C ends)", flush=True)
    run_server(app, listener)
    return 0
