"""The Python API: fine-tune on data in memory, and get a `Run`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sft_hf.core import console
from sft_hf.core.errors import UserError
from sft_hf.core.recipe.recipe import Recipe
from sft_hf.jobs.arguments import WHERE, recipe_of, rows_in_memory
from sft_hf.jobs.finetune import finetune as run_recipe
from sft_hf.jobs.run import Run

if TYPE_CHECKING:
    from sft_hf.engine.callbacks import Callback


def finetune(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    /,
    *unnamed: Any,
    task: str | Mapping[str, Any] | None = None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    text: str | None = None,
    label: str | Sequence[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    other_environment: bool = False,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Fine-tune a model, choose its weights on validation, and score it; return the finished run. ::

        run = finetune(task="text_classification", model="sentence-transformers/all-MiniLM-L6-v2", train=df,
                       text="review", label="stars", epochs=3, techniques=["mixup"], output_dir="runs/reviews")
        run = finetune("text", train=df, text="review", label="stars")    # with the settings of a recipe
        run = finetune("text", learning_rate=1e-4)                        # a recipe with one key changed

    Args:
        recipe: the recipe to start from: its name or path, or a `Recipe`. The only argument without a name.
        unnamed: refused, with the remedy: data are given as `train`.
        task: text_classification, image_classification or speech_recognition; by default the recipe's, or the task of
            the given column (text=, image=, audio=). A dict contains settings of the task.
        model: a Hub id, a local folder or file; replaces the recipe's.
        train: the rows: a pandas or polars DataFrame, a `datasets.Dataset`, an Arrow table, a list of dicts or a dict
            of lists; a `DatasetDict` with all splits; or a string, a path or Hub id. Replaces the recipe's data.
            Images and audio may be paths, arrays, Pillow images or {"array": ..., "sampling_rate": ...}.
        validation, test: rows, as for `train`. A missing split is held out of train.
        text: the column of texts. Further columns are settings: `text_pair`, `image`, `audio`, `transcript`.
        label: the column of labels, or a list of 0/1 columns, one per label.
        output_dir: the run folder. By default runs/NAME, with the name of the recipe or task, or the first of
            runs/NAME-2, ... that does not exist, so that no other run is overwritten.
        resume: continue the run in the folder from its newest checkpoint, given the same arguments; "auto": if there
            is one.
        overwrite: replace an existing run in the folder.
        other_environment: resume even if versions, threads or device differ.
        callbacks: see `sft_hf.Callback`.
        settings: see `sft_hf.jobs.settings_table`: short names (epochs, batch_size, ...), keys of recipes by their own
            names (learning_rate, max_length, ...), sections as dicts (optim={"name": "sgd"}), `techniques`, `seed`, ...

    Raises:
        UserError: bad settings, data or model; nothing was written.
        TrainingError: a loss or gradient is not finite, or memory does not suffice for a single row.
        StorageError: the disk is full; the last checkpoint is intact.
        KeyboardInterrupt: the run was interrupted (Ctrl-C, the stop button of a notebook) after saving a checkpoint,
            from which `resume=True` continues.
    """
    if unnamed:
        kind = type(unnamed[0]).__name__
        raise UserError(
            f"{WHERE}: only the recipe is given without a name, and the second argument is a {kind}; give data as "
            "train=, and columns as text= and label="
        )
    console.show_log()
    columns = {"text": text, "label": label}
    settings |= {name: column for name, column in columns.items() if column is not None}
    data = {"train": train, "validation": validation, "test": test}
    found = recipe_of(
        recipe,
        task=task,
        model=model,
        data=data,
        settings=settings,
        output_dir=output_dir,
        resume=resume,
        overwrite=overwrite,
    )
    splits = rows_in_memory(data, found)
    result = run_recipe(
        found,
        splits=splits,
        callbacks=callbacks,
        resume=resume,
        overwrite=overwrite,
        other_environment=other_environment,
    )
    trusted = found.model.trust_remote_code
    return Run(result.output_dir, trust_remote_code=trusted, splits=splits, hub_url=result.hub_url)
