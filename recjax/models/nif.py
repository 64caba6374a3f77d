"""NIF, stage 1: a generator pre-trained to output the flow of a user's next interests. Stage 2 is recjax/models/amen.py.

C. Gao et al., "Next Interest Flow: A Generative Pre-training Paradigm for Recommender Systems by Modeling All-domain
Movelines", arXiv 2510.11317. Only abstracts and third-party summaries could be read: *no equation and no hyper-parameter
of it is known*. What is the paper's: a Transformer decoder that outputs a dense vector sequence from the moveline (a
user's behaviours over all scenes of an app, whose carrier is the scene, not the item) [P, abstract; T, summaries], trained by
InfoNCE with a diversity and a velocity regulariser [T], which v2 obtains by a tangent-space decomposition and by geodesic
regularisation [P]. All formulas here are ours [OUR]:

    x_t  = LayerNorm(sum of the event's id embeddings + E_gap[log2 bucket of the gap to the event before])
    H    = two causal pre-LN Transformer layers with RoPE over x                                   moveline [B, L, d]
    e_i  = sum of the item's id embeddings, T(i) = unit(MLP(e_i)), S = e of past items + E_age     item tower, history
    F    = unit(O W_f), O = two layers of {causal self-attention over K learned queries; cross-attention to [H ; S]; FFN}

decoder="parallel" (default) is one pass, alike in training and serving; "ar" also gives slot k the point before it, the
target's in training. Targets are the next K positive interactions, in order, z*_k = T(i_k), and

    l_j   = <f_k, z_j> / tau - log(n_b share_j + n_u / |I|)
    L_gen = mean over slots of -log exp(l_+) / sum over {+, targets of other users, uniform items, own unclicked items} exp(l_j)

with false negatives (the user's own targets) masked. `share_j`, item j's share of targets, and all negatives come from the
loader, so the share is that of the whole stage-1 window and not a running one. With P_0 the last clicked item (no
gradient), P_k = f_k and the motion of recjax.layers.sphere (starred: of the targets' trajectory, no gradient)

    L_div = mean max(0, n*_k - n_k)^2      "tangent"; "cosine" (stand-in for v1): mean over j < k of max(0, <f_j, f_k> - 1/2)^2
    L_vel = mean max(0, |a_k| - |a*_k|)^2  "accel_matched"; "accel" mean |a_k|^2, "energy" mean theta_k^2,
                                           "speed_matched" mean (theta_k - theta*_k)^2, "cosine" mean 1 - <f_k, f_{k+1}>
    L_1   = L_gen + lambda_div L_div + lambda_vel L_vel

The true trajectory is a zero of both default terms. The unmatched modes pull towards geodesics, on which nothing is new: keep
their weights at 0.03 or less.

target="codes" is the control that discretises: the same generator, trained by cross-entropy to name the residual-quantised
codes of T(i), T and its tables being those of a finished dense run (`init_from`), frozen.

Deviations from our own specification: targets begin at the cut-off, with the request's own positives; every request of stage 1 is
a cut-off, not four a user and epoch; no weight decay; the history carries an age embedding too (without it S would be a set); tables
may be narrower than d (a Dense widens), so that grades leave them alone.

Metrics: `nce_loss`, and `hr10`, `hr50`, `hr10/slot_k`: how often a target is among the ten (fifty) best of the distinct targets of
other users and uniform items *of its evaluation batch*; compare them at one eval.batch only. `hr10_popular` and `hr10_last` are
the same of two rivals: an item's share of the targets, and nearness to the last clicked item.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from recjax.layers.moveline import Fields
from recjax.models.parts import building, nif_codes, nif_stage
from recjax.models.parts.nif_generator import Generator, generator_tables, user_of
from recjax.schema import Schema
from recjax.system import System


def build(
    schema: Schema,
    *,
    table: Mapping[str, Any] = {},
    compute_dtype: str = "float32",
    param_dtype: str = "float32",
    slots: int = 8,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    decoder: str = "parallel",
    moveline_with_item: bool = False,
    tau: float = 0.1,
    diversity: str = "tangent",
    velocity: str = "accel_matched",
    div_weight: float = 0.1,
    vel_weight: float = 0.1,
    target: str = "dense",
    codes: tuple[int, int] = (3, 32),
    user_key: str = "user",
    patience: int = 0,
) -> System:
    """Stage 1 as a system; its tables are named generator/<id space>.

    Args:
      schema: With a history list, a moveline, and the target lists `LISTS` (recjax.data.store.movelines).
      table: To `Schema.tables`; 16 wide unless it says otherwise.
      compute_dtype: Of activations; geometry and losses are float32.
      param_dtype: Of dense parameters.
      slots: K; data.history.next must be at least as long.
      width: d.
      heads: Of all attention; divides the width.
      layers: Of the moveline's encoder and of the decoder, each.
      decoder: "parallel" or "ar".
      moveline_with_item: Whether events show their item (an ablation: the carrier is the scene).
      tau, diversity, velocity, div_weight, vel_weight: Of `Objectives`.
      target: "dense" (InfoNCE) or "codes" (cross-entropy on residual-quantised targets, the control).
      codes: Levels and codes a level of the control.
      user_key: Group key of users.
      patience: Evaluations without a better `nce_loss` before training stops; 0: never.
    """
    for option, value in dict(decoder=decoder, target=target).items():
        building.check_choice("nif", option, value, nif_stage.CHOICES[option])
    if width % (2 * heads):
        raise ValueError(f"nif: heads={heads} must divide width={width} into even parts")
    found = Fields.of(schema, moveline_with_item)
    goal = nif_stage.Objectives(tau, diversity, velocity, div_weight, vel_weight)
    module = Generator(
        found, slots, width, heads, layers, decoder,
        tuple(codes) if target == "codes" else (),
        jnp.dtype(compute_dtype), jnp.dtype(param_dtype),
    )  # fmt: skip
    tables = generator_tables(schema, found, table)
    stage = nif_stage.Stage(
        schema, module, goal, nif_stage.Reader(schema, found), user_of(schema, user_key)
    )
    if target == "codes":
        if decoder != "parallel":
            raise ValueError(
                "nif: target='codes' has no point to feed back; set decoder='parallel'"
            )
        return nif_codes.make_system(stage, tables, patience)
    return nif_stage.make_system(stage, tables, patience)
