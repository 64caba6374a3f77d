"""One of two processes (tests/runtime/test_hosts.py starts them).

python -m tests.on_hosts <out.json>            what `in_step` and `from_first` make of different inputs
python -m tests.on_hosts <config> <workdir>    trains; process 1 receives SIGTERM while it evaluates
"""

import json
import os
from pathlib import Path
import signal
import sys

import numpy as np

from recjax.runtime import hosts


def batches(widths: list[int], rows: int) -> list[dict]:
    """Lists of `width` unique ids [2, width] each; the last slot is not used."""
    ids = [np.tile(np.append(np.arange(w - 1), rows + w - 1), (2, 1)) for w in widths]
    return [{"ids": {"item": x.astype(np.int32)}, "row": x[:, :1]} for x in ids]


def interrupted_evaluation(config: str, workdir: str) -> None:
    import jax

    from recjax import configs, train
    from recjax.evaluation.evaluator import Evaluator

    put = Evaluator.put

    def put_and_signal(self, batch):
        if jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, batch)

    Evaluator.put = put_and_signal
    train.train(configs.load(config), workdir)


def agreement(out: str) -> None:
    import jax

    from recjax import embedding
    from recjax.runtime import mesh as meshes
    from recjax.runtime.run import Interrupted, Stop
    from recjax.schema import IdSpace, Schema, Table

    schema, table = Schema((IdSpace("item", 40),), ()), Table("item", 4)
    plan = embedding.plan((table,), schema, meshes.make(), {}, ((".*", "row:all_to_all"),))
    stop, seen, stopped = Stop(), [], -1
    mine = batches([[4, 4, 6, 4, 4, 4], [4, 8, 4, 4, 4, 4]][jax.process_index()], 40)
    try:
        for k, batch in enumerate(hosts.in_step(mine, plan, stop)):
            ids = batch["ids"]["item"]
            width = plan.route(batch)["exchange"]["send"]["item"].shape
            need = batch["exchange"]["need"]["item"]
            seen.append([ids.shape[1], (ids[0] < 40).sum().item(), ids[0, -1].item(), need, *width])
            stop.raise_if_requested()
            if k == 1 and jax.process_index() == 1:  # only one of them receives it
                stop.signum = int(signal.SIGTERM)
    except Interrupted as e:
        stopped = e.code
    told = hosts.from_first({"auc": 0.5 + jax.process_index(), "n": np.int64(3)})
    Path(out).write_text(json.dumps(dict(seen=seen, stopped=stopped, told=told)))


if __name__ == "__main__":
    with hosts.joined():
        agreement(*sys.argv[1:]) if len(sys.argv) == 2 else interrupted_evaluation(*sys.argv[1:])
