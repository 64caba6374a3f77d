"""Small faults that the tests must notice: `python -m tests.mutate` tries them. Each is one that a tired hand could make.

A mutant whose line has moved or changed follows the code here (`tests/test_mutate.py` says so); one that no test could
notice carries the reason in `equivalent`.
"""

from collections.abc import Iterator, Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
      name: Of its own, an identifier.
      file: From the checkout's root.
      old: Part of a line that stands in the file exactly once.
      new: What the fault makes of it.
      tests: The nearest tests, as pytest takes them.
      equivalent: Why nothing could tell the two apart; "": something could.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""


def _in(file: str, tests: Sequence[str], *faults: tuple[str, ...]) -> Iterator[Mutant]:
    """The mutants (name, old, new[, equivalent]) of one file."""
    for name, old, new, *equivalent in faults:
        yield Mutant(name, file, old, new, tuple(tests), *equivalent)


MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------------------------------ training
    *_in(
        "recjax/training/optim.py",
        ["tests/training/test_optim.py"],
        ("clip_rows", "for path, g in row_grads.items():", "for path, g in ():"),
        (
            "clip_dense",
            "(names, jax.tree.leaves(dense_grads), strict=True)",
            "((), (), strict=True)",
        ),
        ("clip_square", "jnp.sqrt(s)", "s"),
        ("clip_enlarges", "jnp.minimum(1.0, max_norm /", "(max_norm /"),
        ("decay_biases", "x.ndim > 1", "x.ndim > 0"),
        ("warmup_late", "(step + 1) / (warmup + 1)", "step / (warmup + 1)"),
        ("warmup_early", "(step + 1) / (warmup + 1)", "(step + 1) / max(warmup, 1)"),
        ("decay_begins", "jnp.maximum(step - warmup, 0)", "step"),
        ("decay_lasts", "max(total_steps - warmup, 1)", "max(total_steps, 1)"),
        (
            "cosine_half",
            "optax.cosine_decay_schedule(1.0, steps)",
            "optax.cosine_decay_schedule(1.0, 2 * steps)",
        ),
        (
            "row_schedule",
            "next((n for p, n in rules if re.search(p, path)), config.opt.schedule)",
            "config.opt.schedule",
        ),
        ("group_rate", "config.group_lr.get(n, config.lr)", "config.lr"),
    ),
    *_in(
        "recjax/training/step.py",
        ["tests/training/test_step.py"],
        ("bad_dense", "jnp.where(good, n, o)", "n"),
        ("bad_rows", "m.only_if(good)", "m"),
        ("step_weight", "t + real(w * g, 0.0)", "t + real(g, 0.0)"),
        ("step_state", "state = jax.tree.map(real, state, before)", "pass"),
        ("step_parts", "part, jax.random.fold_in(rng, i))", "part, rng)"),
        ("step_draws", 'stream(key, "loss", number)', 'stream(key, "loss", 0)'),
        ("step_clip", "g * clip[n], g_dense, groups", "g, g_dense, groups"),
        (
            "step_clip_rows",
            'm._replace(grads=m.grads * clip[optim.group_of(system, f"tables/{p}")])',
            "m",
        ),
        ("step_rate", "rate * (lr_scale * factor(number))", "rate * factor(number)"),
        ("step_rate_rows", "r * (lr_scale * factors[p](number))", "r * factors[p](number)"),
        (
            "step_schedule_rows",
            "r * (lr_scale * factors[p](number))",
            "r * (lr_scale * factor(number))",
        ),
        ("step_finite", "m.only_if(good)", "m"),
    ),
    *_in(
        "recjax/training/loop.py",
        ["tests/training/test_selection.py"],
        ("select_mode", 'sign = 1 if rule.mode == "max" else -1', "sign = 1"),
        ("select_patience", "bad >= rule.patience", "bad > rule.patience"),
        ("select_equal", "sign * value > sign * best", "sign * value >= sign * best"),
    ),
    *_in(
        "recjax/training/window.py",
        ["tests/training/test_step.py"],
        ("window_bad", "self.bad + ~good", "self.bad"),
        ("window_first", "step + 1, self.first", "step, self.first"),
    ),
    *_in(
        "recjax/training/step.py",
        ["tests/training/test_keys.py"],
        ("key_twice", 'stream(key, "loss", number)', 'stream(key, "after_step", number)'),
    ),
    # ----------------------------------------------------------------------------------- embedding
    *_in(
        "recjax/embedding/optimizers.py",
        ["tests/embedding/test_optimizers.py", "tests/embedding/test_tables.py"],
        (
            "adagrad_sum",
            'acc = state["acc"] + mean(jnp.square(grads))',
            'acc = state["acc"] + jnp.square(grads).sum(-1)',
        ),
        (
            "adagrad_late",
            'return rows - lr * grads / (jnp.sqrt(acc) + EPS), {"acc": acc}',
            'return rows - lr * grads / (jnp.sqrt(state["acc"]) + EPS), {"acc": acc}',
        ),
        ("adam_count", 'count = state["count"] + touched', 'count = state["count"] + 1'),
        (
            "adam_untouched",
            "return jnp.where(touched[:, None], rows - lr * step, rows), {",
            "return rows - lr * step, {",
        ),
        ("adam_bias", "(mu / left(b1))", "mu"),
        (
            "ftrl_start",
            '"linear": -rows.astype(jnp.float32) * jnp.sqrt(n)',
            '"linear": 0 * rows.astype(jnp.float32)',
        ),
        ("ftrl_shrink", "jnp.abs(linear) - lr * l1", "jnp.abs(linear) - l1"),
        (
            "ftrl_untouched",
            "jnp.where(grads == 0, rows, -shrunk / jnp.sqrt(acc))",
            "-shrunk / jnp.sqrt(acc)",
        ),
        ("round_nearest", "(noise & 0xFFFF)", "0x8000"),
        ("round_columns", "(columns.astype(jnp.uint32) + seed[1])", "seed[1]"),
    ),
    *_in(
        "recjax/embedding/__init__.py",
        ["tests/embedding/test_tables.py", "tests/training/test_optim.py"],
        ("table_scale", "* t.init_scale", "* 1.0"),
        ("padding_row", ".at[PAD, : t.dim].set(0)", ".at[PAD, : t.dim].set(1)"),
        ("padding_norm", '(batch["ids"][t.id_space] != PAD)', '(batch["ids"][t.id_space] >= PAD)'),
        ("row_decay", "grads = grads + t.l2 * before", "grads = grads - t.l2 * before"),
        ("row_rate", "t.lr if rates is None else rates[t.path]", "t.lr"),
        ("row_shrink", "l1=t.l1", "l1=0.0"),
    ),
    *_in(
        "recjax/embedding/lanes.py",
        ["tests/embedding/test_lanes.py"],
        ("lane_part", "part = (ids % k)[..., None]", "part = (ids // k)[..., None]"),
        ("lane_sibling", "for shift in range(k):", "for shift in range(1):"),
        ("lane_first", "row[1:] != row[:-1]", "row[1:] == row[:-1]"),
        ("lane_narrow", "if NARROWEST <= dim < LANES", "if dim < LANES"),
    ),
    *_in(
        "recjax/embedding/placement.py",
        [
            "tests/embedding/test_capacity.py",
            "tests/embedding/test_sharded.py::test_the_planner_s_choices",
            "tests/embedding/test_sharded.py::test_a_dense_sum_is_for_tables_no_larger_than_a_step_s_ids",
            "tests/embedding/test_sharded.py::test_capacity_covers_a_binomial_bucket",
        ],
        ("capacity_tail", "inv_cdf(chance / owners**2)", "inv_cdf(chance)"),
        ("capacity_spread", "z * self.deviation * math.sqrt(scale) + 1", "1"),
        ("small_tables", "small = skew is None or rows <= n * skew.slots", "small = True"),
        ("column_width", "(lanes.LANES if tpu else 8) * n:", "8 * n:"),
    ),
    *_in(
        "recjax/embedding/exchange.py",
        ["tests/embedding/test_tables.py"],
        ("merge_sum", "ids_sorted[1:] != ids_sorted[:-1]", "ids_sorted[1:] >= ids_sorted[:-1]"),
    ),
    # -------------------------------------------------------------------------------------- layers
    *_in(
        "recjax/layers/attention.py",
        ["tests/layers/test_attention.py"],
        ("softmax_empty", "e / jnp.where(total > 0, total, 1.0)", "e / total"),
        (
            "attention_scale",
            "logits = logits / math.sqrt(q.shape[-1])",
            "logits = logits / q.shape[-1]",
        ),
        (
            "bucket_last",
            "jnp.floor(jnp.log(gap) / BUCKET_WIDTH), 0, num_buckets)",
            "jnp.floor(jnp.log(gap) / BUCKET_WIDTH), 0, num_buckets - 1)",
        ),
        ("bias_direction", "length - 1 - distance", "length - 1 + distance"),
        (
            "bucket_reach",
            "int(math.log(2**31) / BUCKET_WIDTH) + 1",
            "int(math.log(2**31) / BUCKET_WIDTH)",
        ),
    ),
    *_in(
        "recjax/layers/mlp.py",
        ["tests/layers/test_mlp.py"],
        (
            "mlp_dropout",
            "nn.Dropout(self.dropout, deterministic=not train)",
            "nn.Dropout(self.dropout, deterministic=train)",
        ),
        ("norm_average", "use_running_average=not train", "use_running_average=False"),
        ("norm_mask", "mask=None if valid is None else valid[..., None]", "mask=None"),
        ("dice_sides", "s * x + (1 - s) * a * x", "(1 - s) * x + s * a * x"),
        ("prelu_slope", "nn.initializers.constant(0.25)", "nn.initializers.constant(1.0)"),
        (
            "swiglu_gate",
            'gate = nn.silu(dense(hidden, name="w1")(x))',
            'gate = dense(hidden, name="w1")(x)',
        ),
        ("logit_mask", "(logit, train=train, valid=valid)", "(logit, train=train)"),
    ),
    *_in(
        "recjax/layers/norm.py",
        ["tests/layers/test_norm.py"],
        ("norm_eps", "rms + self.eps", "rms"),
        (
            "norm_mean",
            "jnp.mean(jnp.square(x), -1, keepdims=True)",
            "jnp.var(x, -1, keepdims=True)",
        ),
    ),
    *_in(
        "recjax/layers/transformer.py",
        ["tests/layers/test_transformer.py"],
        (
            "block_dropout",
            "nn.Dropout(self.dropout, deterministic=not train)",
            "nn.Dropout(self.dropout, deterministic=train)",
        ),
        (
            "block_residual",
            'x = x + drop(nn.Dense(width, name="out", **types)(out))',
            'x = drop(nn.Dense(width, name="out", **types)(out))',
        ),
        ("block_norm", "y = norms[1](x) if self.pre_norm else x", "y = x"),
        ("block_mask", "attend(q, k, v, mask[:, None])", "attend(q, k, v, mask[:, None] | True)"),
        (
            "block_probe",
            "q = q[:, :, -1:].astype(jnp.float32)",
            "q = q[:, :, :1].astype(jnp.float32)",
        ),
    ),
    *_in(
        "recjax/layers/target_attention.py",
        ["tests/layers/test_target_attention.py"],
        ("unit_mask", "jnp.where(seen, scores, 0.0)", "scores"),
        ("unit_empty", "jnp.where(mask.any(1)[:, None, None], out, empty)", "out"),
    ),
    *_in(
        "recjax/layers/pair_dense.py",
        ["tests/layers/test_pair_dense.py"],
        ("unit_difference", "[e, q, e - q, e * q]", "[e, q, e + q, e * q]"),
        ("pair_of_event", "w_e + w_d", "w_e - w_d"),
        ("pair_of_query", "w_q - w_d", "w_q + w_d"),
        ("pair_bias", "(q @ own_q + bias)", "(q @ own_q)"),
        ("pair_product", "(e[:, None] * q[:, :, None]) @ both", "0.0"),
    ),
    *_in(
        "recjax/layers/fields.py",
        ["tests/layers/test_fields.py"],
        ("field_twice", "free.remove(match)", "pass"),
        ("fold_valid", '{"valid": valid.reshape(-1, 1)}', "{}"),
        ("number_mask", "train, valid_of(inputs))", "train, None)"),
    ),
    *_in(
        "recjax/layers/tabular.py",
        ["tests/layers/test_tabular.py"],
        ("pooled_mean", "jnp.maximum(mask.sum(1), 1)", "mask.shape[1]"),
        (
            "tabular_mask",
            "valid = None if inputs.valid is None else inputs.valid.reshape(-1)",
            "valid = None",
        ),
    ),
    *_in(
        "recjax/layers/local_dilated.py",
        ["tests/models/test_lightsuan.py"],
        ("dilated_first", "(anchor - self.local) % self.dilation", "anchor % self.dilation"),
        (
            "dilated_shift",
            "late = _by_residue(_shift(y, pattern.first), r)\n    far",
            "late = _by_residue(_shift(y, pattern.first - 1), r)\n    far",
        ),
        (
            "band_previous",
            "previous = jnp.pad(both[:, 1:, :w], ((0, 0), (0, 1), (0, 0), (0, 0)))",
            "previous = 0.0",
        ),
        ("sparse_mean", "(w * (d - mean) for w, d in", "(w * d for w, d in"),
        (
            "shared_bias",
            "d if d is None or p.bias.shape[0] == d.shape[0] else d.sum(0, keepdims=True)",
            "d if d is None or p.bias.shape[0] == d.shape[0] else d[:1]",
        ),
    ),
    *_in(
        "recjax/layers/residual_quantizer.py",
        ["tests/layers/test_residual_quantizer.py"],
        (
            "codes_residual",
            "residual = residual - jax.lax.stop_gradient(found)",
            "residual = residual - found",
        ),
        (
            "codes_commitment",
            "beta * jnp.square(residuals - stop(chosen))",
            "beta * jnp.square(residuals - chosen)",
        ),
        (
            "codes_average",
            "self.decay * self.sums.value + (1 - self.decay) * sums",
            "self.decay * self.sums.value + sums",
        ),
        (
            "codes_weight",
            "counts = code_counts(codes, self.size, weight)",
            "counts = code_counts(codes, self.size)",
        ),
        (
            "codes_unused",
            "jnp.where(counts > 0, 0, self.unused.value + 1)",
            "self.unused.value + 1",
        ),
        ("codes_dead", "ready & (unused >= q.reset_after)", "ready & (unused > q.reset_after)"),
        ("codes_moved", 'state["counts"] = jnp.where(moved, 1.0, state["counts"])', "pass"),
    ),
    *_in(
        "recjax/layers/sphere.py",
        ["tests/layers/test_sphere.py"],
        (
            "sphere_transport",
            "/ jnp.maximum(1 + c, EPS) * (p + q)",
            "/ jnp.maximum(1 + c, EPS) * q",
        ),
        (
            "sphere_earlier",
            "earlier = jnp.arange(size) < jnp.arange(1, inner + 1)[:, None]",
            "earlier = jnp.arange(size) < jnp.arange(inner)[:, None]",
        ),
        ("sphere_bends", "bends=steps[..., :-1] & steps[..., 1:]", "bends=steps[..., 1:]"),
    ),
    *_in(
        "recjax/layers/hypergraph.py",
        ["tests/layers/test_hypergraph.py"],
        ("graph_mean", "total / jnp.where(count > 0, count, 1.0)[:, None]", "total"),
        (
            "graph_root",
            "(degree * _inverse_root(degree))[:, None]",
            "_inverse_root(degree)[:, None]",
        ),
        ("graph_writes", "len(incidence.weight), incidence.writes", "len(incidence.weight), None"),
        (
            "graph_self",
            "scaled_identity(1 / count) if self.identity",
            "scaled_identity(1.0) if self.identity",
        ),
    ),
    # -------------------------------------------------------------------------------------- models
    *_in(
        "recjax/models/parts/suan_block.py",
        ["tests/models/test_every_model.py::test_dropout_is_off_in_evaluation_and_on_in_training"],
        (
            "suan_dropout",
            "self.drop(update, deterministic=not train)",
            "self.drop(update, deterministic=train)",
        ),
    ),
    *_in(
        "recjax/layers/quadratic.py",
        ["tests/models/test_every_model.py::test_dropout_is_off_in_evaluation_and_on_in_training"],
        (
            "qin_dropout",
            "nn.Dropout(self.dropout, deterministic=not train)",
            "nn.Dropout(self.dropout, deterministic=train)",
        ),
    ),
    *_in(
        "recjax/models/din.py",
        ["tests/models/test_every_model.py::test_dropout_is_off_in_evaluation_and_on_in_training"],
        (
            "din_dropout",
            "x = mlp(x, train=train, valid=valid)",
            "x = mlp(x, train=False, valid=valid)",
        ),
    ),
    *_in(
        "recjax/models/logistic.py",
        ["tests/models/test_baselines.py"],
        ("logistic_mean", "jnp.maximum(events.sum(1), 1).astype(w.dtype)", "events.shape[1]"),
    ),
    *_in(
        "recjax/models/sasrec.py",
        [
            "tests/models/test_tin.py::test_sasrec_and_bst_keep_padding_out",
            "tests/models/test_tin.py::test_rivals_have_a_correlation_too",
        ],
        ("sasrec_order", "positions[::-1].astype(events.dtype)", "positions.astype(events.dtype)"),
        (
            "sasrec_causal",
            "mask[:, None] & jnp.tri(length, dtype=bool)",
            "mask[:, None] | jnp.tri(length, dtype=bool)",
        ),
        ("sasrec_empty", "(x[:, -1]) * mask[:, -1:]", "(x[:, -1])"),
    ),
    *_in(
        "recjax/models/tin.py",
        ["tests/models/test_tin.py"],
        ("tin_position", "jnp.arange(kept, 0, -1)", "jnp.arange(1, kept + 1)"),
        ("tin_heads", "math.sqrt(e.shape[-1])", "math.sqrt(events.shape[-1])"),
        ("tin_empty", "interest = interest * mask.any(1)[:, None, None]", "pass"),
    ),
    *_in(
        "recjax/layers/contrast.py",
        [
            "tests/models/test_aw_moe.py::test_info_nce_golden_values",
            "tests/models/test_aw_moe.py::test_masking_keeps_the_share_it_says_and_at_least_one",
            "tests/models/test_aw_moe.py::test_a_user_is_no_negative_of_himself_and_stands_once",
        ],
        ("contrast_own", "negative & ~jnp.eye(len(s), dtype=bool)", "negative"),
        (
            "contrast_share",
            "jax.random.bernoulli(keys[0], 1 - drop, mask.shape)",
            "jax.random.bernoulli(keys[0], drop, mask.shape)",
        ),
        ("contrast_once", "(same.argmax(1) == jnp.arange(len(user)))", "(same.argmax(1) >= 0)"),
    ),
    *_in(
        "recjax/models/aw_moe.py",
        [
            "tests/models/test_aw_moe.py::test_the_session_loss_is_a_softmax_over_the_candidates_of_a_request",
            "tests/models/test_aw_moe.py::test_monitors_are_loads_and_entropy",
        ],
        (
            "session_slots",
            "jnp.where(real, logits.astype(jnp.float32), -jnp.inf)",
            "logits.astype(jnp.float32)",
        ),
        (
            "session_labels",
            "return (each * labels * weights).sum(), (labels * weights).sum()",
            "return (each * weights).sum(), (labels * weights).sum()",
        ),
    ),
    *_in(
        "recjax/layers/pairs.py",
        [
            "tests/models/test_ccn.py::test_pair_counts_of_every_page_up_to_twelve_items",
            "tests/models/test_ccn.py::test_golden_numbers",
            "tests/models/test_ccn.py::test_the_skip_above_rule_keeps_what_was_seen",
        ],
        (
            "pairs_once",
            "jnp.arange(n)[:, None] < jnp.arange(n))",
            "jnp.arange(n)[:, None] <= jnp.arange(n))",
        ),
        (
            "pairs_pull",
            "loss = jax.nn.softplus(-q)\n    click",
            "loss = jax.nn.softplus(q)\n    click",
        ),
        ("pairs_seen", "real & (position < last)", "real & (position <= last)"),
    ),
    *_in(
        "recjax/models/ecup.py",
        [
            "tests/models/test_ecup.py::test_the_chain_never_exceeds_its_first_step",
            "tests/models/test_ecup.py::test_zero_gates_leave_the_network_as_it_is_without_them",
            "tests/models/test_ecup.py::test_gate_before_the_relu_is_the_same",
        ],
        ("chain_logit", "nn.log_sigmoid(a) + nn.log_sigmoid(b)", "nn.log_sigmoid(b)"),
    ),
    # ---------------------------------------------------------------------------------------- data
    *_in(
        "recjax/data/loading/batches.py",
        ["tests/data/loading/test_batches.py"],
        (
            "batch_gone",
            "np.arange(length) < length - count[short, None]",
            "np.arange(length) < length - count[short, None] - 1",
        ),
        ("batch_future", "end = end - np.maximum(count - length, 0)", "pass"),
        ("batch_row", "np.arange(p.part.rows)), filling=-1", "np.arange(p.part.rows)), filling=0"),
        (
            "batch_ages",
            "ages.max() > INT32.max or ages.min() < INT32.min",
            "ages.max() > INT32.max",
        ),
        ("batch_vocabulary", "if unsigned.max() >= rows:", "if unsigned.max() > rows:"),
        (
            "batch_level",
            "need[s] <= capacity[s] for s in need",
            "need[s] < capacity[s] for s in need",
        ),
        ("batch_clean", "flags[ids] = False", "pass"),
        (
            "batch_filler",
            "np.arange(rows + len(ids), rows + len(slots))",
            "np.arange(rows, rows + len(slots) - len(ids))",
        ),
        (
            "batch_window",
            "_gather(head, end[early], length)",
            "_gather(head, end[early] - 1, length)",
        ),
        (
            "batch_first",
            "out[self.requests] = values[self._first]",
            "out[self.requests] = values[: len(self._first)]",
        ),
    ),
    *_in(
        "recjax/data/loading/order.py",
        ["tests/data/loading/test_order.py"],
        (
            "order_epoch",
            "np.random.default_rng([self.seed, epoch, self.partition]).permutation(",
            "np.random.default_rng([self.seed, self.partition]).permutation(",
        ),
        ("order_prefix", "if self.seed is None or epoch == 0:", "if self.seed is None:"),
        (
            "order_partition",
            "rng = np.random.default_rng([self.seed, epoch, self.partition, order[k]])",
            "rng = np.random.default_rng([self.seed, epoch, self.partition])",
        ),
    ),
    *_in(
        "recjax/data/loading/order.py",
        ["tests/data/loading/test_loader.py"],
        ("order_pieces", "+ nth * candidates", "+ nth"),
    ),
    *_in(
        "recjax/data/loading/choice.py",
        ["tests/data/loading/test_streams.py", "tests/data/loading/test_loader.py"],
        (
            "choice_ties",
            'np.argsort(self.time, kind="stable")[: -c.recent]',
            'np.argsort(self.time, kind="stable")[: -c.recent - 1]',
        ),
        (
            "choice_days",
            "keep &= self.time > self.time.max(initial=0)",
            "keep &= self.time >= self.time.max(initial=0)",
        ),
        ("choice_period", "(self.time < c.period[1])", "(self.time <= c.period[1])"),
        ("choice_lengths", "(length > c.lengths[0])", "(length >= c.lengths[0])"),
    ),
    *_in(
        "recjax/data/loading/slices.py",
        ["tests/data/loading/test_slices.py"],
        ("slice_unknown", "known[[PAD, OOV]] = False", "pass"),
        (
            "slice_edge",
            'np.searchsorted(EDGES, count, side="right")',
            'np.searchsorted(EDGES, count, side="left")',
        ),
        ("slice_prefix", "np.concatenate(x)[:wanted]", "np.concatenate(x)"),
    ),
    *_in(
        "recjax/data/store/histories.py",
        ["tests/data/store/test_histories.py"],
        (
            "history_strictly",
            'end = np.searchsorted(self.keys, self.clock.pack(user, time), side="left")',
            'end = np.searchsorted(self.keys, self.clock.pack(user, time), side="right")',
        ),
        (
            "counter_strictly",
            'np.searchsorted(self.keys, query[order], side="left")',
            'np.searchsorted(self.keys, query[order], side="right")',
        ),
        ("clock_end", "(high + 1 - low).bit_length()", "(high - low).bit_length()"),
        (
            "clock_origin",
            "np.clip(time.astype(np.int64) - self.origin, 0, (1 << self.bits) - 1)",
            "np.clip(time.astype(np.int64) - self.origin, 1, (1 << self.bits) - 1)",
        ),
        (
            "history_ties",
            'order = np.argsort(keys, kind="stable")\n    columns',
            "order = np.lexsort((-np.arange(len(keys)), keys))\n    columns",
        ),
        ("history_user", "begins[start[:-1][start[:-1] < len(moment)]] = True", "pass"),
        (
            "session_gap",
            "np.diff(moment, prepend=moment[:1]) > gap",
            "np.diff(moment, prepend=moment[:1]) >= gap",
        ),
        (
            "session_request",
            "running = time[mine] - moment[end - 1] <= gap",
            "running = time[mine] - moment[end - 1] < gap",
        ),
        ("counter_mixed", "code = code * size + columns[key]", "code = code + size * columns[key]"),
        ("counter_unknown", "code = np.where(known, at, len(self.dense))", "code = at"),
        ("quarantine_future", "pl.col(time) <= until", "pl.col(time) < until"),
        ("quarantine_first", 'keep="first"', 'keep="last"'),
    ),
    *_in(
        "recjax/data/store/pages.py",
        ["tests/data/store/test_pages.py"],
        ("page_room", "keep - (size > clicks)", "keep"),
        (
            "page_share",
            "np.minimum(1, places[kept] / of_all[kept])",
            "np.minimum(1, (places[kept] + 1) / of_all[kept])",
        ),
        (
            "page_trigger",
            'clock.pack(user, time), side="left") - 1',
            'clock.pack(user, time), side="right") - 1',
        ),
        (
            "page_within",
            'events["time"][row[known]] <= within',
            'events["time"][row[known]] < within',
        ),
    ),
    # ------------------------------------------------------------------------------------- metrics
    *_in(
        "recjax/metrics/classification.py",
        ["tests/metrics/test_metrics.py"],
        ("sum_compensated", '"low": a["low"] + b["low"] + lost', '"low": a["low"] + b["low"]'),
        (
            "auc_ties",
            "below = np.cumsum(neg) - neg / 2\n    return",
            "below = np.cumsum(neg)\n    return",
        ),
        ("bad_counted", '"examples": int(count.sum()) + bad', '"examples": int(count.sum())'),
        ("ece_middle", "(np.cumsum(weight) - weight / 2) / total", "np.cumsum(weight) / total"),
        ("calibrated", "p / (p + (1 - p) / keep_prob)", "p / (p + (1 - p) * keep_prob)"),
        (
            "gauc_weight",
            "np.average(area[mixed], weights=weight[mixed])",
            "np.average(area[mixed])",
        ),
        ("gauc_group", "- (np.cumsum(negatives) - negatives)[of]", "- np.cumsum(negatives)[of]"),
        (
            "loss_name",
            '(known[2] or "").rpartition("_")[2] not in (*SMALLER, *NEITHER)',
            '(known[2] or "") not in (*SMALLER, *NEITHER)',
        ),
        (
            "loss_weight",
            "np.average(log_losses(*checked[:2]), weights=checked[2])",
            "np.average(log_losses(*checked[:2]))",
        ),
        (
            "matmul_rest",
            "padding = (0, chunks * MATMUL_ROWS - len(index)) if chunks > 1 else (0, 0)",
            "padding = (0, 0)",
        ),
    ),
    *_in(
        "recjax/metrics/ranking.py",
        ["tests/metrics/test_metrics.py"],
        ("rank_ties", "np.lexsort((y, -z, code))", "np.lexsort((-y, -z, code))"),
        ("rank_precision", "y * found / rank", "y * found / (rank + 1)"),
        ("uplift_control", "yc * nt / np.where(nc > 0, nc, 1)", "yc"),
        ("qini_line", "- curve[-1] / 2", "- curve[-1]"),
    ),
    *_in(
        "recjax/metrics/comparison.py",
        ["tests/metrics/test_metrics.py"],
        (
            "paired_draw",
            "draws.append(of_b(counts) - of_a(counts))",
            "draws.append(of_b(counts) - of_a(once))",
        ),
        ("half_spread", "np.std(values, ddof=1)", "np.std(values)"),
        ("half_freedom", "stats.t.ppf((1 + level) / 2, n - 1)", "stats.norm.ppf((1 + level) / 2)"),
    ),
    *_in(
        "recjax/metrics/uplift.py",
        [
            "tests/metrics/test_metrics.py::test_an_effect_its_error_and_the_mean_over_arms_by_hand",
            "tests/models/test_ecup.py::test_figures_by_arm",
            "tests/models/test_ecup.py::test_audit_repairs_spoilt_nuisances",
            "tests/models/test_ecup.py::test_arms_that_are_not_comparable_are_not_judged",
        ],
        (
            "effect_error",
            "(share**2 * (outcome[own] - m) ** 2).sum()",
            "(share * (outcome[own] - m) ** 2).sum()",
        ),
        ("arm_rows", "weights=counts[known]", "weights=None"),
        ("audit_share", "here / (share * mu1**2)", "here / mu1**2"),
    ),
    *_in(
        "recjax/evaluation/collector.py",
        ["tests/metrics/test_metrics.py"],
        ("collector_bad", "self._bad += int((~good).sum())", "pass"),
        ("collector_zero", "used = np.asarray(weights) > 0", "used = np.asarray(weights) >= 0"),
    ),
    # ------------------------------------------------------------------------------------- scaling
    *_in(
        "scaling/law/fit.py",
        ["tests/scaling/law/test_by_hand.py", "tests/scaling/law/test_fit.py"],
        ("law_sigma", "math.sqrt(rss / dof)", "math.sqrt(rss / len(p.x))"),
        (
            "law_threshold",
            "(1 + _t(level, dof) ** 2 / dof)",
            "(1 + _t(level, len(p.x)) ** 2 / dof)",
        ),
        (
            "law_lack",
            "dof, pure_dof = len(sizes) - 3, len(x) - len(sizes)",
            "dof, pure_dof = len(sizes), len(x) - len(sizes)",
        ),
        ("law_scale", "region[:, 1] *= p.scale ** region[:, 2]", "pass"),
        ("law_seeds", "share = max(share, 1.0)", "pass"),
        ("law_noise", "noise = self.sigma**2 * share", "noise = self.sigma**2"),
        ("law_weights", "p = dataclasses.replace(p, w=noise.weight)", "pass"),
        ("law_widened", "total**2 / (own**2 / max(dof, 1) + variance**2 / number)", "dof"),
    ),
    *_in(
        "scaling/law/projection.py",
        ["tests/scaling/law/test_fit.py"],
        (
            "law_ceiling",
            "bounds = (means.min(), 1.0) if larger_is_better else (0.0, means.max())",
            "bounds = (means.max(), 1.0) if larger_is_better else (0.0, means.min())",
        ),
        ("huber_scale", "1.4826 * float(np.median(residual))", "float(np.median(residual))"),
        (
            "law_profile",
            "half = np.sqrt(np.maximum((threshold - syy + sby * centre) / sbb, 0))",
            "half = np.zeros_like(centre)",
        ),
    ),
    *_in(
        "scaling/law/components.py",
        [
            "tests/scaling/law/test_by_hand.py",
            "tests/scaling/law/test_joint.py",
            "tests/scaling/law/test_fit.py",
        ],
        ("noise_bias", "1e-14)) + 1 / dof, dof))", "1e-14)), dof))"),
        ("noise_restricted", "dof = len(rest) - x.shape[1]", "dof = len(rest)"),
        ("noise_alone", "if same.sum() > len(labels) else np.zeros_like(same)", ""),
    ),
    *_in(
        "scaling/law/joint.py",
        ["tests/scaling/law/test_by_hand.py", "tests/scaling/law/test_joint.py"],
        ("joint_new_runs", "parts = [size, run / seeds,", "parts = [size / seeds, run / seeds,"),
        ("joint_no_effect", "low, high = min(low, 0.0), max(high, 0.0)", "pass"),
        ("joint_wider", "wider = t / stats.norm.ppf(0.5 + level / 2)", "wider = 1.0"),
        ("joint_centre", "return reached + s.centre[i]", "return reached"),
        ("joint_freedom", "max(kept.sum() ** 2 / total, 1.0)", "max(dofs)"),
    ),
    *_in(
        "scaling/law/support.py",
        ["tests/scaling/law/test_joint.py", "tests/scaling/law/test_laws.py"],
        (
            "support_factor",
            "1.0 if found.fun < SAME else math.exp(found.fun)",
            "1.0 if found.fun < SAME else found.fun",
        ),
    ),
    *_in(
        "scaling/law/decisions.py",
        ["tests/scaling/law/test_laws.py"],
        ("decide_doubling", "base * (flops - 1)", "base * flops"),
    ),
    # ------------------------------------------------------------------------------------- serving
    *_in(
        "recjax/serving/scorer.py",
        ["tests/serving/test_scorer.py"],
        ("score_round", "-(-size // largest) * largest", "size // largest * largest"),
        (
            "score_shards",
            "start = np.repeat(np.arange(shards) * u, len(pos) // shards)",
            "start = np.repeat(np.arange(shards), len(pos) // shards)",
        ),
        (
            "score_used",
            "used = {s: x[0][x[0] < self.artifact.schema.space(s).rows] for s, x in ids.items()}",
            "used = {s: x[0] for s, x in ids.items()}",
        ),
        ("score_rest", "axis: min(largest, size - at)", "axis: largest"),
        ("score_corrected", "if corrected else 1.0", "if not corrected else 1.0"),
        (
            "score_below",
            'if (\n        x.size and x.view(f"u{x.dtype.itemsize}").max() >= stop',
            'if (\n        x.size and x.view(f"u{x.dtype.itemsize}").max() > stop',
        ),
        ("score_nan", "worst = float(np.maximum(worst, off))", "worst = max(worst, float(off))"),
        (
            "score_relative",
            "np.abs(np.asarray(x, np.float64) - expected).max(initial=0) / scale",
            "np.abs(np.asarray(x, np.float64) - expected).max(initial=0) * scale",
        ),
    ),
    *_in(
        "recjax/serving/counters.py",
        ["tests/serving/test_counters.py"],
        (
            "served_strictly",
            "end = bisect.bisect_left(tail, time)",
            "end = bisect.bisect_right(tail, time)",
        ),
        ("served_last", "count -= known & (last >= time)", "count -= known & (last > time)"),
        ("served_tail", "older += 1", "pass"),
        ("served_snapshot", "if t > self.until]", "if t >= self.until]"),
        ("served_merge", "older + len(tail) for older, tail in", "len(tail) for older, tail in"),
    ),
)
