"""The loop over batches: what is launched, compiled and moved, and in which order."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import monitoring

from lensjax import trace
from lensjax.data import pipeline
from lensjax.data.catalog import open_source
from lensjax.ensemble import scoring, sharding
from lensjax.ensemble.plan import CompiledStep
from lensjax.ensemble.stack import stack
from lensjax.ensemble.step import StepOptions, ensemble_step, one_by_one_step, place_weights
from lensjax.ledger import Ledger
from lensjax.predictions import Scores
from lensjax.results import COLUMNS
from tests.ensemble.members import PREPROCESSING, random_member
from tests.ensemble.test_step import inputs

BATCH, BATCHES = 4, 9


@pytest.fixture(scope="module")
def ensemble():
    return stack({"one": random_member("vit_s16", 0), "two": random_member("vit_s16", 1)})


@pytest.fixture
def run(ensemble, tmp_path, monkeypatch):
    """Returns a function that scores all batches with a kind of step under the transfer guard; it
    returns what happened, in order, and the programs that were compiled."""
    cutouts = np.random.default_rng(0).normal(9, 2, (BATCH * BATCHES - 1, 32, 32, 2))
    np.save(tmp_path / "stack.npy", cutouts.astype(np.float32))
    source = open_source(tmp_path / "stack.npy", needed=PREPROCESSING.bands, pixel_scale=0.2)
    mesh = sharding.mesh_of(jax.devices())
    happened, compiled = [], []

    def record(name, function):
        def recorded(*arguments):
            happened.append(name)
            return function(*arguments)

        return recorded

    def on_compilation(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about["fun_name"])

    def scored(make, profile=None):
        options = StepOptions(mc_samples=2)
        weights = place_weights(ensemble, mesh, options)
        step = make(ensemble, mesh, options)
        parts = Ledger(tmp_path / "parts", {}, range(len(source)))
        # From here on each program is compiled anew, also those of single operations.
        jax.clear_caches()
        monitoring.register_event_duration_secs_listener(on_compilation)
        try:
            with monkeypatch.context() as patched, jax.transfer_guard("disallow"):
                patched.setattr(jax, "device_put", record("put", jax.device_put))
                patched.setattr(jax, "device_get", record("get", jax.device_get))
                compiled_step = CompiledStep(record("step", step), ensemble, mesh, None, BATCH)
                scoring.score(compiled_step, weights, source, parts, "auto", profile=profile)
        finally:
            monitoring.unregister_event_duration_listener(on_compilation)
        assert not parts.missing()
        return happened, compiled

    return scored


def test_the_guard_would_notice_an_implicit_transfer():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-dev"):
        jax.jit(lambda x: x + 1)(np.ones(3))


def test_one_program_and_one_dispatch_a_batch(run):
    happened, compiled = run(ensemble_step)
    assert compiled == ["jit(step)"]
    assert happened.count("step") == BATCHES


def test_the_next_batch_is_on_the_device_and_under_way_when_one_is_fetched(run):
    happened, _ = run(ensemble_step)
    launch = ["put", "step"]
    assert happened == [*launch, *(BATCHES - 1) * [*launch, "get"], "get"]


def test_the_share_of_waiting_is_told(tmp_path, monkeypatch):
    """By a clock on which a batch is read in three ticks and scored in one."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(scoring, "time", clock)
    monkeypatch.setattr(trace, "time", clock)
    cutouts = np.random.default_rng(0).normal(size=(BATCH * BATCHES, 32, 32, 2))
    np.save(tmp_path / "stack.npy", cutouts.astype(np.float32))
    source = open_source(tmp_path / "stack.npy", needed=PREPROCESSING.bands, pixel_scale=0.2)
    read = scoring.pipeline.batches

    def slowly(*arguments, **options):
        for batch in read(*arguments, **options):
            clock.now += 3
            yield batch

    def step(_, inputs):
        clock.now += 1
        logits = np.zeros(BATCH)
        return scoring.Scores(*[logits] * 6, *[logits[None]] * 3)

    monkeypatch.setattr(scoring.pipeline, "batches", slowly)
    ensemble = SimpleNamespace(names=("a",), preprocessings=(PREPROCESSING,))
    compiled = CompiledStep(step, ensemble, sharding.mesh_of(jax.devices()), None, BATCH)
    rows = Ledger(tmp_path / "parts", {}, range(len(source)))
    timing = scoring.score(compiled, None, source, rows, "auto")
    assert timing["waiting_share"] == 3 / 4
    assert timing["images_per_second"] == BATCH * (BATCHES - 1) / (4 * (BATCHES - 2))


def test_members_one_by_one_move_nothing_implicitly_either(run):
    _, compiled = run(one_by_one_step)
    assert list(dict.fromkeys(compiled)) == ["jit(unstack)", "jit(one_pass)", "jit(fuse_all)"]


def test_a_trace_holds_the_stages_of_steady_batches(run, tmp_path):
    run(ensemble_step, profile=tmp_path / "trace")
    (file,) = (tmp_path / "trace").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(file)).planes
    names = [e.name for plane in planes for line in plane.lines for e in line.events]
    assert [names.count(stage) for stage in ("load", "launch", "fetch", "keep")] == 4 * [5]
    assert "read" in names
    assert any("jit_step" in name or "ThunkExecutor" in name for name in names)
    content = file.read_bytes()
    assert all(scope in content for scope in (b"preprocess", b"member/vit_s16", b"fuse"))


def test_a_run_of_few_batches_ends_its_trace_or_says_that_there_is_none(tmp_path, capsys):
    for batches in (0, 2, 3):
        assert list(trace.traced(range(batches), tmp_path)) == list(range(batches))
        assert ("too few batches" in capsys.readouterr().err) == (batches < 3)


def test_a_score_that_is_not_finite_is_a_reject(ensemble, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4, 32, 32, 2)))
    source = open_source(tmp_path / "a.npy", needed=PREPROCESSING.bands, pixel_scale=0.2)
    (batch,) = pipeline.batches(source, ensemble.preprocessings, how="auto", batch_size=4)
    batch.readable[3], batch.reasons[3] = False, "no such file"
    batch.flags[:] = ["no data in g"] * 4
    shapes = (4 if name in COLUMNS else (2, 4) for name in Scores._fields)
    scores = Scores(*map(np.ones, shapes))
    scores.logit_std[1], scores.logit[2:] = np.nan, -np.inf
    found = scoring._predictions(ensemble.names, batch, scores)
    reason = "the score is not finite"
    assert found.readable.tolist() == [True, False, False, False]
    assert found.reason.tolist() == ["", reason, reason, "no such file"]
    assert found.flag.tolist() == ["no data in g", "", "", ""]
    for values in found.scores:
        assert np.isnan(values[..., 1:]).all() and (values[..., 0] == 1).all()


def test_the_median_turn_counts_and_the_first_does_not(monkeypatch):
    now, turns = [0.0], []
    monkeypatch.setattr(scoring.time, "perf_counter", lambda: now[0])

    def step(name, seconds):
        lasting = iter(seconds)

        def run(weights, placed):
            assert isinstance(placed.images[0], jax.Array)
            turns.append(name)
            now[0] += next(lasting)

        return run

    steps = {"fast": step("fast", [60.0, 0.5, 9.0, 0.25]), "slow": step("slow", [90.0, 4, 4, 8])}
    mesh = sharding.mesh_of(jax.devices()[:1])
    found = scoring.side_by_side(steps, None, inputs(8), mesh)
    assert found == {"fast": pytest.approx(16.0), "slow": pytest.approx(2.0)}
    assert turns == ["fast", "slow"] * 4
