"""The console: python -m scaling.console --runs=runs/ --artifact=artifacts/student

Opens nothing but a port of this machine (http://127.0.0.1:8100) and writes nothing. Beyond loopback it needs a token, from
RECJAX_TOKEN or --token_file. Artifacts hold compiled programs: give only those that you trust.
"""

import pathlib
import sys

from absl import flags

from recjax import command

try:
    import uvicorn

    from recjax.serving.serve import read_token
    from scaling.console.app import Console
except ModuleNotFoundError as e:
    package = (e.name or "").partition(".")[0]
    if package in ("recjax", "scaling"):
        raise
    sys.exit(f"error: the console needs the package {package}; pip install -e '.[console]'")

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(_) -> None:
    for path in (*_RUNS.value, *_ARTIFACT.value):
        if not pathlib.Path(path).is_dir():
            raise ValueError(f"{path} is no folder; give existing ones to --runs and --artifact")
    token = read_token(_TOKEN_FILE.value)
    if _HOST.value not in LOOPBACK and not token:
        raise ValueError(
            f"--host={_HOST.value} is beyond loopback and needs a token: RECJAX_TOKEN or --token_file"
        )
    hosts = (*LOOPBACK, _HOST.value, *_NAME.value)
    console = Console(_RUNS.value, _ARTIFACT.value, hosts, token)
    config = uvicorn.Config(
        console, interface="asgi3", host=_HOST.value, port=_PORT.value, log_level="warning", ws="none", server_header=False, timeout_graceful_shutdown=2,
    )  # fmt: skip
    print(f"http://{_HOST.value}:{_PORT.value}/  (Ctrl-C ends)", flush=True)
    uvicorn.Server(config).run()


if __name__ == "__main__":
    _RUNS = flags.DEFINE_multi_string(
        "runs", ["runs"], "folder of runs, sweeps and prepared data; may be repeated"
    )
    _ARTIFACT = flags.DEFINE_multi_string(
        "artifact", [], "export for the playground; may be repeated"
    )
    _HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on")
    _PORT = flags.DEFINE_integer("port", 8100, "port", 1, 65535)
    _NAME = flags.DEFINE_multi_string(
        "name", [], "further Host name that a proxy in front asks for"
    )
    _TOKEN_FILE = flags.DEFINE_string(
        "token_file", "", "file with the token that clients must show"
    )
    command.run(main)
