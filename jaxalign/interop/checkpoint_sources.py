"""Opens policy checkpoints of all formats that jaxalign reads, as lazy parameters with T5X's names, layer by layer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable

import jax
import numpy as np
import tensorstore as ts

from jaxalign import hub
from jaxalign.errors import UserError
from jaxalign.interop import huggingface_folder, parameters, reading_settings, storage, t5x, zarr
from jaxalign.interop.arrays import LazyArray, finite, from_numpy
from jaxalign.interop.reading_settings import ReadingSettings
from jaxalign.networks.network_config import NetworkConfig
from jaxalign.runs import checkpoints
from jaxalign.runs.description import NETWORKS_FILE
from jaxalign.runs.folder import Run

RUN, T5X, T5X_ORBAX, HUGGING_FACE = "jaxalign", "t5x", "t5x_orbax", "huggingface"
T5X_FORMATS = (T5X, T5X_ORBAX)
FORMATS = (RUN, *T5X_FORMATS, HUGGING_FACE)
_SAMPLE_BYTES = 256
_VALUE = "value."


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint of a policy.

    Attributes:
      format: one of `FORMATS`.
      path: the folder of the checkpoint; for a run, the run folder.
      step: the step in its run; 0 for Hugging Face checkpoints, which have no step.
      params: the parameters with T5X's names, layer by layer.
      config: the recorded network configuration; None for T5X checkpoints, which record none.
      left_out: a description of the other contents of the checkpoint.
      run: the run folder, if the checkpoint belongs to a run.
      evidence: a function that reads a small sample of all content, to distinguish checkpoints.
      reading: how its run reads text, as far as the checkpoint records it.
      address: how to find it again: the path, or for a model of the hub its address with the commit.
    """

    format: str
    path: str
    step: int
    params: dict[str, LazyArray]
    config: NetworkConfig | None
    left_out: list[str]
    run: Run | None
    evidence: Callable[[], Iterable[bytes]]
    reading: ReadingSettings
    address: str = ""

    def run_id(self) -> str:
        """Returns the id of the run. For other systems, returns a digest of a sample of the content, independent of the location."""
        if self.run is not None:
            return self.run.description.run_id
        described = parameters.identity(self.config)
        digest = hashlib.sha256(f"{self.format} {json.dumps(described)}\n".encode())
        for name in sorted(self.params):
            array = self.params[name]
            digest.update(f"{name} {array.shape} {array.dtype.name}\n".encode())
        for part in self.evidence():
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:12]

    def configured(self, model: NetworkConfig | None) -> tuple[NetworkConfig, str]:
        """Returns the configuration of the network that has exactly these parameters.

        Args:
          model: the configuration that the caller expects, if any.

        Returns:
          `model`, or otherwise the configuration that is recorded or inferred from shapes; and a description of the assumptions.

        Raises:
          UserError: a parameter is missing, unknown, or has another shape, or the configurations differ.
        """
        assumed = ""
        if model is not None and self.config is not None:
            parameters.same_architecture(self.path, self.config, model)
        config = model or self.config
        if config is None:
            config, assumed = parameters.infer_config(self.path, self.params)
        parameters.check(self.path, self.params, config)
        return config, assumed


def open_source(
    path: str | os.PathLike[str], step: int | str | None = None, *, role: str = "policy"
) -> Source:
    """Opens a checkpoint. Arrays are read later, and are then refused if they hold NaN or infinity.

    Args:
      path: a run folder or one of its checkpoints; a T5X checkpoint or a folder with several; a Hugging Face folder, or the address of
        a model of the hub (`jaxalign.hub`), which is downloaded unless the local cache has it.
      step: a number, 'latest', or (for runs) 'best', if there are several.
      role: the role of the parameters, for a run.

    Raises:
      UserError: there is no checkpoint, or it is malformed.
    """
    if hub.is_address(path):
        folder = hub.download(os.fspath(path))
        source = _open(folder, checkpoints.checked_step(step), role)
        return dataclasses.replace(source, address=hub.pinned(os.fspath(path), folder))
    source = _open(storage.absolute(path), checkpoints.checked_step(step), role)
    return dataclasses.replace(source, address=source.path)


def _open(folder: str, step: int | str | None, role: str) -> Source:
    if not storage.is_remote(folder) and os.path.isfile(folder):
        huggingface_folder.refuse_pickle(os.path.dirname(folder), {os.path.basename(folder)})
        raise UserError(f"{folder} is a file; give the folder of the checkpoint")
    names = storage.children(folder)
    if _is_run(folder, names):
        return _open_run(folder, step, role)
    if role != "policy":
        raise UserError(f"{folder} is no run folder, and so has no role {role!r}")
    if huggingface_folder.CONFIG in names and any(n.endswith(".safetensors") for n in names):
        _same_step(folder, 0, step)
        stored, config, unused = huggingface_folder.read(folder)
        params = {name: finite(array, f"{folder}: {name}") for name, array in stored.items()}
        evidence = _first_rows(params)
        reading = reading_settings.read(folder) or reading_settings.of_transformers(folder)
        return Source(HUGGING_FACE, folder, 0, params, config, unused, None, evidence, reading)
    if t5x.INDEX in names and any(name.startswith("model.ckpt") for name in names):
        raise UserError(
            f"{folder} is a TensorFlow checkpoint; T5X's versions of the public ones are under gs://t5-data/pretrained_models/t5x"
        )
    if t5x.INDEX in names or t5x.ORBAX_ITEM in names:
        return _open_t5x(folder, step, legacy=t5x.INDEX in names)
    found = t5x.steps(names)
    if found:
        chosen = found[-1] if step in (None, "latest") else step
        if chosen not in found:
            raise UserError(f"{folder} has no T5X checkpoint of step {step}; there are {found}")
        return _open(storage.join(folder, f"checkpoint_{chosen}"), None, role)
    huggingface_folder.refuse_pickle(folder, names)
    raise UserError(
        f"no checkpoint at {folder}: it is neither a run folder, nor a T5X checkpoint (checkpoint_<step>), nor a Hugging Face "
        "folder with config.json and model.safetensors"
    )


def is_run(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a run folder of jaxalign or one of its checkpoints."""
    if hub.is_address(path):
        return False
    folder = storage.absolute(path)
    return not storage.is_remote(folder) and _is_run(folder, storage.children(folder))


def _is_run(folder: str, names: set[str]) -> bool:
    parent, _, name = folder.rpartition("/")
    one_of_its = name.isdigit() and parent.endswith(f"/{checkpoints.CHECKPOINTS}")
    return NETWORKS_FILE in names or checkpoints.CHECKPOINTS in names or one_of_its


def _open_run(folder: str, step: int | str | None, role: str) -> Source:
    if storage.is_remote(folder):
        raise UserError(f"{folder}: run folders are local; copy it here first")
    run = Run(folder, step)
    config = run.config(role)
    checkpoints.refuse_damaged(run.folder, run.step)
    item = f"{run.folder}/{checkpoints.CHECKPOINTS}/{run.step}/params"
    arrays = zarr.read_tree(item)
    reading = reading_settings.of_run(run)
    if run.trained_adapters(role):
        whole = parameters.flatten(jax.device_get(run.policy(role=role).params))
        own = {name: from_numpy(np.asarray(array)) for name, array in whole.items()}
        params = parameters.unrolled(item, own, config.param_scan_axis, config.LAYER_CYCLE)
        return Source(RUN, str(run.folder), run.step, params, config, [], run, list, reading)
    prefix = f"{role}."
    own = {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
    others = sorted({name.partition(".")[0] for name in arrays} - {role})
    params = parameters.unrolled(item, own, config.param_scan_axis, config.LAYER_CYCLE)
    left_out = [f"role {other}" for other in others]
    return Source(RUN, str(run.folder), run.step, params, config, left_out, run, list, reading)


def _open_t5x(folder: str, step: int | str | None, *, legacy: bool) -> Source:
    params, others, stored_step = (t5x.read_legacy if legacy else t5x.read_orbax)(folder)
    named = t5x.step_of(folder)
    own_step = stored_step if named is None else named
    if own_step < 0:
        raise UserError(
            f"{folder}: neither its name (checkpoint_<step>) nor its content says a step"
        )
    _same_step(folder, own_step, step)
    slots = len([name for name in others if name != "state.step"])
    left_out = [f"{slots} arrays of the optimizer"] if slots else []
    # The parameters that `interop.t5x_model` trains in addition to the policy.
    values = {name for name in params if name.startswith(_VALUE)}
    params = {name: array for name, array in params.items() if name not in values}
    left_out += [f"a value network ({len(values)} arrays under target.value)"] if values else []
    evidence = _first_bytes(folder if legacy else storage.join(folder, t5x.ORBAX_ITEM), params)
    return Source(
        T5X if legacy else T5X_ORBAX,
        folder,
        own_step,
        parameters.unrolled(folder, params),
        None,
        left_out,
        None,
        evidence,
        reading_settings.read(folder),
    )


def _same_step(folder: str, own: int, wanted: int | str | None) -> None:
    if wanted not in (None, "latest", own):
        raise UserError(f"{folder} has no checkpoint of step {wanted}, only one of step {own}")


def _first_rows(params: dict[str, LazyArray]) -> Callable[[], Iterable[bytes]]:
    """Samples safetensors: reads the first data of each tensor. For a transposed tensor, this is a column."""

    def read() -> Iterable[bytes]:
        for name in sorted(params):
            array = params[name]
            index = [slice(None)] * len(array.shape)
            if len(array.shape) > 1:
                index[0 if name == parameters.EMBEDDING else -1] = slice(0, 1)
            yield np.ascontiguousarray(array.read(index)).tobytes()

    return read


def _first_bytes(folder: str, params: dict[str, LazyArray]) -> Callable[[], Iterable[bytes]]:
    """Samples zarr or OCDBT: the zarr index and the stored start of each array's first chunk, or the OCDBT root with its random ids."""

    def read() -> Iterable[bytes]:
        store = ts.KvStore.open(storage.kvstore(folder)).result()
        for name in (t5x.INDEX, "_METADATA", "manifest.ocdbt"):
            yield store.read(name).result().value
        prefix = "target."
        futures = []
        for name in sorted(params):
            chunk = ".".join("0" * len(params[name].shape)) or "0"
            key = f"{prefix}{name}/{chunk}"
            futures.append((key, store.read(key, byte_range=slice(0, _SAMPLE_BYTES))))
        for key, future in futures:
            try:
                yield future.result().value
            except ValueError:  # the chunk is shorter than the sample
                yield store.read(key).result().value

    return read
