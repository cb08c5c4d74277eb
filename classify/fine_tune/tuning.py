"""The library calls behind ``fine-tune``: a head and its images in, the better model out.

The last layers of the backbone are trained on together with the head. What comes of it is kept only
where validation rows show that it beats the probe, so fine-tuning never makes things worse.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.assembly import check_parity, unfreeze
from classify.fine_tune.checkpoints import Checkpoints
from classify.fine_tune.decision import DecisionPlan
from classify.fine_tune.features import MIXED_TOLERANCE, Features
from classify.fine_tune.from_cache import (
    Material,
    activations_folder,
    check_activations,
    material,
)
from classify.fine_tune.job import Job, state_folder
from classify.fine_tune.new_head import NewHead
from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.probe import fit_probe
from classify.fine_tune.result import Tuned, score_test, write_probe, write_tuned
from classify.fine_tune.training import Listener, Trained, train
from classify.report.run_page import write_report
from classify.results import runs
from classify.results.runs import Run, load_run
from classify.results.tensorboard_log import check_tensorboard
from classify.results.training import n_parameters
from data_cache.console import import_keras, progress, say
from data_cache.errors import OutputExistsError
from extract.sources import Source

N_CHECKED = 64
"""Images whose logits are compared before the first step."""


def fine_tune(source: Source, head: Path | None, output: Path, options: FineTuneOptions) -> Run:
    """Fine-tune the backbone under the head in the run ``head``; write the run ``output``.

    Where fine-tuning does not beat what ``head`` selected, ``output`` is a copy of ``head`` that
    also says what was tried. Without ``head`` one is trained first, see :mod:`.new_head`. The state
    after each epoch is kept beside ``output`` until the run is written.

    Raises
    ------
    HeadstartError
        The head does not fit the source or the options, see :meth:`.job.Job.open`; an image cannot
        be read; the two paths to the logits differ, see :func:`.assembly.check_parity`; training
        went wrong, see :func:`.training.train`. Whatever is raised, ``output`` stays as it was.
    """
    check_output(output, options)
    if head is None:
        new = NewHead.within(state_folder(output), options.cache)
        new.make(source, options)
        head, options = new.run, replace(options, cache=new.cache)
    job = Job.open(source, head, output, options)
    checkpoints = job.checkpoints()
    if n_epochs := checkpoints.load([]).n_epochs:
        say(f"going on after epoch {n_epochs}")
    tuned = _tune(job, checkpoints)
    keeps_tuned = tuned.decision.keeps_tuned
    with job.clock.time("test"):
        test = score_test(job, tuned) if keeps_tuned else None
    with runs.new_run(output, overwrite=options.overwrite) as folder:
        if keeps_tuned:
            write_tuned(folder, job, tuned, test)
        else:
            write_probe(folder, job, tuned)
        write_report(folder, output.name)
    checkpoints.remove()
    if options.from_cache:
        kept = activations_folder(output, options.activations)
        say(f"{kept} keeps the activations for another fine-tuning: it may be deleted")
    return load_run(output)


def check_output(output: Path, options: FineTuneOptions) -> None:
    """See that the run may be written, and what is to become of an unfinished fine-tuning.

    Raises
    ------
    OutputExistsError
        A run is there, or an unfinished fine-tuning, and nothing says what to do with it.
    HeadstartError
        See :func:`classify.results.runs.check_output` and :func:`.from_cache.check_activations`.
    """
    runs.check_output(output, overwrite=options.overwrite)
    if options.tensorboard:
        check_tensorboard()
    if options.from_cache:
        check_activations(activations_folder(output, options.activations))
    folder = state_folder(output)
    if options.resume and not folder.exists():
        say(f"nothing to go on with at {folder}: beginning anew")
    if options.resume or not folder.exists():
        return
    if not options.overwrite:
        raise OutputExistsError(
            f"{folder} holds a fine-tuning that was not finished: go on with it with --resume, or "
            "begin anew with --overwrite"
        )
    shutil.rmtree(folder)


def _tune(job: Job, checkpoints: Checkpoints) -> Tuned:
    """Start from the probe, train, and decide."""
    options, rows = job.options, job.rows
    plan = DecisionPlan.draw(job.validation.labels, rows.validation.rows.groups, options.seed)
    with (
        job.clock.time("features"),
        Features.open(job.run, job.source, job.extractor, options.cache) as features,
    ):
        training, validation = features.of(rows.training), features.of(rows.validation)
    with job.clock.time("tensorflow_import"):
        import_keras()
    probe = fit_probe(job.run, (training, job.training.labels))
    network = job.network(job.head(), mixed_precision=options.mixed_precision)
    unfreeze(network.trunk, options.unfreeze_layers)
    with ExitStack() as stack:
        with job.clock.time("activations"):
            trained_on = stack.enter_context(material(job, network))
        with job.clock.time("check"):
            _check(job, trained_on, training[:N_CHECKED], features.tolerance)
        with job.clock.time("training"):
            trained = _train(job, trained_on, plan, checkpoints)
    n_trained = network.n_trained
    n_all = n_parameters(network.trunk.weights) + n_parameters(network.head.trainable_weights)
    decision = plan.decide(trained.logits, probe.predict(validation))
    return Tuned(network, trained, decision, n_trained, n_all - n_trained)


def _check(job: Job, trained_on: Material, features: NDArray[np.float32], tolerance: float) -> None:
    """See that network and head agree before the first step, on the first training images."""
    network = trained_on.network
    expected = np.asarray(network.head(features, training=False))
    if job.options.mixed_precision:
        tolerance = max(tolerance, MIXED_TOLERANCE)
    distance = check_parity(network, trained_on.training.inputs, expected, tolerance)
    say(
        f"before the first step the network agrees with the head on cached features: logits "
        f"within {distance:.0e} on {len(features)} images"
    )


def _train(job: Job, trained_on: Material, plan: DecisionPlan, checkpoints: Checkpoints) -> Trained:
    """Train, with a progress bar on a terminal; say what remains where it is interrupted."""
    options = job.options
    network, n_images = trained_on.network, len(trained_on.training)
    say(
        f"training {network.n_trained:,} parameters: "
        f"{_what_trains(options.unfreeze_layers, job.run.recipe.backbone)}, on {n_images:,} images"
    )
    try:
        with progress("Fine-tuning", total=options.epochs * n_images) as advance:
            return train(
                network,
                trained_on.training,
                trained_on.validation,
                job.spec,
                choose=plan.judge,
                checkpoints=checkpoints,
                listener=Listener(advance, _say_epoch),
            )
    except KeyboardInterrupt:
        if checkpoints.path.exists():
            say(f"stopped; the last whole epoch is kept in {checkpoints.folder}: see --resume")
        raise


def _what_trains(n_layers: int, backbone: str) -> str:
    """Say which layers are trained."""
    if n_layers == 0:
        return "the head alone"
    layers = "layer" if n_layers == 1 else f"{n_layers:,} layers"
    return f"the last {layers} of {backbone} and the head"


def _say_epoch(epoch: int, row: Mapping[str, float]) -> None:
    """Tell an epoch's figures."""
    say(
        f"epoch {epoch}: loss {row['loss']:.4f}, on validation rows {row['val_loss']:.4f}, "
        f"accuracy {row['val_accuracy']:.4f}"
    )
