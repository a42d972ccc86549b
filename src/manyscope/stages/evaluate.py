"""evaluate: judge the predictions beside the scope's baselines."""

from __future__ import annotations

from manyscope.evaluation.figures import forest_plot, save_figure, style, training_curves
from manyscope.log import logger
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.metrics import metrics_document, metrics_table
from manyscope.tables.parquet import read_table, write_table
from manyscope.tables.predictions import read_predictions
from manyscope.tables.samples import read_samples
from manyscope.tables.whole import whole_folder, write_json


def run(settings: ExperimentSettings, paths: ExperimentPaths) -> None:
    """Write the folder evaluate/, whole: figures with their captions, the forest plot, metrics.parquet,
    metrics.json, and the scope's own tables and files.

    Raises:
        DataError: a file of an earlier stage is missing or broken, or a metric is not defined.
    """
    scope = find_scope(settings.scope)
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    with style():
        evaluation = scope.evaluate(settings, paths.prepared, paths.files, samples, predictions)
    document = metrics_document(paths.experiment, scope.name, evaluation.headline, evaluation.metrics)
    figures, captions = dict(evaluation.figures), dict(evaluation.captions)
    if paths.history.is_file():
        figures.setdefault("training", training_curves(read_table(paths.history)))
        captions.setdefault("training", "Curves of the training.")

    with whole_folder(paths.evaluate) as folder:
        for name, figure in sorted(figures.items()):
            save_figure(figure, folder / paths.figures.name / f"{name}.png")
        names = {name: captions.get(name, "") for name in sorted(figures)}
        write_json(folder / paths.figures.name / "captions.json", names)
        save_figure(forest_plot(evaluation.metrics), folder / paths.metrics_figure.name)
        write_table(folder / paths.metrics_table.name, metrics_table(evaluation.metrics))
        for name, table in evaluation.tables.items():
            table.write_csv(folder / name)
        for name, write in evaluation.files.items():
            write(folder / name)
        write_json(folder / paths.metrics.name, document)
    for metric in evaluation.metrics:
        if metric.name == evaluation.headline:
            beside = f", {metric.baseline} {metric.baseline_value:.4g}" if metric.baseline else ""
            logger.info("%s: %.4g [%.4g, %.4g]%s", metric.label, metric.value, metric.low, metric.high, beside)
