"""Names in T5X's gin files that have no meaning in jaxalign, and their equivalents."""

from __future__ import annotations

import re

# Macros that only T5X reads.
_MACROS = {
    "USE_CACHED_TASKS": "every task is cached on first use, in CACHE_DIR; leave it out",
    "TRAIN_STEPS_RELATIVE": "TRAIN_STEPS counts a run's own updates already; give it the number of new ones",
    "EVAL_STEPS": "evaluation reads the whole split; TaskData.eval_split says which",
    "MIXTURE_OR_TASK_MODULE": "import the module in a gin file and list its functions in REGISTER_TASKS",
    "SHUFFLE_TRAIN_EXAMPLES": "training examples are always shuffled, by RANDOM_SEED",
    "EVALUATOR_USE_MEMORY_CACHE": "evaluation reads the cache in CACHE_DIR",
    "EVALUATOR_NUM_EXAMPLES": "`jaxalign evaluate --num_prompts=N` judges so many",
    "JSON_WRITE_N_RESULTS": "`jaxalign generate` writes the responses",
    "INFER_EVAL_DATASET_CFG": "`jaxalign generate` and `jaxalign evaluate` decode",
    "USE_HARDWARE_RNG": "JAX_DEFAULT_PRNG_IMPL in the environment chooses the generator",
    "CHECKPOINT_CFG": "CHECKPOINT_PERIOD, KEEP_CHECKPOINTS and INITIAL_CHECKPOINT_PATH",
}
# Parameters of functions and classes, by their last two names; then whole functions and classes.
_PARAMETERS = {
    "SaveCheckpointConfig.period": "CHECKPOINT_PERIOD",
    "SaveCheckpointConfig.keep": "KEEP_CHECKPOINTS",
    "SaveCheckpointConfig.dtype": "run folders hold float32; `jaxalign convert --dtype=bfloat16` rounds",
    "SaveCheckpointConfig.save_dataset": "the position in the data is always saved",
    "RestoreCheckpointConfig.path": "INITIAL_CHECKPOINT_PATH",
    "RestoreCheckpointConfig.mode": "start.StartFrom.step, a number or 'latest'",
    "RestoreCheckpointConfig.dtype": "parameters are float32",
    "Trainer.num_microbatches": "MICROBATCHES",
    "Trainer.learning_rate_fn": "LEARNING_RATE, WARMUP_STEPS and SCHEDULE",
    "create_learning_rate_scheduler.base_learning_rate": "LEARNING_RATE",
    "create_learning_rate_scheduler.warmup_steps": "WARMUP_STEPS",
    "create_learning_rate_scheduler.factors": "SCHEDULE",
    "PjitPartitioner.num_partitions": "MESH_TENSOR",
    "PjitPartitioner.model_parallel_submesh": "MESH_FSDP and MESH_TENSOR",
    "PjitPartitioner.logical_axis_rules": "devices.Devices.axis_rules",
    "DatasetConfig.batch_size": "BATCH_SIZE",
    "DatasetConfig.mixture_or_task_name": "MIXTURE_OR_TASK_NAME",
    "DatasetConfig.module": "an import in a gin file, and REGISTER_TASKS",
    "DatasetConfig.pack": "PACK",
    "DatasetConfig.seed": "RANDOM_SEED",
    "DatasetConfig.split": "TaskData.train_split and eval_split",
    "DatasetConfig.task_feature_lengths": "TASK_FEATURE_LENGTHS",
    "DatasetConfig.use_cached": "every task is cached on first use, in CACHE_DIR",
    "EncoderDecoderModel.label_smoothing": "LABEL_SMOOTHING of objectives/sft.gin",
    "EncoderDecoderModel.loss_normalizing_factor": "LOSS_NORMALIZING_FACTOR of objectives/sft.gin (None is a mean here, a sum in T5X)",
    "EncoderDecoderModel.z_loss": "Z_LOSS of objectives/sft.gin",
    "train.total_steps": "TRAIN_STEPS",
    "train.eval_period": "EVAL_PERIOD",
    "train.stats_period": "LOG_PERIOD",
    "train.use_orbax": "checkpoints are Orbax's",
    "SaveCheckpointConfig": "CHECKPOINT_PERIOD and KEEP_CHECKPOINTS",
    "RestoreCheckpointConfig": "INITIAL_CHECKPOINT_PATH; what a checkpoint lacks (a value head) is made anew by itself",
    "CheckpointConfig": "CHECKPOINT_PERIOD, KEEP_CHECKPOINTS and INITIAL_CHECKPOINT_PATH",
    "create_learning_rate_scheduler": "LEARNING_RATE, WARMUP_STEPS and SCHEDULE",
    "DatasetConfig": "a file of gin_configs/tasks",
    "EncoderDecoderModel": "a file of gin_configs/models and one of gin_configs/objectives",
    "PjitPartitioner": "MESH_SLICE, MESH_DATA, MESH_FSDP and MESH_TENSOR",
    "Trainer": "MICROBATCHES, and a file of gin_configs/optimizers",
}


def advice(name: str) -> str | None:
    """Returns a sentence with the equivalent of a T5X name; None if the name is not one that only T5X has.

    Args:
      name: a macro, a parameter (``utils.SaveCheckpointConfig.period``), or a function; leading scopes are ignored.
    """
    plain = name.rpartition("/")[2]
    if "." not in plain and plain in _MACROS:
        return f"{plain} is T5X's; here {_MACROS[plain]}"
    parts = plain.split(".")
    for known in (".".join(parts[-2:]), *parts[-2:][::-1]):
        if known in _PARAMETERS:
            return f"{plain} is T5X's; here it is: {_PARAMETERS[known]}"
    return None


def advice_on_file(text: str) -> list[str]:
    """Returns the advice for every name that the text of a gin file sets, each once."""
    found: dict[str, None] = {}
    block = ""
    for line in text.splitlines():
        heading = re.match(r"([\w./]+):\s*(#.*)?$", line)
        binding = re.match(r"(\s*)([\w./]+)\s*=", line)
        if heading:
            block = heading[1]
        elif binding:
            name = f"{block}.{binding[2]}" if binding[1] and block else binding[2]
            told = advice(name)
            if told is not None:
                found[told] = None
    return list(found)
